"""Metadata of an image: one JSON object with the same fields in every source.

The fields of a line of `metadata.jsonl` (the Hugging Face image-folder convention), of
the header of a record, of a caption file. All are optional:

    file_name         the image, where the source needs a name
    caption or text   a text, or a list of texts of which an epoch takes one
    label             a class: a whole number, or a name
    boxes, labels     (left, top, width, height) in fractions of the image, and the
                      class of each
    objects           {"bbox": (left, top, width, height) in pixels, "categories": ...}
    segmentation      the file of a label map: gray, or indices of a palette
    mask              the file of a mask: not 0 where to paint

Names of classes count from 0 in sorted order; numbers are taken as they are. Read
`check`, then `build`.
"""

import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lDM_jax.core import image
from lDM_jax.core.errors import BadExample
from lDM_jax.data.transforms import Example

CAPTIONS = ("caption", "text")
MAPS = ("segmentation", "mask")
SLACK = 1e-3  # of a fraction: boxes are often rounded outwards


class Names:
    """The classes of images and of boxes that have names, each sorted."""

    def __init__(self, classes: Sequence[str] = (), categories: Sequence[str] = ()):
        self.classes, self.categories = sorted(classes), sorted(categories)
        self._class = {name: i for i, name in enumerate(self.classes)}
        self._category = {name: i for i, name in enumerate(self.categories)}

    def label(self, value: int | str) -> int:
        """The number of an image's class."""
        return self._class[value] if isinstance(value, str) else int(value)

    def category(self, value: int | str) -> int:
        """The number of a box's class."""
        return self._category[value] if isinstance(value, str) else int(value)


class NamedLabels:
    """The names and the number of labels, of a source that has read its metadata."""

    _names: Names
    _label_count: int  # of classes that are numbers, else 0

    @property
    def classes(self) -> list[str]:
        """The names of the labels: of all splits, sorted; none without names."""
        return list(self._names.classes)

    @property
    def categories(self) -> list[str]:
        """The names of the boxes' labels: of all splits, sorted; none without names."""
        return list(self._names.categories)

    @property
    def num_classes(self) -> int:
        """How many classes the labels of all splits take: names, or the largest + 1."""
        return len(self._names.classes) or self._label_count


def parse(line: str | bytes):
    """JSON text -> fields, without those that are null. ValueError if not JSON."""
    fields = json.loads(line)
    if isinstance(fields, dict):
        fields = {key: value for key, value in fields.items() if value is not None}
    return fields


def captions(fields: Mapping) -> tuple[str, ...] | None:
    """The texts of an image without needless white space; None without any."""
    for key in CAPTIONS:
        if fields.get(key) is not None:
            value = fields[key]
            texts = [value] if isinstance(value, str) else value
            return tuple(" ".join(text.split()) for text in texts) or ("",)
    return None


def labeled_boxes(fields: Mapping) -> tuple[list, list, bool] | None:
    """(boxes, classes, True if the boxes are in pixels); None without boxes."""
    if "boxes" in fields:
        return fields["boxes"], fields.get("labels", []), False
    if "objects" in fields:
        objects = fields["objects"]
        classes = objects.get("categories", objects.get("category", []))
        return objects.get("bbox", []), classes, True
    return None


def check(fields: Mapping) -> str | None:
    """What is wrong with the fields, worded to follow their place; None if valid."""
    if not isinstance(fields, Mapping):
        return "is not a JSON object"
    for key in CAPTIONS:
        value = fields.get(key)
        texts = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(text, str) for text in texts):
            return f"has a {key} that is neither a text nor a list of texts"
    if not _is_class(fields.get("label", 0)):
        return f"has the label {fields['label']!r}: give a number from 0, or a name"
    for key in MAPS:
        if not isinstance(fields.get(key, ""), str):
            return f"has a {key} that is not a file name"
    try:
        return _check_boxes(labeled_boxes(fields))
    except (AttributeError, TypeError, ValueError):
        return "has boxes that are not lists of four numbers"


