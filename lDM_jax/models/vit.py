"""Vision transformers: DINOv2's and CLIP's image tower, as feature networks.

    DINOv2 ViT-L/14 (FD-DINOv2)   ViT(1024, 24, 16)
    CLIP ViT-L/14@336 (CMMD)      ViT(1024, 24, 16, side_px=336, **CLIP, projection=768)

Both cut the image into 14 px patches, put a class token before them, add learned
positions, and run pre-norm blocks; the feature is the class token at the end. DINOv2
scales every block's output by channel and was trained at 518 px, so that its positions
are interpolated; CLIP norms once before the blocks and projects at the end. Everything
runs in full f32. Sources: Oquab et al. 2024; Radford et al. 2021, section 2.4.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lDM_jax.core.arrays import Array, Float, typecheck
from lDM_jax.core.errors import UserError
from lDM_jax.data.degrade import cubic
from lDM_jax.models.clip_text import ACTIVATIONS
from lDM_jax.models.layers import attend

CLIP = dict(
    eps=1e-5,
    activation="quick_gelu",
    layer_scale=False,
    norm_first=True,
    patch_bias=False,
    trained_grid=24,
    interpolation_offset=0.0,
)


class ViT(nn.Module):
    """Normalized pixels f32 "b side side 3" -> the class token "b width", f32.

    trained_grid: patches a side that the positions were trained for.
    interpolation_offset: QUIRK(offset): DINOv2 maps positions by (grid + 0.1) /
        trained_grid in place of grid / trained_grid.
    projection: width of the output, 0 for the normed token itself.
    """

    width: int
    depth: int
    num_heads: int
    side_px: int = 224
    patch_px: int = 14
    trained_grid: int = 37
    eps: float = 1e-6
    activation: str = "gelu"
    layer_scale: bool = True
    norm_first: bool = False
    patch_bias: bool = True
    interpolation_offset: float = 0.1
    projection: int = 0

    @nn.compact
    @typecheck
    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        if x.shape[1:3] != (self.side_px, self.side_px):
            raise UserError(f"images of {x.shape[1:3]}, not {self.side_px} px a side")
        patch, grid = (self.patch_px,) * 2, self.side_px // self.patch_px
        options = dict(use_bias=self.patch_bias, precision="highest", name="patches")
        cut = nn.Conv(self.width, patch, patch, "VALID", **options)
        h = cut(x).reshape(len(x), grid * grid, self.width)
        token = self.param("class_token", nn.initializers.zeros, (self.width,))
        shape = (1 + self.trained_grid**2, self.width)
        table = self.param("positions", nn.initializers.normal(0.02), shape)
        first = jnp.broadcast_to(token + table[0], (len(x), 1, self.width))
        h = jnp.concatenate([first, h + self.resize_positions(table[1:], grid)], axis=1)
        if self.norm_first:
            h = self.norm("norm_first")(h)
        for index in range(self.depth):
            h = self.block(h, index)
        h = self.norm("norm_last")(h[:, 0])
        if self.projection:
            h = self.dense(self.projection, "projection", bias=False)(h)
        return h

    def resize_positions(self, table: Array, grid: int) -> Array:
        """Position embeddings "1 grid^2 width", by bicubic interpolation."""
        side = self.trained_grid
        if grid == side:
            return table[None]
        rows = interpolation_matrix(side, grid, self.interpolation_offset)
        square = table.reshape(side, side, self.width)
        resized = jnp.einsum("ir,jc,rcd->ijd", rows, rows, square, precision="highest")
        return resized.reshape(1, grid * grid, self.width)

    def block(self, h: Array, index: int) -> Array:
        """h += scale attention(LN h); h += scale MLP(LN h)."""
        b, n, d = h.shape
        name = f"block_{index}"
        qkv = self.dense(3 * d, f"{name}_qkv")(self.norm(f"{name}_norm1")(h))
        qkv = qkv.reshape(b, n, 3, self.num_heads, d // self.num_heads)
        out = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]).reshape(b, n, d)
        h = h + self.scale_channels(self.dense(d, f"{name}_out")(out), f"{name}_scale1")
        inner = self.dense(4 * d, f"{name}_fc1")(self.norm(f"{name}_norm2")(h))
        inner = self.dense(d, f"{name}_fc2")(ACTIVATIONS[self.activation](inner))
        return h + self.scale_channels(inner, f"{name}_scale2")

    def scale_channels(self, h: Array, name: str) -> Array:
        """h times a number a channel, where the network has them."""
        if not self.layer_scale:
            return h
        gamma = self.param(name, nn.initializers.ones, (self.width,))
        return h * gamma.reshape(1, 1, -1)

    def norm(self, name: str) -> nn.LayerNorm:
        """Layer norm in f32."""
        return nn.LayerNorm(epsilon=self.eps, use_fast_variance=False, name=name)

    def dense(self, width: int, name: str, *, bias: bool = True) -> nn.Dense:
        """A product in full f32."""
        return nn.Dense(width, use_bias=bias, precision="highest", name=name)


def interpolation_matrix(size: int, target: int, offset: float) -> np.ndarray:
    """f32 "target size": bicubic (a = -0.75) at (i + 1/2) size / (target + offset) -
    1/2, not antialiased, the border repeated: torch's interpolate."""
    center = (np.arange(target) + 0.5) * size / (target + offset) - 0.5
    taps = np.floor(center)[:, None] + np.arange(-1, 3)
    weights = cubic(np.abs(taps - center[:, None]), a=-0.75)
    matrix = np.zeros((target, size))
    columns = np.clip(taps, 0, size - 1).astype(int)
    np.add.at(matrix, (np.arange(target)[:, None], columns), weights)
    return matrix.astype(np.float32)
