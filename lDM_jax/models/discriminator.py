"""PatchGAN: one logit for each overlapping patch, real high, reconstructed low.

Pixels f32 [-1, 1] "b H W 3" in, logits f32 "b h w 1" out. Losses are in `losses`, the
game itself in `training.autoencoder`. Source: Isola et al. 2017 (arXiv 1611.07004),
section 3.2.2, in the form that Esser et al. 2021 and Rombach et al. 2022 train.
"""

import flax.linen as nn
import jax.numpy as jnp

from lDM_jax.core.arrays import Array, Float, typecheck
from lDM_jax.core.errors import UserError
from lDM_jax.models.layers import GroupNorm

NORMS = ("batch", "group")

_kernel_init = nn.initializers.normal(0.02)


def _scale_init(key, shape, dtype=jnp.float32):
    """The original starts its norms' scales from N(1, 0.02)."""
    return 1 + _kernel_init(key, shape, dtype)


class PatchDiscriminator(nn.Module):
    """4x4 convolutions: `num_layers` of stride 2, then two of stride 1.

    Widths double from `width` up to 8 width; LeakyReLU(0.2) between; no norm after the
    first convolution. norm "batch" (the original) takes its statistics from the whole
    batch, over all devices that hold a part of it; with `train` its running averages
    (collection "batch_stats", torch's momentum 0.1) are updated and not used. "group"
    has no state.
    """

    width: int = 64
    num_layers: int = 3
    norm: str = "batch"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typecheck
    def __call__(
        self, x: Float[Array, "b H W k"], train: bool = False
    ) -> Float[Array, "b h w 1"]:
        h = self._conv(self.width, 2, "conv_0", use_bias=True)(x.astype(self.dtype))
        h = nn.leaky_relu(h, 0.2)
        for index in range(1, self.num_layers + 1):
            stride = 2 if index < self.num_layers else 1
            width = self.width * min(2**index, 8)
            h = self._conv(width, stride, f"conv_{index}", use_bias=False)(h)
            h = nn.leaky_relu(self._normalize(h, index, train), 0.2)
        last = self._conv(1, 1, f"conv_{self.num_layers + 1}", use_bias=True)
        return last(h).astype(jnp.float32)

    def check_size(self, size_px: int) -> None:
        """UserError unless an image of this side leaves at least one patch."""
        if self.norm not in NORMS:
            raise UserError(
                f"discriminator norm {self.norm!r}; valid: {', '.join(NORMS)}"
            )
        least = 3 * 2**self.num_layers
        if size_px < least:
            raise UserError(
                f"a discriminator of {self.num_layers} layers needs images of at least "
                f"{least} px, not {size_px}: lower config.discriminator.num_layers"
            )

    def _conv(self, width: int, stride: int, name: str, *, use_bias: bool) -> nn.Conv:
        options = dict(use_bias=use_bias, kernel_init=_kernel_init, dtype=self.dtype)
        pad = ((1, 1), (1, 1))
        return nn.Conv(width, (4, 4), stride, pad, **options, name=name)

    def _normalize(self, h: Array, index: int, train: bool) -> Array:
        name = f"norm_{index}"
        if self.norm == "group":
            return GroupNorm(name=name)(h)
        norm = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            use_fast_variance=False,
            scale_init=_scale_init,
            dtype=jnp.float32,
            name=name,
        )
        return norm(h).astype(h.dtype)