def _check_boxes(labeled: tuple[list, list, bool] | None) -> str | None:
    if labeled is None:
        return None
    rows, classes, in_pixels = labeled
    if len(rows) != len(classes):
        return f"has {len(rows)} boxes and {len(classes)} classes for them"
    if not all(map(_is_class, classes)):
        return "has a box of a class that is neither a number from 0 nor a name"
    boxes = np.asarray(rows, np.float64).reshape(len(rows), 4)
    if not np.isfinite(boxes).all() or (boxes[:, 2:] < 0).any():
        return "has a box without an extent"
    if not in_pixels and (boxes.min(initial=0) < -SLACK or boxes.max(initial=0) > 2):
        return (
            'has boxes beyond the image: "boxes" are fractions of it, pixels go '
            'under "objects": {"bbox": ..., "categories": ...}'
        )
    return None


def _is_class(value) -> bool:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, str) or (is_integer and value >= 0)


def build(
    data: bytes,
    fields: Mapping,
    *,
    names: Names,
    read: Callable[[str], bytes],
    where: str,
    min_px: int = 1,
    keys: Sequence[str],
) -> Example:
    """The example of an image's file and its fields.

    {"image": uint8 "H W 3" or, with transparency, "H W 4"}, and what `keys` names of
    "caption" (a str; the first of several, all of which are the tuple "captions"),
    "label" (i32 ""), "layout" (see `box_tokens`), "segmentation" (i32 "H W") and "mask"
    (f32 {0, 1} "H W 1").

    read: the bytes of a file that the fields name. Raises BadExample, beginning with
    `where`, for fields and files that cannot be read, an image whose shorter side has
    less than min_px, and a key that the fields do not have; a caption is "" instead.
    """
    problem = check(fields)
    if problem:
        raise BadExample(f"{where} {problem}")
    example = {"image": _decode(data, where, image.decode, alpha=False)}
    height, width = example["image"].shape[:2]
    if min(height, width) < min_px:
        raise BadExample(
            f"{where} has {width} x {height} pixels; config.data.min_px is {min_px}"
        )
    if "caption" in keys:
        texts = captions(fields) or ("",)
        example["caption"] = texts[0]
        if len(texts) > 1:
            example["captions"] = texts
    missing = [key for key in ("label", *MAPS) if key in keys and key not in fields]
    boxes = labeled_boxes(fields)
    if "layout" in keys and boxes is None:
        missing.append("boxes")
    if missing:
        raise BadExample(f"{where} has no {missing[0]}")
    if "label" in keys:
        example["label"] = np.int32(names.label(fields["label"]))
    if "layout" in keys:
        example["layout"] = layout(*boxes, size=(height, width), names=names)
    for key in MAPS:
        if key in keys:
            example[key] = _decode(read(fields[key]), fields[key], image.decode_map)
    if "mask" in keys:
        example["mask"] = (example["mask"] > 0).astype(np.float32)[:, :, None]
    return example


def layout(
    boxes: Sequence,
    classes: Sequence,
    in_pixels: bool,
    *,
    size: tuple[int, int],
    names: Names,
) -> list:
    """[(label, (left, top, width, height))] in fractions, cut at the image's edge."""
    edges = np.asarray(boxes, np.float64).reshape(len(boxes), 4)
    if in_pixels:
        edges = edges / [size[1], size[0], size[1], size[0]]
    first = edges[:, :2].clip(0.0, 1.0)
    last = (edges[:, :2] + edges[:, 2:]).clip(0.0, 1.0)
    sides = np.concatenate([first, last - first], axis=1).tolist()
    labels = map(names.category, classes)
    return [(label, tuple(box)) for label, box in zip(labels, sides, strict=True)]


def _decode(data: bytes, where: str, decode: Callable, **options) -> np.ndarray:
    try:
        return decode(data, **options)
    except ValueError as error:
        raise BadExample(f"{where} {error}") from None
