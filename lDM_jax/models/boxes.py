"""Boxes of a layout as where its tokens may be attended to.

An object's tokens (label, corners) are read by the positions in its box alone, so that
attention need not learn which label is meant where: a short training of a small model
does not get there. Masks say where words are read in eDiff-I (arXiv 2211.01324), and in
training too in InstanceDiffusion (arXiv 2402.03290); Rombach et al. 2022 have none.
Owns how tokens become boxes and boxes `Cond.regions`.
"""

import flax.linen as nn
import jax.numpy as jnp

from lDM_jax.core.arrays import Array, Bool, Cond, Float, Int, typecheck
from lDM_jax.data.box_tokens import BoxTokenizer

OUTSIDE = 2.0  # a corner's coordinate beyond the picture, of objects that are absent


class TokenBoxes(nn.Module):
    """Token ids of `box_tokens` -> each token's box "b n 4", without parameters.

    (left, top, right, bottom) in fractions: an object's three tokens have its box, the
    crop's two the whole picture; absent objects, and all of dropped rows, lie outside
    of it. vocab_size: as the tokenizer's.
    """

    vocab_size: int

    @nn.compact
    @typecheck
    def __call__(
        self, tokens: Int[Array, "b n"], drop: Bool[Array, " b"], train: bool = False
    ) -> Float[Array, "b n 4"]:
        del train
        b, grid = len(tokens), BoxTokenizer(vocab_size=self.vocab_size)
        objects = tokens[:, :-2].reshape(b, -1, 3)
        points = grid.point(objects[:, :, 1:])
        corners = jnp.stack(points, axis=-1).reshape(b, -1, 4)
        absent = (objects[:, :, :1] == grid.none) | drop[:, None, None]
        boxes = jnp.where(absent, OUTSIDE, corners)
        whole = jnp.broadcast_to(jnp.array([0.0, 0.0, 1.0, 1.0]), (b, 2, 4))
        return jnp.concatenate([jnp.repeat(boxes, 3, axis=1), whole], axis=1)


def on_grid(cond: Cond, extent: tuple[int, int]) -> Cond:
    """`cond` with `boxes` as `regions` of latents of `extent`; as it is without any."""
    if cond.boxes is None:
        return cond
    return cond.replace(boxes=None, regions=coverage(cond.boxes, extent))


def coverage(boxes: Array, extent: tuple[int, int]) -> Array:
    """The share of each cell that lies in each box, f32 "b h w n".

    boxes "b n 4" in fractions; one that is thinner than a cell is widened to a cell.
    """
    height, width = extent
    down = _overlap(boxes[:, None, :, 1], boxes[:, None, :, 3], height)
    across = _overlap(boxes[:, None, :, 0], boxes[:, None, :, 2], width)
    return down[:, :, None] * across[:, None]


def _overlap(low: Array, high: Array, cells: int) -> Array:
    """The share of each `cells`-th of [0, 1] between two "b 1 n": "b cells n"."""
    low = jnp.where(low <= 1, jnp.minimum(low, 1 - 1 / cells), low) * cells
    high = jnp.maximum(high * cells, low + 1)
    first = jnp.arange(cells, dtype=low.dtype)[None, :, None]
    return jnp.clip(jnp.minimum(high, first + 1) - jnp.maximum(low, first), 0, 1)
