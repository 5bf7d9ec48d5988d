"""Random masks for inpainting, of the shapes that LaMa draws.

    thick, medium, thin   chains of straight brush strokes; thick and medium draw some
                          rectangles in their place (23 % of the masks)
    box                   one rectangle of 10 to 35 % of the area
    half                  the left, right, upper or lower half: outpainting
    mixed                 one of the five, with equal chances

The numbers of `STROKES` and `BOXES` are those of LaMa (arXiv:2109.07161) for its 256-px
test masks, by which inpainting is compared; they scale with the shorter side. As there,
masks of more than half the image are drawn again. Painted share of the area at 256 px,
mean and 5th to 95th percentile (`python -m benchmarks.transforms --masks 2000`):

    thick  0.27, 0.06 to 0.48     medium  0.23, 0.02 to 0.42
    thin   0.27, 0.07 to 0.45     box     0.21, 0.13 to 0.30
    half   0.50                   mixed   0.29, 0.05 to 0.50

Drawing takes 1 ms (thick, medium), 4 to 5 ms (thin) and 0.1 ms (box, half) at that size
on one core (`taskset -c 0 python -m benchmarks.transforms --repeats 60`).

Read `RandomMask`, then `draw_mask`, then the shapes below it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from lDM_jax.core.errors import UserError
from lDM_jax.data.transforms import Example, check_option

PUBLISHED_SIDE_PX = 256
LARGEST_SHARE = 0.5
BOX_CHANCE = 0.3 / 1.3  # LaMa's odds of rectangles against strokes, 0.3 to 1


class Strokes(NamedTuple):
    """Chains a mask, and the ranges of a stroke's width and length at 256 px."""

    chains: tuple[int, int]
    width_px: tuple[int, int]
    length_px: tuple[int, int]


class Boxes(NamedTuple):
    """Rectangles a mask, the range of their sides, and the border kept at 256 px."""

    count: tuple[int, int]
    side_px: tuple[int, int]
    margin_px: int


# All ranges include both ends. QUIRK(one_more_chain): LaMa's program draws up to one
# chain more than its files say (5, 5 and 50).
STROKES = {
    "thick": Strokes(chains=(1, 6), width_px=(5, 104), length_px=(10, 209)),
    "medium": Strokes(chains=(4, 6), width_px=(5, 54), length_px=(10, 109)),
    "thin": Strokes(chains=(4, 51), width_px=(5, 14), length_px=(10, 49)),
}
BOXES = {
    "thick": Boxes(count=(1, 3), side_px=(30, 150), margin_px=10),
    "medium": Boxes(count=(1, 5), side_px=(10, 50), margin_px=0),
}
PURE_KINDS = (*STROKES, "box", "half")
KINDS = (*PURE_KINDS, "mixed")


@dataclass(frozen=True)
class RandomMask:
    """Add mask f32 {0, 1} "H W 1", 1 = to be painted, to an example with an image.

    kind: see the module. A mask is never empty and never more than half the image.
    """

    kind: str = "mixed"

    def __post_init__(self):
        check_option("mask kind", self.kind, KINDS)

    def __call__(self, example: Example, rng: Generator) -> Example:
        height, width = example["image"].shape[:2]
        return {**example, "mask": draw_mask(self.kind, height, width, rng)}


def draw_mask(kind: str, height: int, width: int, rng: Generator) -> np.ndarray:
    """A mask f32 {0, 1} "height width 1"; UserError for a side of less than 4 px."""
    check_option("mask kind", kind, KINDS)
    if min(height, width) < 4:
        raise UserError(f"no mask fits {height} x {width} pixels: give at least 4 x 4")
    if kind == "mixed":
        kind = PURE_KINDS[rng.integers(len(PURE_KINDS))]
    while True:  # one thick mask in three is too large, of the others hardly any
        painted = _draw(kind, height, width, rng)
        if 0 < painted.sum() <= LARGEST_SHARE * painted.size:
            return painted[:, :, None].astype(np.float32)


def _draw(kind: str, height: int, width: int, rng: Generator) -> np.ndarray:
    if kind == "box":
        return one_box(height, width, rng)
    if kind == "half":
        return one_half(height, width, rng)
    if kind in BOXES and rng.random() < BOX_CHANCE:
        return boxes(BOXES[kind], height, width, rng)
    return strokes(STROKES[kind], height, width, rng)


