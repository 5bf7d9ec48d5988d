"""What pictures are asked for: `Request`, its checks and its pixels.

Owns the user's side of sampling: which fields a request has, which of them go together,
how big the result is; what a task makes of them is its own (`tasks`). Evaluates no
network. A picture may be given as pixels or as a file's name (`pixels`); what a PNG
remembers of it is the name, or the pixels themselves.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lDM_jax.core import image as image_lib
from lDM_jax.core.errors import UserError
from lDM_jax.sampling import pixels as pixels_lib
from lDM_jax.sampling.pixels import Picture, is_box, read_map, read_pixels
from lDM_jax.tasks.class_label import listed
from lDM_jax.tasks.registry import TASKS
from lDM_jax.tasks.task import Settings, Task

# The fields that hold arrays or the names of files, and how they are read.
PIXEL_FIELDS = {
    "image": read_pixels,
    "mask": read_map,
    "segmentation": read_map,
    "target": read_pixels,
}
FILE_FIELDS = {*PIXEL_FIELDS, "regions"}
TARGET_LOSSES = ("l2", "lpips")
TUPLES = ("seeds", "size_px", "interval")
CHANGES = {"", "image", "mask"}  # fields with which any model changes a picture
# A record names these also where they have their defaults.
ALWAYS = ("prompt", "seeds", "sampler", "steps", "guidance", "eta", *PIXEL_FIELDS)


@dataclasses.dataclass(frozen=True)
class Request:
    """Everything that determines pictures, besides the weights.

    What: prompt, negative: one text for all seeds; label: a class, by its number or, in
    a request that is not resolved yet, by its name; layout: a list of (label, likewise,
    (left, top, width, height)) in fractions; segmentation: i32 "H W" or a grey PNG.
    image: uint8 "H W 3" or a file: what a super-resolution model enlarges, an
    inpainting model completes, any other model changes by `strength` in (0, 1]. mask:
    "H W" or a file, non-zero where there is to be painted; with a model that was not
    trained to inpaint, the rest is held at every step (blended inpainting).
    seeds: non-negative integers below 2^32. size_px: (height, width), the model's own
    if None; window_px above 0 draws in overlapping windows of that side, for pictures
    larger than memory. regions: a list of (prompt, mask) with masks as above or boxes
    (left, top, width, height) in fractions; `prompt` is for what no region covers. A
    third entry, a weight w in [0, 1], leaves 1 - w of the region to `prompt`.
    regional: "attention" (each position attends to its region's text) or "latent" (one
    prediction a region, mixed by the masks). source: with an image, the noise that
    leads to it under this prompt is found (DDIM inversion) and drawn from; "" for none.
    target: a picture, usually small, that the result is pulled to with target_scale,
    by `target_loss` "l2" or "lpips" at the target's size (Rombach et al. 2022, section
    C). classifier_scale: how strongly the pipeline's classifier pulls to `label`.
    How: None takes the model's default (steps, guidance, sampler, spacing). rescale,
    interval (low, high, in fractions of the process: 0 clean, 1 noise) and
    autoguidance (the scale of the pipeline's guide) as in `lDM_jax.diffusion.guidance`.
    """

    prompt: str | None = None
    negative: str = ""
    label: int | str | None = None
    layout: Sequence | None = None
    segmentation: Picture | None = None
    image: Picture | None = None
    mask: Picture | None = None
    strength: float = 1.0
    size_px: tuple[int, int] | None = None
    window_px: int = 0
    regions: Sequence | None = None
    regional: str = "attention"
    source: str | None = None
    target: Picture | None = None
    target_scale: float = 1.0
    target_loss: str = "l2"
    classifier_scale: float = 0.0
    seeds: tuple[int, ...] = (0,)
    sampler: str | None = None
    steps: int | None = None
    spacing: str | None = None
    guidance: float | None = None
    eta: float = 0.0
    rescale: float = 0.0
    interval: tuple[float, float] | None = None
    autoguidance: float = 1.0

    def record(self) -> dict:
        """The request as JSON: fields that are set; arrays as PNG data URIs."""
        values = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None or (field.name not in ALWAYS and value == field.default):
                continue
            values[field.name] = plain(value)
        return values

    def embedded(self) -> "Request":
        """The same request with the pixels of its files instead of their names.

        Its record is a preset that needs no other file. UserError for unreadable ones.
        """
        changes = {
            name: read(getattr(self, name), name) for name, read in PIXEL_FIELDS.items()
        }
        if self.regions is not None:
            changes["regions"] = [
                (prompt, where if is_box(where) else read_map(where, "region"), *weight)
                for prompt, where, *weight in self.regions
            ]
        return dataclasses.replace(self, **changes)


def plain(value):
    """A field's value as JSON; arrays as data URIs, files by their name."""
    if isinstance(value, np.ndarray):
        return pixels_lib.to_uri(value)
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def from_record(stored: dict) -> Request:
    """The request of a record. UserError for what is no field of a request."""
    valid = {field.name for field in dataclasses.fields(Request)}
    unknown = sorted(stored.keys() - valid)
    if unknown:
        raise UserError(
            f"a request has no {', '.join(unknown)}; valid: {', '.join(sorted(valid))}"
        )
    tuples = {n: tuple(stored[n]) for n in TUPLES if isinstance(stored.get(n), list)}
    return Request(**{**stored, **tuples})


def changed_fields(old: Request, new: Request) -> set[str]:
    """The names of the fields in which two requests differ; pixels are compared."""
    names = [field.name for field in dataclasses.fields(Request)]
    return {name for name in names if not same(getattr(old, name), getattr(new, name))}


def same(a: object, b: object) -> bool:
    """Equality of fields of requests, arrays and lists of arrays included."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.array_equal(a, b)
    return a == b


class RequestPixels(NamedTuple):
    """The pixels of a request, and how large its result is.

    image f32 [-1, 1] "H W 3", mask f32 {0, 1} "H W 1" (1 = to be painted),
    segmentation i32 "H W"; None where the request has none.
    """

    height_px: int
    width_px: int
    image: np.ndarray | None = None
    mask: np.ndarray | None = None
    segmentation: np.ndarray | None = None


def canvas(request: Request, task: Task, settings: Settings) -> RequestPixels:
    """Read the request's pixels. UserError for files and extents that do not fit."""
    picture = read_pixels(request.image, "image")
    mask = read_map(request.mask, "mask")
    labels = read_map(request.segmentation, "segmentation")
    size = request.size_px or (settings.size_px,) * 2
    if picture is not None:
        picture = image_lib.to_float(picture)
        scale = task.enlargement(settings) if task.enlargement else 1
        size = tuple(scale * side for side in picture.shape[:2])
    elif labels is not None:
        size = labels.shape
    if request.size_px and tuple(request.size_px) != tuple(size):
        raise UserError(
            f"size_px is {tuple(request.size_px)}, but the given pixels make {size}"
        )
    if mask is not None:
        if picture is None or task.enlargement:
            raise UserError("a mask needs the image it belongs to, and no enlarging")
        if mask.shape != picture.shape[:2]:
            raise UserError(
                f"mask of {mask.shape} on an image of {picture.shape[:2]}: give one "
                "number a pixel"
            )
        mask = (mask > 0).astype(np.float32)[:, :, None]
    return RequestPixels(*map(int, size), picture, mask, labels)


def region_maps(request: Request, given: RequestPixels) -> np.ndarray:
    """Of the prompt and of every region: f32 {0, 1} "H W r", the prompt's first.

    The prompt's own is what no region covers.
    """
    extent = (given.height_px, given.width_px)
    maps = []
    for _, where, *_ in request.regions:
        if is_box(where):
            region = pixels_lib.box_map(where, extent)
        else:
            region = read_map(where, "region") > 0
        if region.shape != extent:
            raise UserError(f"region of {region.shape} on a picture of {extent}")
        maps.append(region)
    rest = ~np.any(maps, axis=0)
    return np.stack([rest, *maps], axis=-1).astype(np.float32)


def region_weights(request: Request) -> np.ndarray:
    """The weight of each region, f32 "r". UserError outside 0 .. 1."""
    weights = [(weight or [1.0])[0] for _, _, *weight in request.regions]
    if not all(0 <= weight <= 1 for weight in weights):
        raise UserError(f"the regions weigh {weights}: give numbers from 0 to 1")
    return np.asarray(weights, np.float32)


def check(request: Request, task: Task, settings: Settings) -> None:
    """UserError where the request lacks what its task needs, or has what it refuses."""
    if task.field and is_empty(getattr(request, task.field)):
        raise UserError(f"this model {task.ask}")
    taken = {task.field, "label" if request.classifier_scale else ""}
    for field in sorted({one.field for one in TASKS.values()} - CHANGES - taken):
        if not is_empty(getattr(request, field)):
            raise UserError(f"this model ({task.name}) takes no {field}")
    if task.field != "prompt" and request.negative:
        raise UserError(f"this model ({task.name}) takes no prompt")
    if request.regions is not None:
        if task.field != "prompt":
            raise UserError(f"this model ({task.name}) takes no regions")
        if not request.regions or request.regional not in ("attention", "latent"):
            raise UserError(
                "give regions as (prompt, mask) and regional as attention or latent"
            )
    if not 0 < request.strength <= 1:
        raise UserError(f"strength is {request.strength}; give a number in (0, 1]")
    if request.strength < 1 and (request.image is None or task.own_image):
        raise UserError("strength needs an image that the model is to change")
    check_guidance(request)
    if request.source is not None:
        if request.image is None or request.mask is not None or task.own_image:
            raise UserError("source needs an image to invert, and no mask")
        if request.strength < 1 or request.eta:
            raise UserError("source draws from the image's noise: strength 1, eta 0")
    task.check(request, settings)


def is_empty(value) -> bool:
    """True for a field that is not set, and for a text without a letter."""
    return value is None or (isinstance(value, str) and not value)


def label_number(label: int | str | None, names: Sequence[str]) -> int | None:
    """The number of a class given by its number or its name, of `names`.

    A text that is both is a name. UserError for a text that is neither.
    """
    if not isinstance(label, str):
        return label
    if label in names:
        return list(names).index(label)
    try:
        return int(label)
    except ValueError:
        known = listed(names) or "; this model's classes have no names: give a number"
        raise UserError(f"label is {label!r}{known}") from None


def numbered(layout: Sequence | None, names: Sequence[str]) -> list | None:
    """A layout whose labels are numbers, as `label_number` has them."""
    if layout is None:
        return None
    return [(label_number(label, names), box) for label, box in layout]


def check_guidance(request: Request) -> None:
    """UserError for guidance that cannot be meant."""
    if not 0 <= request.rescale <= 1:
        raise UserError(f"rescale is {request.rescale}; valid: 0 to 1")
    if request.interval is not None:
        low, high = request.interval
        if not 0 <= low < high <= 1:
            raise UserError(
                f"interval is {request.interval}; give (low, high) between 0 (clean) "
                "and 1 (noise)"
            )
    if request.target_loss not in TARGET_LOSSES:
        valid = ", ".join(TARGET_LOSSES)
        raise UserError(f"target_loss is {request.target_loss!r}; valid: {valid}")
    if request.classifier_scale and request.label is None:
        raise UserError("classifier_scale needs the label to pull to")
    if request.autoguidance != 1 and request.guidance not in (None, 1):
        raise UserError(
            f"autoguidance ({request.autoguidance}) takes the place of guidance "
            f"({request.guidance}): leave one of them at 1"
        )
