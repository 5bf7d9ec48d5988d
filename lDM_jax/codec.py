"""Pixels <-> latents: the one place with the latent scale that knows KL from VQ.

    pixels --moments--> moments (what a cache stores) --sample--> latents z0
    z0 --decode--> pixels

z0 = scale * (posterior sample) for KL, scale * (latents before quantisation) for VQ;
`decode` divides by the scale and, for VQ, quantises. With scale = 1 / std of the
latents the diffusion network sees unit variance (Rombach et al. 2022, appendix G).
`Codec` is a value: the parameters are an argument of every function.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lDM_jax.arrays import Array, Float, Key, UserError, typecheck
from lDM_jax.models.autoencoder import Autoencoder, DiagonalGaussian


@dataclasses.dataclass(frozen=True)
class Codec:
    """The first stage as the second stage sees it.

    autoencoder: the network; scale: the latent scale, a positive number.
    """

    autoencoder: Autoencoder
    scale: float = 1.0

    @property
    def factor(self) -> int:
        """Pixels a latent position along each side."""
        return self.autoencoder.factor

    @property
    def channels(self) -> int:
        """Latent channels."""
        return self.autoencoder.latent_channels

    def latent_shape(self, height_px: int, width_px: int) -> tuple[int, int, int]:
        """(h, w, c) of an image's latents. Raises UserError if f does not divide it."""
        if height_px % self.factor or width_px % self.factor:
            raise UserError(
                f"image of {height_px} x {width_px} px: both sides must be multiples "
                f"of the first stage's factor {self.factor}"
            )
        return height_px // self.factor, width_px // self.factor, self.channels

    @typecheck
    def moments(
        self, params: dict, image: Float[Array, "b H W 3"]
    ) -> Float[Array, "b h w m"]:
        """What a latents cache stores: mean | logvar (KL), or latents (VQ)."""
        return self.autoencoder.apply(params, image, method="moments")

    @typecheck
    def sample(
        self, moments: Float[Array, "b h w m"], key: Key[Array, ""]
    ) -> Float[Array, "b h w c"]:
        """Latents z0 for training: a posterior sample (KL) times the scale."""
        if self.autoencoder.is_kl:
            return self.scale * DiagonalGaussian.from_moments(moments).sample(key)
        return self.scale * moments

    @typecheck
    def mode(self, moments: Float[Array, "b h w m"]) -> Float[Array, "b h w c"]:
        """Latents z0 without noise: the posterior mean times the scale."""
        if self.autoencoder.is_kl:
            return self.scale * DiagonalGaussian.from_moments(moments).mean
        return self.scale * moments

    @typecheck
    def encode(
        self, params: dict, image: Float[Array, "b H W 3"]
    ) -> Float[Array, "b h w c"]:
        """Pixels -> z0, deterministic."""
        return self.mode(self.moments(params, image))

    @typecheck
    def decode(
        self, params: dict, z0: Float[Array, "b h w c"]
    ) -> Float[Array, "b H W 3"]:
        """z0 -> pixels f32, about [-1, 1]; quantises first if the stage is VQ."""

        def run(network: Autoencoder, z: Array) -> Array:
            return network.decode(z if network.is_kl else network.quantize(z).z)

        return self.autoencoder.apply(params, z0 / self.scale, method=run)


def latent_scale(codec: Codec, moments: Array, key: Array) -> float:
    """1 / std over all elements of some latents (the original's scale_by_std)."""
    unscaled = dataclasses.replace(codec, scale=1.0)
    z = unscaled.sample(jnp.asarray(moments), key)
    return float(1.0 / jax.device_get(jnp.std(z)))