def one_box(height: int, width: int, rng: Generator) -> np.ndarray:
    """bool "H W": a rectangle inside, sides U[sqrt 0.10, sqrt 0.35] of the image's.

    The area is 21 % on average, ((sqrt 0.10 + sqrt 0.35) / 2)^2.
    """
    low, high = np.sqrt(0.10), np.sqrt(0.35)
    rows = max(1, round(height * rng.uniform(low, high)))
    columns = max(1, round(width * rng.uniform(low, high)))
    top = rng.integers(height - rows, endpoint=True)
    left = rng.integers(width - columns, endpoint=True)
    painted = np.zeros((height, width), bool)
    painted[top : top + rows, left : left + columns] = True
    return painted


def one_half(height: int, width: int, rng: Generator) -> np.ndarray:
    """bool "H W": one of four halves; of an odd extent the smaller part."""
    painted, side = np.zeros((height, width), bool), rng.integers(4)
    if side < 2:
        painted[:, : width // 2] = True
        return painted[:, ::-1] if side else painted
    painted[: height // 2] = True
    return painted[::-1] if side == 3 else painted


def boxes(numbers: Boxes, height: int, width: int, rng: Generator) -> np.ndarray:
    """bool "H W": several rectangles, which may overlap."""
    scale = min(height, width) / PUBLISHED_SIDE_PX
    margin = round(numbers.margin_px * scale)
    painted = np.zeros((height, width), bool)
    for _ in range(rng.integers(*numbers.count, endpoint=True)):
        sides = rng.integers(*numbers.side_px, size=2, endpoint=True) * scale
        rows, columns = np.maximum(1, np.rint(sides).astype(int))
        top = rng.integers(margin, height - margin - rows, endpoint=True)
        left = rng.integers(margin, width - margin - columns, endpoint=True)
        painted[top : top + rows, left : left + columns] = True
    return painted


def strokes(numbers: Strokes, height: int, width: int, rng: Generator) -> np.ndarray:
    """bool "H W": chains of 1 to 5 strokes, each beginning where the last one ended.

    QUIRK(four_angles): as LaMa draws them, a stroke's angle from the vertical is 0.01
    plus 0, 1, 2 or 3 radians, mirrored in every other chain. Ends are held inside.
    """
    scale = min(height, width) / PUBLISHED_SIDE_PX
    painted = np.zeros((height, width), bool)
    for chain in range(rng.integers(*numbers.chains, endpoint=True)):
        start = np.array([rng.integers(height), rng.integers(width)], float)
        mirror = -1.0 if chain % 2 == 0 else 1.0
        for _ in range(rng.integers(1, 5, endpoint=True)):
            angle = 0.01 + rng.integers(4)
            length = scale * rng.integers(*numbers.length_px, endpoint=True)
            width_px = scale * rng.integers(*numbers.width_px, endpoint=True)
            step = length * np.array([np.cos(angle), mirror * np.sin(angle)])
            end = np.clip(start + step, 0, (height - 1, width - 1))
            paint_stroke(painted, start, end, width_px=width_px)
            start = end
    return painted


def paint_stroke(
    painted: np.ndarray, start: np.ndarray, end: np.ndarray, *, width_px: float
) -> None:
    """Set to True, in place, what lies within width_px / 2 of the segment.

    painted: bool "H W". start, end: (row, column), whole numbers are pixel centers. The
    ends are round. A start at a pixel's center always paints that pixel.
    """
    radius = width_px / 2
    first = np.maximum(0, np.ceil(np.minimum(start, end) - radius)).astype(int)
    last = np.floor(np.maximum(start, end) + radius).astype(int) + 1
    window = painted[first[0] : last[0], first[1] : last[1]]
    rows = np.arange(first[0], first[0] + window.shape[0])[:, None] - start[0]
    columns = np.arange(first[1], first[1] + window.shape[1])[None, :] - start[1]
    along = end - start
    # The nearest point of the segment is start + s (end - start), s in [0, 1].
    s = (rows * along[0] + columns * along[1]) / max(along @ along, 1e-12)
    s = np.clip(s, 0.0, 1.0)
    distance2 = (rows - s * along[0]) ** 2 + (columns - s * along[1]) ** 2
    window |= distance2 <= radius**2
