"""Boxes of a layout as masks of cross-attention to their tokens.

Only the positions inside an object's box attend to its tokens (label, corners), so
that attention need not learn which label belongs where; a small model does not learn
that in a short training. eDiff-I (arXiv 2211.01324) masks attention when sampling,
InstanceDiffusion (arXiv 2402.03290) in training too; Rombach et al. 2022 do not.
Owns how tokens become boxes and boxes become `Cond.regions`.
"""

import flax.linen as nn
import jax.numpy as jnp

from lDM_jax.core.arrays import Array, Bool, Cond, Float, Int, typecheck
from lDM_jax.data.box_tokens import BoxTokenizer

OUTSIDE = 2.0  # a corner's coordinate beyond the image, of objects that are absent


class TokenBoxes(nn.Module):
    """Token ids of `box_tokens` -> each token's box "b n 4", without parameters.

    (left, top, right, bottom) in fractions: an object's three tokens have its box, the
    crop's two the whole image; absent objects, and all of dropped rows, lie outside
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
        whole_image = jnp.broadcast_to(jnp.array([0.0, 0.0, 1.0, 1.0]), (b, 2, 4))
        return jnp.concatenate([jnp.repeat(boxes, 3, axis=1), whole_image], axis=1)


def on_grid(cond: Cond, extent: tuple[int, int]) -> Cond:
    """`cond` with `boxes` as `regions` of that extent; unchanged without boxes."""
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
