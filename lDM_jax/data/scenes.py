"""Scenes of several emoji, with boxes and label maps: `config.data.source = "scenes"`.

What layout-to-image and semantic synthesis learn from without a download. A layout is a
list of (label, (left, top, width, height)), in fractions of the image, as
`box_tokens` reads it. Read `SceneSource`, then the two transforms of its examples.
"""

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
from numpy.random import Generator

from lDM_jax.core import image
from lDM_jax.core.errors import UserError
from lDM_jax.data.sources import SPLITS, EmojiSource
from lDM_jax.data.transforms import check_option

LABELS = ("groups", "subgroups")
BACKGROUNDS = ("light", "white")
DARKEST = 208  # of a light background's channels
FULL_PX = 136  # the font's images are not larger
SIZES = (0.25, 0.55)  # longest side of an object, as a share of the image's
MAX_IOU = 0.05
MAX_OBJECTS = 6
PLACES = 30  # positions tried for an object before the whole scene starts over


class SceneSource:
    """`num_scenes` images, each of 2 to 6 different emoji of a split.

    source[i] -> {"image": uint8 "S S 4" RGBA, opaque, "caption": str, "layout": list,
    "segmentation": i32 "S S"}. The caption joins the names of the emoji with ", ", the
    layout has their labels and boxes, and the segmentation is label + 1 where an emoji
    covers more than half of a pixel, 0 elsewhere. All three go from the largest
    emoji (by its longest side) to the smallest, and so are they drawn: what is smaller
    lies in front. The i-th scene depends on (seed, split, i) and the options alone, not
    on `num_scenes`.

    An emoji's group is drawn first, all groups alike, then the emoji in its group.
    Boxes are tight around the visible pixels; their longest side is 25 to 55 % of the
    image's, to half a pixel, and their IoU with each other at most 0.05. In full
    scenes emoji are smaller: sizes are drawn again until they fit.

    split: "train", "validation" or "test", of the emoji.
    labels: "groups" (9) or "subgroups" (99); `names` has their names.
    background: "light", a color whose channels are uniform in [208, 255], or "white".
    path: another file of emoji.

    The emoji are kept as they are decoded, 74 kB each (train: 243 MB at most).
    On one core at 64 px: 2 ms a scene, of which the emoji cover a third (`taskset -c 0
    python -m benchmarks.transforms --repeats 60`).
    """

    def __init__(
        self,
        *,
        split: str = "train",
        size_px: int = 64,
        num_scenes: int = 20_000,
        seed: int = 0,
        min_objects: int = 2,
        max_objects: int = MAX_OBJECTS,
        labels: str = "groups",
        background: str = "light",
        path: str | Path | None = None,
    ):
        check_option("labels", labels, LABELS)
        check_option("background", background, BACKGROUNDS)
        if size_px < 16:
            raise UserError(f"size_px is {size_px}; a scene needs at least 16")
        if num_scenes < 1:
            raise UserError(f"num_scenes is {num_scenes}; it must be at least 1")
        if seed < 0:
            raise UserError(f"seed is {seed}; it must be at least 0")
        if not 1 <= min_objects <= max_objects <= MAX_OBJECTS:
            raise UserError(
                f"scenes of {min_objects} to {max_objects} objects: give 1 to "
                f"{MAX_OBJECTS}, the smaller number first"
            )
        self._emoji = EmojiSource(split=split, size_px=FULL_PX, path=path)
        self._options = dict(split=split, size_px=size_px, num_scenes=num_scenes)
        self._options |= dict(
            seed=seed, labels=labels, background=background, path=path
        )
        self._options |= dict(min_objects=min_objects, max_objects=max_objects)
        self.split, self.size_px, self.seed = split, size_px, seed
        self.background, self._num_scenes = background, num_scenes
        self._counts = min_objects, max_objects
        groups, by_group = self._emoji.group_labels, labels == "groups"
        self._members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
        self._captions = self._emoji.captions
        self._labels = groups if by_group else self._emoji.labels
        self._names = self._emoji.groups if by_group else self._emoji.subgroups
        if sum(len(members) for members in self._members) < max_objects:
            raise UserError(f"{self._emoji.path} has too few emoji for a scene")

    def __len__(self) -> int:
        return self._num_scenes

    def __getitem__(self, i: int) -> dict:
        rng = self._rng(i)
        indices = self._choose(rng)
        glyphs = [trim(self._emoji[k]["image"]) for k in indices]
        boxes = place_boxes([p.shape[:2] for p in glyphs], self.size_px, rng)
        darkest = DARKEST if self.background == "light" else 255
        scene = np.full((self.size_px, self.size_px, 4), 255, np.uint8)
        scene[:, :, :3] = rng.integers(darkest, 255, 3, np.uint8, endpoint=True)
        segmentation = np.zeros((self.size_px, self.size_px), np.int32)
        for k, glyph, (left, top, width, height) in zip(
            indices, glyphs, boxes.tolist(), strict=True
        ):
            window = slice(top, top + height), slice(left, left + width)
            emoji = image.resample(glyph, height, width)
            alpha = emoji[:, :, 3:] / 255.0
            over = alpha * emoji[:, :, :3] + (1 - alpha) * scene[*window, :3]
            scene[*window, :3] = np.rint(over)
            segmentation[window][alpha[:, :, 0] > 0.5] = self._labels[k] + 1
        labels = self._labels[indices].tolist()
        fractions = map(tuple, (boxes / self.size_px).tolist())
        return {
            "image": scene,
            "caption": self._caption(indices),
            "layout": list(zip(labels, fractions, strict=True)),
            "segmentation": segmentation,
        }

    def _rng(self, i: int) -> Generator:
        if not -self._num_scenes <= i < self._num_scenes:
            raise IndexError(f"scene {i} of {self._num_scenes}")
        i %= self._num_scenes
        return np.random.default_rng((self.seed, SPLITS.index(self.split), i))

    def _choose(self, rng: Generator) -> list[int]:
        """Indices of different emoji, the first to become the largest."""
        indices: list[int] = []
        count = rng.integers(*self._counts, endpoint=True)
        while len(indices) < count:
            members = self._members[rng.integers(len(self._members))]
            index = int(members[rng.integers(len(members))])
            if index not in indices:
                indices.append(index)
        return indices

    def _caption(self, indices: list[int]) -> str:
        return ", ".join(self._captions[k] for k in indices)

    @property
    def categories(self) -> list[str]:
        """The names of the labels, sorted: groups or subgroups of all splits."""
        return list(self._names)

    @property
    def captions(self) -> list[str]:
        """The caption of every scene, in order; no image is drawn for it."""
        scenes = range(self._num_scenes)
        return [self._caption(self._choose(self._rng(i))) for i in scenes]

    @property
    def fingerprint(self) -> str:
        """Hash of the emoji and of all options, in hexadecimal."""
        options = {key: value for key, value in self._options.items() if key != "path"}
        text = f"scenes {sorted(options.items())} of {self._emoji.fingerprint}"
        return hashlib.sha256(text.encode()).hexdigest()

    def __reduce__(self):
        return partial(SceneSource, **self._options), ()


