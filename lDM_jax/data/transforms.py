"""Example transforms: `transform(example, rng) -> example`.

All randomness comes from `rng`, which the pipeline derives from (seed, index, epoch).
Transforms are frozen dataclasses, so that they compare, print and pickle. They return a
new dict and never write into their input arrays, which may be a source's cache.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from lDM_jax.core import image
from lDM_jax.core.errors import BadExample, UserError

Example = dict
Transform = Callable[[Example, Generator], Example]

BACKGROUNDS = ("white", "random")
SPATIAL_KEYS = ("image", "low_res", "mask", "segmentation")


def check_option(name: str, value: str, valid: Iterable[str]) -> None:
    """UserError unless the value is one of the valid ones."""
    if value not in valid:
        raise UserError(f"{name} is {value!r}; valid are {', '.join(map(repr, valid))}")


@dataclass(frozen=True)
class Compose:
    """One transform after another, all drawing from the same generator."""

    transforms: tuple[Transform, ...]

    def __call__(self, example: Example, rng: Generator) -> Example:
        for transform in self.transforms:
            example = transform(example, rng)
        return example


def compose(*transforms: Transform) -> Compose:
    """`compose(f, g)(example, rng)` is `g(f(example, rng), rng)`."""
    return Compose(transforms)


@dataclass(frozen=True)
class Composite:
    """Composite the image over a color: image uint8 "H W 4" -> f32 [-1, 1] "H W 3".

    x = alpha * color + (1 - alpha) * background; white, or a color per example, uniform
    over the uint8 cube. Three channels are opaque, but the generator is used as well.
    """

    background: str = "white"

    def __post_init__(self):
        check_option("background", self.background, BACKGROUNDS)

    def __call__(self, example: Example, rng: Generator) -> Example:
        pixels = image.to_float(example["image"])
        background = np.full(3, 255, np.uint8)
        if self.background == "random":
            background = rng.integers(0, 256, 3, np.uint8)
        if pixels.shape[2] == 3:
            return {**example, "image": pixels}
        alpha = (pixels[:, :, 3:] + 1.0) / 2.0
        background = image.to_float(background)[None, None, :]
        x = alpha * pixels[:, :, :3] + (1.0 - alpha) * background
        return {**example, "image": x}


def on_white(pixels: np.ndarray) -> np.ndarray:
    """uint8 "H W 4" or "H W 3" -> uint8 "H W 3" on white."""
    return image.to_uint8(Composite()({"image": pixels}, None)["image"])


@dataclass(frozen=True)
class RandomFlip:
    """Mirror left and right with the given probability, all pixel keys together.

    In a layout left becomes 1 - left - width; ValueError if it is tokens already.
    """

    probability: float = 0.5

    def __post_init__(self):
        if not 0.0 <= self.probability <= 1.0:
            text = f"the flip probability is {self.probability}; it must lie in [0, 1]"
            raise UserError(text)

    def __call__(self, example: Example, rng: Generator) -> Example:
        if "boxes" in example:
            raise ValueError("flip before the layout becomes tokens, not after")
        if rng.random() >= self.probability:
            return example
        flipped = dict(example)
        for key in SPATIAL_KEYS:
            if key in example:
                flipped[key] = np.ascontiguousarray(example[key][:, ::-1])
        if "layout" in example:
            flipped["layout"] = [(k, mirror_box(box)) for k, box in example["layout"]]
        if "crop" in example:
            flipped["crop"] = mirror_box(example["crop"])
        return flipped


def mirror_box(box: tuple) -> tuple:
    """A box (left, top, width, height), in fractions, of the mirrored image."""
    left, top, width, height = box
    return max(0.0, 1.0 - (left + width)), top, width, height


@dataclass(frozen=True)
class Tokenize:
    """Replace caption by tokens, i32 "n"; of several "captions", one by chance."""

    tokenizer: Callable[[list[str]], np.ndarray]

    def __call__(self, example: Example, rng: Generator) -> Example:
        rest = {k: v for k, v in example.items() if k not in ("caption", "captions")}
        caption = example["caption"]
        if "captions" in example:
            caption = example["captions"][rng.integers(len(example["captions"]))]
        return {**rest, "tokens": self.tokenizer([str(caption)])[0]}


@dataclass(frozen=True)
class TokenizeLayout:
    """Replace layout by boxes, i32 "n"; tokenizer: a `box_tokens.BoxTokenizer`.

    shuffle: tokenize the objects in random order, as the original does, so that a model
    does not come to expect the largest first. `RandomFlip` comes before. Of more
    objects than fit the largest are kept; "crop", if it is there, is tokenized too.
    """

    tokenizer: Callable[[list], np.ndarray]
    shuffle: bool = True

    def __call__(self, example: Example, rng: Generator) -> Example:
        rest = {k: v for k, v in example.items() if k not in ("layout", "crop")}
        layout, most = example["layout"], getattr(self.tokenizer, "max_objects", 0)
        if most and len(layout) > most:
            layout = sorted(layout, key=lambda item: -item[1][2] * item[1][3])[:most]
        if self.shuffle:
            layout = [layout[i] for i in rng.permutation(len(layout))]
        crops = ([example["crop"]],) if "crop" in example else ()
        return {**rest, "boxes": self.tokenizer([layout], *crops)[0]}


@dataclass(frozen=True)
class CheckLabels:
    """Refuse label maps with labels beyond `count`: BadExample names the largest."""

    count: int

    def __call__(self, example: Example, rng: Generator) -> Example:
        labels = example["segmentation"]
        if labels.min(initial=0) < 0 or labels.max(initial=0) >= self.count:
            raise BadExample(
                f"a segmentation has the label {labels.max()}; config.num_classes = "
                f"{self.count} allows 0 .. {self.count - 1}"
            )
        return example


@dataclass(frozen=True)
class Keep:
    """Keep these keys and drop all others. Raises KeyError when one is not there."""

    keys: tuple[str, ...]

    def __call__(self, example: Example, rng: Generator) -> Example:
        missing = [key for key in self.keys if key not in example]
        if missing:
            raise KeyError(f"no {missing[0]!r} to keep; there is {sorted(example)}")
        return {key: example[key] for key in self.keys}
