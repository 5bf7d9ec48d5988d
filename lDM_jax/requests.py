"""What pictures are asked for: `Request`, and what a task makes of it.

Owns the user's side of sampling: which fields a request has, which of them a task
needs, how big the result is, and the batch that the conditioner reads. Evaluates no
network. A picture may be given as pixels or as a file's name; the name is what a PNG
remembers of it.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from lDM_jax import image as image_lib
from lDM_jax.arrays import Batch, UserError

Picture = np.ndarray | str | Path
# The fields that hold arrays or the names of files.
PIXEL_FIELDS = ("image", "mask", "segmentation")


@dataclasses.dataclass(frozen=True)
class Request:
    """Everything that determines pictures, besides the weights.

    What: prompt, negative: one text for all seeds; label: a class; layout: a list of
    (label, (left, top, width, height)) in fractions; segmentation: i32 "H W" or a grey
    PNG. image: uint8 "H W 3" or a file: what a super-resolution model enlarges, an
    inpainting model completes, any other model changes by `strength` in (0, 1]. mask:
    "H W" or a file, non-zero where there is to be painted; with a model that was not
    trained to inpaint, the rest is held at every step (blended inpainting).
    seeds: non-negative integers below 2^32. size_px: (height, width), the model's own
    if None; window_px above 0 draws in overlapping windows of that side, for pictures
    larger than memory. regions: a list of (prompt, mask) with masks as above or boxes
    (left, top, width, height) in fractions; `prompt` is for what no region covers.
    regional: "attention" (each position attends to its region's text) or "latent" (one
    prediction a region, mixed by the masks). How: None takes the model's default
    (steps, guidance, sampler, spacing).
    """

    prompt: str | None = None
    negative: str = ""
    label: int | None = None
    layout: Sequence | None = None
    segmentation: Picture | None = None
    image: Picture | None = None
    mask: Picture | None = None
    strength: float = 1.0
    size_px: tuple[int, int] | None = None
    window_px: int = 0
    regions: Sequence | None = None
    regional: str = "attention"
    seeds: tuple[int, ...] = (0,)
    sampler: str | None = None
    steps: int | None = None
    spacing: str | None = None
    guidance: float | None = None
    eta: float = 0.0

    def record(self) -> dict:
        """The request as JSON: fields that are set, pixels by their file or digest."""
        values = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None or (field.name not in ALWAYS and value == field.default):
                continue
            values[field.name] = plain(value)
        return values


def plain(value):
    """A field's value as JSON; pixels by their digest, files by their name."""
    if isinstance(value, np.ndarray):
        return f"sha256:{hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value


ALWAYS = ("prompt", "seeds", "sampler", "steps", "guidance", "eta", *PIXEL_FIELDS)


class Canvas(NamedTuple):
    """The pixels of a request, and how large its result is.

    image f32 [-1, 1] "H W 3", mask f32 {0, 1} "H W 1" (1 = to be painted),
    segmentation i32 "H W"; None where the request has none.
    """

    height_px: int
    width_px: int
    image: np.ndarray | None = None
    mask: np.ndarray | None = None
    segmentation: np.ndarray | None = None


def canvas(request: Request, config: ConfigDict) -> Canvas:
    """Read the request's pixels. UserError for files and extents that do not fit."""
    task = config.task
    picture = read_pixels(request.image, "image")
    mask = read_map(request.mask, "mask")
    labels = read_map(request.segmentation, "segmentation")
    size = request.size_px or (config.data.size_px,) * 2
    if picture is not None:
        picture = image_lib.to_float(picture)
        scale = config.low_res.factor if task == "super_resolution" else 1
        size = tuple(scale * side for side in picture.shape[:2])
    elif labels is not None:
        size = labels.shape
    if request.size_px and tuple(request.size_px) != tuple(size):
        raise UserError(
            f"size_px is {tuple(request.size_px)}, but the given pixels make {size}"
        )
    if mask is not None:
        if picture is None or task == "super_resolution":
            raise UserError("a mask needs the image it belongs to, and no enlarging")
        if mask.shape != picture.shape[:2]:
            raise UserError(
                f"mask of {mask.shape} on an image of {picture.shape[:2]}: give one "
                "number a pixel"
            )
        mask = (mask > 0).astype(np.float32)[:, :, None]
    return Canvas(*map(int, size), picture, mask, labels)


def region_maps(request: Request, given: Canvas) -> np.ndarray:
    """Of the prompt and of every region: f32 {0, 1} "H W r", the prompt's first.

    The prompt's own is what no region covers.
    """
    extent = (given.height_px, given.width_px)
    maps = []
    for _, where in request.regions:
        if isinstance(where, (tuple, list)):
            found = box_map(where, extent)
        else:
            found = read_map(where, "region") > 0
        if found.shape != extent:
            raise UserError(f"region of {found.shape} on a picture of {extent}")
        maps.append(found)
    rest = ~np.any(maps, axis=0)
    return np.stack([rest, *maps], axis=-1).astype(np.float32)


