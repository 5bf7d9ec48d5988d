"""The only conversion between uint8 pixels and [-1, 1]; resampling, grids, files.

Owns PIL, for reading and writing, and the request that every written PNG carries in its
text chunk `lDM_jax`, from which the same picture can be made again. Imports no jax.
"""

import io
import json
import math
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

REQUEST_KEY = "lDM_jax"
READABLE = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}
MAX_PIXELS = 2**27  # 134 megapixels, 0.5 GB decoded; larger than any camera's picture


def to_float(pixels: np.ndarray) -> np.ndarray:
    """uint8 [0, 255] -> f32 [-1, 1]: x / 127.5 - 1 (the original's scaling)."""
    return np.asarray(pixels, np.float32) / 127.5 - 1.0


def to_uint8(x: np.ndarray) -> np.ndarray:
    """f32 [-1, 1] -> uint8: clip((x + 1) * 127.5, 0, 255), rounded to nearest."""
    x = np.asarray(x, np.float32)
    return np.clip(np.rint((x + 1.0) * 127.5), 0, 255).astype(np.uint8)


def decode(data: bytes) -> np.ndarray:
    """The bytes of an image file -> uint8 "H W 4" (RGBA), upright, its first frame.

    CMYK, palettes and grey become RGBA, 16 bits become the nearest of 8, and the EXIF
    orientation is applied. Raises ValueError, in words that follow the name of the
    file, for what is damaged, cut short, of another format than `READABLE`, or of more
    than MAX_PIXELS; that is seen in the header, before any pixel is decoded.
    """
    try:
        with Image.open(io.BytesIO(data), formats=READABLE) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width} x {height} exceeds {MAX_PIXELS} pixels")
            upright = ImageOps.exif_transpose(picture)
            if upright.mode.startswith("I"):  # PIL's own conversion clips at 255
                grey = np.asarray(upright).astype(np.int64).clip(0, 65535)
                upright = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
            return np.asarray(upright.convert("RGBA"))
    except UnidentifiedImageError:
        raise ValueError(f"is no image of {', '.join(READABLE)}") from None
    except Exception as error:  # PIL's readers raise almost anything on damaged files
        raise ValueError(f"cannot be decoded: {error}") from None


def over_white(pixels: np.ndarray) -> np.ndarray:
    """uint8 RGBA "H W 4" -> uint8 "H W 3" on a white ground."""
    alpha = pixels[:, :, 3:].astype(np.float32) / 255
    mixed = alpha * pixels[:, :, :3] + (1 - alpha) * 255
    return np.rint(mixed).astype(np.uint8)


def crop_square(pixels: np.ndarray) -> np.ndarray:
    """uint8 "H W c" -> its central "S S c", S = min(H, W); a view."""
    height, width, _ = pixels.shape
    size = min(height, width)
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[top : top + size, left : left + size]


def resize(pixels: np.ndarray, size_px: int) -> np.ndarray:
    """uint8 "H W c" -> uint8 "size_px size_px c", antialiased bicubic as PIL's."""
    return resample(pixels, size_px, size_px)


def resample(
    pixels: np.ndarray, height: int, width: int, *, method: str = "bicubic"
) -> np.ndarray:
    """uint8 "H W c" -> uint8 "height width c" by one of PIL's RESAMPLING methods.

    All but "nearest" are antialiased; RGBA is weighted by its alpha. Raises KeyError
    for another method.
    """
    picture = Image.fromarray(pixels)
    return np.asarray(picture.resize((width, height), RESAMPLING[method]))


def jpeg(pixels: np.ndarray, *, quality: int) -> np.ndarray:
    """uint8 "H W 3" -> the same after JPEG of that quality (1 to 95), colour at half.

    Colour at half the extent (4:2:0) is what libjpeg does unless told otherwise.
    """
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    with Image.open(file, formats=("JPEG",)) as picture:
        return np.asarray(picture)


def grid(images: np.ndarray, *, columns: int | None = None) -> np.ndarray:
    """uint8 "n H W 3" -> one uint8 picture, row-major, with 2 px of white between."""
    images = np.asarray(images)
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    gap = 2
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, channels)
    sheet = np.full(shape, 255, np.uint8)
    for index, picture in enumerate(images):
        top = (index // columns) * (height + gap)
        left = (index % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def write_png(
    path: str | os.PathLike, pixels: np.ndarray, *, request: dict | None = None
) -> None:
    """Write uint8 "H W 3" atomically; `request` goes into the file as JSON text.

    Raises OSError when the folder is missing, not writable or the disk is full; then
    no half-written file is left.
    """
    path = Path(path)
    info = PngImagePlugin.PngInfo()
    if request is not None:
        info.add_text(REQUEST_KEY, json.dumps(request, sort_keys=True))
    partial = path.with_name(f".{path.name}.partial")
    try:
        Image.fromarray(pixels).save(partial, format="PNG", pnginfo=info)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_request(path: str | os.PathLike) -> dict | None:
    """The request that `write_png` stored in the file, or None."""
    with Image.open(path) as picture:
        text = getattr(picture, "text", {}).get(REQUEST_KEY)
    return None if text is None else json.loads(text)
