"""A classifier of noisy latents: the encoder half of the UNet, then a linear map.

What classifier guidance differentiates (`guidance.by_score`). Source: Dhariwal and
Nichol 2021 (arXiv 2105.05233, section 4); the original's `EncoderUNetModel` with
average pooling.
"""

import flax.linen as nn
import jax.numpy as jnp

from lDM_jax.core.arrays import Array, Cond, Float, Int, typecheck
from lDM_jax.models.layers import GroupNorm, zeros
from lDM_jax.models.unet import UNet, check_extent


class LatentClassifier(UNet):
    """Logits f32 "b out_channels" of z_t "b h w c" at times t; fields as `UNet`'s.

    out_channels: the number of classes. There is no condition.
    """

    @nn.compact
    @typecheck
    def __call__(
        self,
        z: Float[Array, "b h w c"],
        t: Int[Array, " b"] | Float[Array, " b"],
        train: bool = False,
    ) -> Float[Array, "b classes"]:
        check_extent(z.shape[1:3], self.halvings)
        res, attend = self.block_makers(Cond(), train)
        h, _ = self.encode(z, self.embed_time(t, None), res, attend, train)
        h = nn.silu(GroupNorm(num_groups=self.num_groups, name="out_norm")(h))
        pooled = h.mean(axis=(1, 2)).astype(jnp.float32)
        return nn.Dense(self.out_channels, kernel_init=zeros, name="out")(pooled)