def box_map(box: Sequence[float], extent: tuple[int, int]) -> np.ndarray:
    """bool "H W" of (left, top, width, height) in fractions of the picture."""
    left, top, width, height = box
    rows, columns = ((np.arange(side) + 0.5) / side for side in extent)
    inside_rows = (rows >= top) & (rows < top + height)
    return inside_rows[:, None] & ((columns >= left) & (columns < left + width))


def read_pixels(given: Picture | None, name: str) -> np.ndarray | None:
    """uint8 "H W 3" of an array or of a file, laid over white."""
    if given is None:
        return None
    if isinstance(given, (str, Path)):
        given = image_lib.over_white(read_file(given, name))
    pixels = np.asarray(given)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise UserError(
            f"{name} is {pixels.dtype} {pixels.shape}: give uint8 (height, width, 3)"
        )
    return pixels


def read_map(given: Picture | None, name: str) -> np.ndarray | None:
    """i32 "H W" of an array, or of the first channel of a file."""
    if given is None:
        return None
    if isinstance(given, (str, Path)):
        given = read_file(given, name)[:, :, 0]
    values = np.asarray(given)
    if values.ndim != 2 or values.dtype.kind not in "biu":
        raise UserError(
            f"{name} is {values.dtype} {values.shape}: give integers (height, width)"
        )
    return values.astype(np.int32)


def read_file(path: str | Path, name: str) -> np.ndarray:
    """uint8 RGBA "H W 4". UserError where there is no readable picture."""
    try:
        return image_lib.decode(Path(path).expanduser().read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{name} {path}: {error}") from None


def check(request: Request, config: ConfigDict) -> None:
    """UserError where the request lacks what its task needs, or has what it refuses."""
    task = config.task
    needed = {
        "class": ("label", "draws from classes: give a label"),
        "layout": ("layout", "draws from boxes: give a layout"),
        "semantic": ("segmentation", "draws from label maps: give a segmentation"),
        "super_resolution": ("image", "enlarges: give an image"),
        "inpaint": ("mask", "completes: give an image and a mask"),
    }
    if task == "text":
        if not request.prompt:
            raise UserError("this model draws from text: give at least one prompt")
        if not request.prompt.strip():
            raise UserError("a prompt is empty: give at least one word")
    elif request.prompt or request.negative:
        raise UserError(f"this model ({task}) takes no prompt")
    if task in needed:
        field, text = needed[task]
        if getattr(request, field) is None:
            raise UserError(f"this model {text}")
    for field in ("label", "layout", "segmentation"):
        if getattr(request, field) is not None and needed.get(task, ("",))[0] != field:
            raise UserError(f"this model ({task}) takes no {field}")
    if request.regions is not None:
        if task != "text":
            raise UserError(f"this model ({task}) takes no regions")
        if not request.regions or request.regional not in ("attention", "latent"):
            raise UserError(
                "give regions as (prompt, mask) and regional as attention or latent"
            )
    if task == "retrieval":
        raise UserError(
            "this model draws from CLIP embeddings, which a request cannot hold: drive "
            "it by Pipeline.model"
        )
    if not 0 < request.strength <= 1:
        raise UserError(f"strength is {request.strength}; give a number in (0, 1]")
    if request.strength < 1 and (request.image is None or task in OWN_IMAGE):
        raise UserError("strength needs an image that the model is to change")
    classes = config.get("num_classes", 0)
    if task == "class" and not 0 <= request.label < classes:
        raise UserError(f"label is {request.label}; valid: 0 .. {classes - 1}")


# Tasks whose image is their condition.
OWN_IMAGE = ("super_resolution", "inpaint")


def batch(
    request: Request,
    given: Canvas,
    *,
    task: str,
    tokenizer: Callable | None,
    rows: int,
    num_labels: int = 0,
) -> Batch:
    """What the conditioner reads: `rows` equal rows of the task's batch keys, numpy."""
    if task == "text":
        one = {"tokens": tokenizer([request.prompt])[0]}
    elif task == "layout":
        one = {"boxes": tokenizer([request.layout])[0]}
    elif task == "class":
        one = {"label": np.asarray(request.label, np.int32)}
    elif task == "semantic":
        top = int(given.segmentation.max(initial=0))
        if given.segmentation.min(initial=0) < 0 or top >= num_labels:
            raise UserError(
                f"the segmentation holds labels up to {top}; valid: 0 .. "
                f"{num_labels - 1}"
            )
        one = {"segmentation": given.segmentation}
    elif task == "super_resolution":
        one = {"low_res": given.image}
    elif task == "inpaint":
        one = {"image": given.image, "mask": given.mask}
    else:
        one = {"rows": np.zeros((), np.int32)}
    return {key: np.repeat(value[None], rows, axis=0) for key, value in one.items()}
