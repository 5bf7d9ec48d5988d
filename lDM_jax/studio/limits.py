"""What a stranger may ask for: bounds, and the only way in for uploads and records.

Everything that comes from a browser passes `request` (fields of a request) or one of
`decode_image`, `decode_labels`, `record` (files). Pixels are given as data URIs, never
by the name of a file: nothing that is sent makes the server read its disk. UserError,
in one line, for whatever does not pass.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from lDM_jax.core import image
from lDM_jax.core.errors import UserError
from lDM_jax.data.transforms import on_white
from lDM_jax.sampling import edits as edits_lib
from lDM_jax.sampling import pixels as pixels_lib
from lDM_jax.sampling.edits import Edit, EditedTrajectory
from lDM_jax.sampling.request import Request, from_record

MAX_STEPS = 100
MAX_SIDE_PX = 1024
MAX_UPLOAD = 16 * 2**20  # bytes of one file
MAX_PIXELS = 2**24  # of an uploaded image: 67 MB decoded
MAX_TEXT = 500  # characters of a prompt
MAX_OBJECTS = 30
MAX_REGIONS = 8
MAX_EDITS = 500


def decode_image(data: bytes, name: str = "the file") -> np.ndarray:
    """The bytes of an image file -> uint8 "H W 3", laid over white."""
    return on_white(_decoded(data, name))


def decode_labels(data: bytes, name: str = "the file") -> np.ndarray:
    """The bytes of an image file -> i32 "H W", the values of its first channel."""
    return _decoded(data, name)[:, :, 0].astype(np.int32)


def _decoded(data: bytes, name: str) -> np.ndarray:
    _check_length(data, name)
    with _refusing(name):
        return image.decode(data, max_pixels=MAX_PIXELS)


@contextlib.contextmanager
def _refusing(name: str) -> Iterator[None]:
    """A reader's error as a UserError about the file of that name."""
    try:
        yield
    except (ValueError, MemoryError, RecursionError) as error:
        raise UserError(f"{name} {error}") from None


def _check_length(data: bytes, name: str) -> None:
    if len(data) > MAX_UPLOAD:
        raise UserError(
            f"{name} has {len(data) / 2**20:.1f} MiB: at most "
            f"{MAX_UPLOAD // 2**20} are taken"
        )
    if not data:
        raise UserError(f"{name} is empty")


def fit(pixels: np.ndarray, extent: tuple[int, int]) -> np.ndarray:
    """The middle of an image in the proportions of `extent` (H, W), at that extent."""
    height, width = pixels.shape[:2]
    scale = min(height / extent[0], width / extent[1])
    h, w = (max(1, round(side * scale)) for side in extent)
    top, left = (height - h) // 2, (width - w) // 2
    part = np.ascontiguousarray(pixels[top : top + h, left : left + w])
    return image.resample(part, *extent)


def record(data: bytes, name: str = "the file") -> dict:
    """The record in a PNG or a JSON file, as it stands there."""
    _check_length(data, name)
    if data.startswith(b"\x89PNG"):
        with _refusing(name):
            text = image.stored_text(data)
        if text is None:
            raise UserError(f"{name} is a picture without a request inside")
    else:
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(
                f"{name} is neither a PNG nor JSON: give a picture or a preset made "
                "here or by sample.py"
            ) from None
    with _refusing(f"{name} holds no JSON:"):
        stored = json.loads(text)
    if not isinstance(stored, dict):
        raise UserError(f"{name} holds no request")
    return stored


def checked_trajectory(stored: dict) -> EditedTrajectory:
    """The request and edits of a record: of one seed, with pixels, within bounds."""
    edited = edits_lib.from_record(stored)
    rest = {name: v for name, v in stored.items() if name not in edits_lib.FIELDS}
    if len(edited.edits) > MAX_EDITS:
        raise UserError(
            f"the file holds {len(edited.edits)} edits: at most {MAX_EDITS}"
        )
    edits = []
    for step, changes in edited.edits:
        checked = request(changes)
        edits.append(Edit(step, {name: getattr(checked, name) for name in changes}))
    return dataclasses.replace(edited, request=request(rest), edits=tuple(edits))


def request(fields: dict) -> Request:
    """The request of fields by name, as they come from JSON; arrays may stand too.

    Of several seeds the first is taken: the page draws one picture at a time.
    """
    from_record({name: None for name in fields})  # refuses unknown names
    stated = {name: value for name, value in fields.items() if value is not None}
    return Request(**{name: CHECKS[name](v, name) for name, v in stated.items()})


