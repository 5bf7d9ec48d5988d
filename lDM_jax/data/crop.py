"""From images of any extent to squares, as the original's loaders made them.

    center                   the central square, resized (LSUN; every folder)
    center with resize_px    the shorter side resized, then the center (faces)
    random                   the shorter side resized, then a random square (ImageNet)

The original's third method, a square of random size, is `degrade.RandomCrop`. Label
maps and masks are cut at the same place without interpolation, boxes are clipped and
counted in fractions of the square.
"""

from dataclasses import dataclass

import numpy as np

from lDM_jax.core import image
from lDM_jax.core.errors import UserError
from lDM_jax.data.transforms import Example, check_option

KINDS = ("center", "random")
FILTERS = ("linear", *image.RESAMPLING)
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Crop:
    """Crop image uint8 "H W c" to "size_px size_px c", and all maps of its extent.

    kind: "center" or "random". resize_px: the shorter side before the cut; 0 is size_px
    for a random place, while a center is then cut out before it is resized. method: one
    of PIL's, or "linear" as the original's albumentations: not antialiased.

    With a "layout", "crop" says which part of the image is shown: (left, top, width,
    height) in fractions. Boxes beyond it are dropped. An image that is size_px already
    stays as it is.
    """

    size_px: int
    kind: str = "center"
    resize_px: int = 0
    method: str = "bicubic"

    def __post_init__(self):
        if self.size_px < 1:
            raise UserError(f"size_px is {self.size_px}; it must be at least 1")
        check_option("crop", self.kind, KINDS)
        check_option("filter", self.method, FILTERS)
        if 0 < self.resize_px < self.size_px:
            raise UserError(
                f"resize_px is {self.resize_px}: give at least size_px = {self.size_px}"
            )

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        pixels = example["image"]
        if pixels.shape[:2] == (self.size_px, self.size_px) and not self.resize_px:
            return example
        x, region = self._cut(pixels, rng)
        example = {**example, "image": x}
        for key in {"segmentation", "mask"} & example.keys():
            example[key] = cut_map(example[key], region, self.size_px)
        if "layout" in example:
            example["layout"] = cut_layout(example["layout"], region)
            example["crop"] = region
        return example

    def _cut(self, pixels: np.ndarray, rng) -> tuple[np.ndarray, Box]:
        (height, width), size = pixels.shape[:2], self.size_px
        if self.kind == "center" and not self.resize_px and self.method != "linear":
            side = min(height, width)
            corner = (height - side) // 2, (width - side) // 2
            x = image.crop_square(pixels)
            if side != size:
                x = image.resample(x, size, size, method=self.method)
            return x, _region(corner, side, (height, width))
        scale = (self.resize_px or size) / min(height, width)
        extent = max(size, round(height * scale)), max(size, round(width * scale))
        room = extent[0] - size, extent[1] - size
        if self.kind == "random":
            corner = tuple(int(rng.integers(free, endpoint=True)) for free in room)
        else:
            corner = room[0] // 2, room[1] // 2
        x = image.resized_crop(pixels, extent, corner, size, method=self.method)
        return x, _region(corner, size, extent)


def _region(corner: tuple[int, int], side: int, extent: tuple[int, int]) -> Box:
    """(left, top, width, height) in fractions of the image."""
    (top, left), (height, width) = corner, extent
    return left / width, top / height, side / width, side / height


def cut_map(values: np.ndarray, region: Box, size_px: int) -> np.ndarray:
    """The nearest values of "H W ..." in a region: "size_px size_px ..."."""
    left, top, width, height = region
    middle = (np.arange(size_px) + 0.5) / size_px
    rows = ((top + height * middle) * values.shape[0]).astype(int)
    columns = ((left + width * middle) * values.shape[1]).astype(int)
    last_row, last_column = values.shape[0] - 1, values.shape[1] - 1
    return values[np.ix_(np.minimum(rows, last_row), np.minimum(columns, last_column))]


def cut_layout(layout: list, region: Box) -> list:
    """The boxes of a region, clipped, in its fractions; empty ones are dropped."""
    corner, sides = np.array(region[:2]), np.array(region[2:])
    boxes = []
    for label, box in layout:
        box = np.array(box)
        first = ((box[:2] - corner) / sides).clip(0.0, 1.0)
        last = ((box[:2] + box[2:] - corner) / sides).clip(0.0, 1.0)
        if (last > first).all():
            boxes.append((label, (*first.tolist(), *(last - first).tolist())))
    return boxes
