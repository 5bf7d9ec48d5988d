"""Pixels that people hand over: arrays, files or data URIs -> checked numpy arrays.

A picture may be an array, the name of a file, or `data:image/png;base64,...`, which
makes a request a single piece of JSON. Owns their reading and writing and the maps of
regions; knows no tasks and no requests. Files are decoded by `image`.
"""

import base64
import binascii
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lDM_jax.core import image as image_lib
from lDM_jax.core.errors import UserError
from lDM_jax.data.transforms import on_white

Picture = np.ndarray | str | Path
URI = "data:image/"


def read_pixels(picture: Picture | None, name: str) -> np.ndarray | None:
    """uint8 "H W 3" of an array or of a file, laid over white."""
    if picture is None:
        return None
    if isinstance(picture, (str, Path)):
        picture = on_white(read_file(picture, name))
    pixels = np.asarray(picture)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise UserError(
            f"{name} is {pixels.dtype} {pixels.shape}: give uint8 (height, width, 3)"
        )
    return pixels


def read_map(picture: Picture | None, name: str) -> np.ndarray | None:
    """i32 "H W" of an array, or of the first channel of a file."""
    if picture is None:
        return None
    if isinstance(picture, (str, Path)):
        picture = read_file(picture, name)[:, :, 0]
    values = np.asarray(picture)
    if values.ndim != 2 or values.dtype.kind not in "biu":
        raise UserError(
            f"{name} is {values.dtype} {values.shape}: give integers (height, width)"
        )
    return values.astype(np.int32)


def read_file(path: str | Path, name: str) -> np.ndarray:
    """uint8 RGBA "H W 4" of a file or a data URI. UserError for anything else."""
    if isinstance(path, str) and path.startswith(URI):
        label, load = f"{path[:24]}...", lambda: from_uri(path)
    else:
        label, load = path, lambda: Path(path).expanduser().read_bytes()
    try:
        return image_lib.decode(load())
    except (OSError, ValueError) as error:
        raise UserError(f"{name} {label}: {error}") from None


def from_uri(uri: str) -> bytes:
    """The bytes of a base64 data URI. ValueError for another encoding or damage."""
    head, _, text = uri.partition(",")
    if not head.endswith(";base64"):
        raise ValueError("is no base64 data URI")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"is no base64: {error}") from None


def png(pixels: np.ndarray, **options) -> bytes:
    """The bytes of a PNG; options as `image.save_png`."""
    file = io.BytesIO()
    image_lib.save_png(file, pixels, **options)
    return file.getvalue()


def to_uri(pixels: np.ndarray) -> str:
    """Pixels uint8 "H W 3", or a map of integers 0 .. 255 "H W", as a PNG data URI.

    UserError for a map with other values, which one byte cannot hold.
    """
    values = np.asarray(pixels)
    if values.ndim == 2:
        low, high = int(values.min(initial=0)), int(values.max(initial=0))
        if low < 0 or high > 255:
            raise UserError(f"a map with values {low} .. {high} fits no grey PNG")
        values = values.astype(np.uint8)
    return f"{URI}png;base64,{base64.b64encode(png(values)).decode()}"


def box_map(box: Sequence[float], extent: tuple[int, int]) -> np.ndarray:
    """bool "H W" of (left, top, width, height) in fractions of the picture."""
    left, top, width, height = box
    rows, columns = ((np.arange(side) + 0.5) / side for side in extent)
    inside_rows = (rows >= top) & (rows < top + height)
    return inside_rows[:, None] & ((columns >= left) & (columns < left + width))


def is_box(where: Picture | Sequence) -> bool:
    """True for (left, top, width, height), False for a mask or the name of one."""
    return isinstance(where, (tuple, list))