def _fail(name: str, value: object, valid: str) -> UserError:
    text = repr(value)
    text = text if len(text) <= 40 else text[:37] + "..."
    return UserError(f"{name} is {text}: give {valid}")


def _number(value, name: str, low: float, high: float) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        raise _fail(name, value, f"a number from {low:g} to {high:g}")
    return float(value)


def _count(value, name: str, low: int, high: int) -> int:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high or value != int(value):
        raise _fail(name, value, f"a whole number from {low} to {high}")
    return int(value)


def _text(value, name: str, most: int = MAX_TEXT) -> str:
    if not isinstance(value, str) or len(value) > most:
        raise _fail(name, value, f"a text of at most {most} characters")
    return value


def _label(value, name: str) -> int | str:
    if isinstance(value, str):
        return _text(value, name, 100)
    return _count(value, name, 0, 10**6)


def _seeds(value, name: str) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or not value:
        raise _fail(name, value, "a list of seeds")
    return (_count(value[0], "seed", 0, 2**32 - 1),)


def _numbers(value, name: str, count: int, check: Callable) -> tuple:
    if not isinstance(value, (list, tuple)) or len(value) != count:
        raise _fail(name, value, f"{count} numbers")
    return tuple(check(part, name) for part in value)


def pace(value) -> float:
    """Seconds that a step takes at least."""
    return _number(value, "the pace", 0, 10)


_part = partial(_number, low=0, high=1)
_side = partial(_count, low=8, high=MAX_SIDE_PX)


def _uri(value, name: str, read: Callable) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    if not isinstance(value, str) or not value.startswith(pixels_lib.URI):
        raise _fail(name, value, "the pixels themselves as a data URI, no file name")
    if len(value) > 2 * MAX_UPLOAD:
        raise UserError(f"{name} is larger than {MAX_UPLOAD // 2**20} MiB")
    with _refusing(name):
        data = pixels_lib.from_uri(value)
    pixels = read(data, name)
    if max(pixels.shape[:2]) > MAX_SIDE_PX:
        raise UserError(
            f"{name} is {pixels.shape[1]} x {pixels.shape[0]}: a side has at most "
            f"{MAX_SIDE_PX} pixels"
        )
    return pixels


_pixels = partial(_uri, read=decode_image)
_map = partial(_uri, read=decode_labels)


def _layout(value, name: str) -> list:
    if not isinstance(value, (list, tuple)) or len(value) > MAX_OBJECTS:
        raise _fail(name, value, f"at most {MAX_OBJECTS} boxes with labels")
    boxes = []
    for entry in value:
        if not isinstance(entry, (list, tuple)) or len(entry) != 2:
            raise _fail(name, entry, "(label, (left, top, width, height))")
        label, box = entry
        boxes.append((_count(label, "a label", 0, 10**6), _box(box)))
    return boxes


def _box(value) -> tuple:
    return _numbers(value, "a box", 4, _part)


def _regions(value, name: str) -> list:
    if not isinstance(value, (list, tuple)) or len(value) > MAX_REGIONS:
        raise _fail(name, value, f"at most {MAX_REGIONS} regions")
    regions = []
    for entry in value:
        if not isinstance(entry, (list, tuple)) or len(entry) not in (2, 3):
            raise _fail(name, entry, "(prompt, mask or box, weight)")
        prompt, where, *weight = entry
        boxed = isinstance(where, (list, tuple))
        place = _box(where) if boxed else _map(where, "a region")
        weight = [_number(part, "a region's weight", 0, 1) for part in weight]
        regions.append((_text(prompt, "a region's prompt"), place, *weight))
    return regions


CHECKS = {
    "prompt": _text,
    "negative": _text,
    "source": _text,
    "label": _label,
    "layout": _layout,
    "segmentation": _map,
    "image": _pixels,
    "mask": _map,
    "target": _pixels,
    "strength": _part,
    "size_px": partial(_numbers, count=2, check=_side),
    "window_px": partial(_count, low=0, high=MAX_SIDE_PX),
    "regions": _regions,
    "regional": partial(_text, most=20),
    "target_scale": partial(_number, low=0, high=1000),
    "target_loss": partial(_text, most=20),
    "classifier_scale": partial(_number, low=0, high=1000),
    "seeds": _seeds,
    "sampler": partial(_text, most=30),
    "steps": partial(_count, low=1, high=MAX_STEPS),
    "spacing": partial(_text, most=30),
    "guidance": partial(_number, low=-50, high=50),
    "eta": _part,
    "rescale": _part,
    "interval": partial(_numbers, count=2, check=_part),
    "autoguidance": partial(_number, low=-50, high=50),
}
