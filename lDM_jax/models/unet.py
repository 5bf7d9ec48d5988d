"""The time-conditional UNet: eps_theta(z_t, t, Cond) -> prediction.

Owns the arrangement of blocks of `openaimodel.UNetModel`; the blocks are in `layers`.
Knows nothing of diffusion: `Process` gives the prediction its meaning. Published
sizes are in configs/. Source: Rombach et al. 2022, appendix E.2, tables 12 to 15.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from lDM_jax.core.arrays import Array, Cond, Float, Int, typecheck
from lDM_jax.core.errors import UserError
from lDM_jax.models import boxes, layers
from lDM_jax.models.layers import GroupNorm, ResBlock, conv1x1, conv3x3, zeros

POLICIES = jax.checkpoint_policies
REMAT_POLICIES = {
    "nothing": POLICIES.nothing_saveable,
    "products": POLICIES.dots_with_no_batch_dims_saveable,
    "dots": POLICIES.dots_saveable,
}


class UNet(nn.Module):
    """Prediction f32 "b h w out_channels" from z_t, integer (or real) t and `Cond`.

    width            channels of the first level
    width_mults      multiple of `width` at each level; h and w halve between levels
    num_res_blocks   residual blocks a level going down; one more going up
    attn_factors     downsampling factors at which attention stands, e.g. (8, 4, 2)
    num_heads        heads of every attention layer; or give
    head_channels    channels a head (num_heads = channels / head_channels)
    context_width    None: plain attention blocks; else spatial transformers whose
                     cross-attention reads Cond.context "b n context_width"
    transformer_depth  blocks of every spatial transformer; or one number a level, the
                     last one also for the middle, 0 meaning no attention there
    linear_projections  whether diffusers stores the transformers' outer projections as
                     linear layers; the arithmetic is the same (`interop` reads it)
    vector_width     0: Cond.vector "b 4*width" is added to the time embedding as it
                     is; else "b vector_width" through Linear-SiLU-Linear (SDXL)
    scale_shift, res_resample    as in the churches model
    qk_norm          RMS norm of every attention layer's queries and keys
    remat            recompute blocks in the backward pass instead of storing them
    remat_policy     what a block stores all the same: "nothing", its matrix "products"
                     with parameters, or all "dots" (also attention's)
    """

    out_channels: int
    width: int
    width_mults: Sequence[int] = (1, 2, 4, 8)
    num_res_blocks: int = 2
    attn_factors: Sequence[int] = (4, 2, 1)
    num_heads: int | None = None
    head_channels: int | None = None
    context_width: int | None = None
    transformer_depth: int | Sequence[int] = 1
    linear_projections: bool = False
    vector_width: int = 0
    scale_shift: bool = False
    res_resample: bool = False
    qk_norm: bool = False
    dropout: float = 0.0
    num_groups: int = 32
    remat: bool = False
    remat_policy: str = "nothing"
    dtype: jnp.dtype = jnp.float32

    def heads(self, channels: int) -> int:
        """Heads of an attention layer at `channels` wide features."""
        if self.head_channels is not None:
            return channels // self.head_channels
        return self.num_heads

    def depth(self, level: int) -> int:
        """Blocks of a spatial transformer at a level (-1: the middle)."""
        depth = self.transformer_depth
        return depth if isinstance(depth, int) else depth[level]

    def attends(self, level: int) -> bool:
        """True if there is attention at a level."""
        return 2**level in self.attn_factors and self.depth(level) > 0

    @property
    def halvings(self) -> int:
        """How often h and w are halved."""
        return len(self.width_mults) - 1

    @nn.compact
    @typecheck
    def __call__(
        self,
        z: Float[Array, "b h w c"],
        t: Int[Array, " b"] | Float[Array, " b"],
        cond: Cond = Cond(),  # noqa: B008
        train: bool = False,
    ) -> Float[Array, "b h w out"]:
        check_extent(z.shape[1:3], self.halvings)
        cond = boxes.on_grid(cond, z.shape[1:3])
        res, attend = self.block_makers(cond, train)
        emb = self.embed_time(t, cond.vector)
        if cond.concat is not None:
            z = jnp.concatenate([z, cond.concat.astype(z.dtype)], axis=-1)
        h, skips = self.encode(z, emb, res, attend, train)
        index = 0
        for level, mult in reversed(list(enumerate(self.width_mults))):
            for block in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = res(f"output_{index}_0", mult * self.width)(h, emb, train)
                if self.attends(level):
                    h = attend(f"output_{index}_1", h, level)
                if level > 0 and block == self.num_res_blocks:
                    name = f"output_{index}_{1 + self.attends(level)}"
                    if self.res_resample:
                        h = res(name, h.shape[-1], "up")(h, emb, train)
                    else:
                        h = layers.Upsample(dtype=self.dtype, name=name)(h)
                index += 1

        h = nn.silu(GroupNorm(num_groups=self.num_groups, name="out_norm")(h))
        h = conv3x3(self.out_channels, "out_conv", dtype=self.dtype, init=zeros)(h)
        return h.astype(jnp.float32)

    def encode(self, z: Array, emb: Array, res, attend, train: bool):
        """The down path and the middle block: (features of the middle, skips)."""
        h = conv3x3(self.width, "input_0_0", dtype=self.dtype)(z.astype(self.dtype))
        skips, index = [h], 1
        for level, mult in enumerate(self.width_mults):
            for _ in range(self.num_res_blocks):
                h = res(f"input_{index}_0", mult * self.width)(h, emb, train)
                if self.attends(level):
                    h = attend(f"input_{index}_1", h, level)
                skips, index = [*skips, h], index + 1
            if level < self.halvings:
                name = f"input_{index}_0"
                if self.res_resample:
                    h = res(name, h.shape[-1], "down")(h, emb, train)
                else:
                    h = layers.Downsample(dtype=self.dtype, name=name)(h)
                skips, index = [*skips, h], index + 1

        h = res("middle_0", h.shape[-1])(h, emb, train)
        h = attend("middle_1", h, -1)
        return res("middle_2", h.shape[-1])(h, emb, train), skips

    def block_makers(self, cond: Cond, train: bool):
        """Constructors of residual and attention blocks, fixed options bound."""
        del train
        block = ResBlock
        transformer, plain = layers.SpatialTransformer, layers.AttentionBlock
        if self.remat:
            options = dict(policy=REMAT_POLICIES[self.remat_policy])
            block = nn.remat(ResBlock, static_argnums=(3,), **options)
            transformer = nn.remat(transformer, **options)
            plain = nn.remat(plain, **options)
        common = dict(num_groups=self.num_groups, dtype=self.dtype)

        def res(name: str, width: int, resample: str | None = None):
            options = dict(dropout=self.dropout, scale_shift=self.scale_shift)
            return block(width, resample=resample, name=name, **options, **common)

        def attend(name: str, h: Array, level: int) -> Array:
            heads = self.heads(h.shape[-1])
            if self.context_width is None:
                return plain(heads, name=name, qk_norm=self.qk_norm, **common)(h)
            depth = self.depth(level)
            block = transformer(heads, depth, name=name, qk_norm=self.qk_norm, **common)
            return block(h, cond.context, cond.regions)

        return res, attend

    def embed_time(self, t: Array, vector: Array | None) -> Array:
        """Linear-SiLU-Linear of the sinusoidal features, plus the vector: "b 4w"."""

        def mlp(name: str, features: Array) -> Array:
            h = conv1x1(4 * self.width, f"{name}_0", dtype=self.dtype)(features)
            return conv1x1(4 * self.width, f"{name}_2", dtype=self.dtype)(nn.silu(h))

        emb = mlp("time", layers.time_features(t, self.width).astype(self.dtype))
        if vector is None:
            return emb
        vector = vector.astype(self.dtype)
        return emb + (mlp("vector", vector) if self.vector_width else vector)


def check_extent(extent: tuple[int, int], halvings: int) -> None:
    """Raise UserError when a latent extent (h, w) cannot be halved `halvings` times."""
    unit = 2**halvings
    if any(side % unit or side < unit for side in extent):
        height, width = extent
        raise UserError(
            f"a latent of {height} x {width} cannot be halved {halvings} times: "
            f"both sides must be multiples of {unit}"
        )
