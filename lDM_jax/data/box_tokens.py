"""Layouts -> token ids: boxes with labels, as the layout-to-image models read them.

A layout is a list of (label, (left, top, width, height)), in fractions of the image.
Each object becomes three tokens (its label, its top left corner, its bottom right
corner), and two more say which part of the original image is shown:

    corner(x, y) = round(89 y) 90 + round(89 x)             90 = floor(sqrt(8192))

Absent objects are three times the last token, 8191: 30 objects make 92 tokens. The
same numbers as taming-transformers' conditional builder. Imports no jax.
"""

import math
from collections.abc import Sequence

import numpy as np

from lDM_jax.core.errors import UserError

Box = tuple[float, float, float, float]
Layout = Sequence[tuple[int, Box]]

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


class BoxTokenizer:
    """`tokenizer(layouts)` -> i32 "b n"; an empty layout is the dropped condition.

    max_length n = 3 objects + 2; vocab_size: labels and corners share it. `crops` of a
    call are the parts of the original images that are shown, the whole by default.
    UserError for other lengths, too many objects, impossible labels or boxes.
    """

    def __init__(self, max_length: int = 92, vocab_size: int = 8192):
        if max_length < 5 or (max_length - 2) % 3:
            raise UserError(
                f"max_length is {max_length}: give three tokens an object and two more"
            )
        self.max_length, self.vocab_size = max_length, vocab_size
        self.max_objects = (max_length - 2) // 3
        self.sections = math.isqrt(vocab_size)
        self.none = vocab_size - 1

    def __call__(
        self, layouts: Sequence[Layout], crops: Sequence[Box] | None = None
    ) -> np.ndarray:
        crops = [WHOLE] * len(layouts) if crops is None else crops
        rows = [self._row(*row) for row in zip(layouts, crops, strict=True)]
        return np.array(rows, np.int32).reshape(len(rows), self.max_length)

    def _row(self, layout: Layout, crop: Box) -> list[int]:
        if len(layout) > self.max_objects:
            most = f"at most {self.max_objects} fit"
            raise UserError(f"a layout of {len(layout)} objects: {most}")
        tokens = []
        for label, box in layout:
            if not 0 <= label < self.none or label != int(label):
                valid = f"give a whole number from 0 to {self.none - 1}"
                raise UserError(f"label {label}: {valid}")
            tokens += [int(label), *self.corners(box)]
        tokens += [self.none] * (3 * self.max_objects - len(tokens))
        return [*tokens, *self.corners(crop)]

    def corners(self, box: Box) -> tuple[int, int]:
        """Tokens of the top left and the bottom right corner."""
        if len(box) != 4 or not _is_valid(*box):
            text = "give (left, top, width, height) as fractions in [0, 1]"
            raise UserError(f"box {box}: {text}")
        left, top, width, height = box
        return self.corner(left, top), self.corner(left + width, top + height)

    def corner(self, x: float, y: float) -> int:
        """The token of a point."""
        last = self.sections - 1
        column, row = (round(min(max(value, 0.0), 1.0) * last) for value in (x, y))
        return row * self.sections + column

    def point(self, token):
        """(x, y) of a corner's token, or of an array of them; `corner` backwards."""
        row, column = divmod(token, self.sections)
        return column / (self.sections - 1), row / (self.sections - 1)

    def layouts(self, tokens: np.ndarray) -> list[list[tuple[int, Box]]]:
        """Token rows i32 "b n" -> layouts, the inverse of a call up to rounding."""
        layouts = []
        for row in np.asarray(tokens):
            objects = row[: 3 * self.max_objects].reshape(-1, 3)
            objects = objects[objects[:, 0] != self.none]
            layouts.append([(int(label), self._box(a, b)) for label, a, b in objects])
        return layouts

    def _box(self, first: int, second: int) -> Box:
        (left, top), (right, bottom) = self.point(first), self.point(second)
        return left, top, right - left, bottom - top


def _is_valid(left: float, top: float, width: float, height: float) -> bool:
    """Whether a box lies inside the image, up to rounding; False with nan."""
    edges = left, top, left + width, top + height
    inside = all(-1e-6 <= edge <= 1 + 1e-6 for edge in edges)
    return inside and width >= 0 and height >= 0