def trim(pixels: np.ndarray) -> np.ndarray:
    """uint8 "H W 4" -> the smallest part with all that is more than half opaque."""
    rows, columns = np.nonzero(pixels[:, :, 3] > 127)
    return pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def place_boxes(
    shapes: list[tuple[int, int]], size_px: int, rng: Generator
) -> np.ndarray:
    """Boxes i64 "n 4" (left, top, width, height) in pixels, the largest first.

    shapes: (height, width) of every image; its proportions are kept. Sizes and
    positions are drawn from uniform distributions until no IoU exceeds MAX_IOU.
    """
    shapes = np.array(shapes)
    proportions = shapes / shapes.max(axis=1, keepdims=True)
    while True:
        longest = size_px * np.sort(rng.uniform(*SIZES, len(shapes)))[::-1]
        extents = np.maximum(1, np.rint(proportions * longest[:, None])).astype(int)
        boxes = np.zeros((0, 4), int)
        for height, width in extents.tolist():
            free = np.array([size_px - width, size_px - height])
            corners = rng.integers(0, free, (PLACES, 2), endpoint=True)
            sides = np.broadcast_to([width, height], (PLACES, 2))
            tries = np.concatenate([corners, sides], axis=1)
            fits = (iou(tries[:, None], boxes[None, :]) <= MAX_IOU).all(axis=1)
            if not fits.any():
                break
            boxes = np.concatenate([boxes, tries[[fits.argmax()]]])
        if len(boxes) == len(shapes):
            return boxes


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes "... 4" (left, top, width, height)."""
    first = np.maximum(a[..., :2], b[..., :2])
    last = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    common = np.maximum(last - first, 0).prod(axis=-1)
    return common / (a[..., 2:].prod(axis=-1) + b[..., 2:].prod(axis=-1) - common)
