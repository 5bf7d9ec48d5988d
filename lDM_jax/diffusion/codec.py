"""Pixels <-> latents: the one place with the latent scale that knows KL from VQ.

    pixels --moments--> moments (what a cache stores) --sample--> latents z0
    z0 --decode--> pixels

z0 = scale * (posterior sample) for KL, scale * (latents before quantization) for VQ;
`decode` divides by the scale and, for VQ, quantizes. With scale = 1 / std of the
latents the diffusion network sees unit variance (Rombach et al. 2022, appendix G); one
number for all of them as there, or one a channel. `Codec` is a value: the parameters
are an argument of every function. For pictures larger than memory: `tiling`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from lDM_jax.core.arrays import Array, Float, Key, typecheck
from lDM_jax.core.errors import UserError
from lDM_jax.models.autoencoder import Autoencoder, DiagonalGaussian, Identity

Scale = float | tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Codec:
    """The first stage as the second stage sees it.

    autoencoder: the network; scale: the latent scale, a positive number or one for
    every channel. UserError for other scales.
    """

    autoencoder: Autoencoder | Identity
    scale: Scale = 1.0

    def __post_init__(self):
        values = np.asarray(self.scale, np.float64)
        fits = values.ndim == 0 or values.shape == (self.channels,)
        if not fits or not (np.isfinite(values) & (values > 0)).all():
            raise UserError(
                f"latent scale {self.scale}: give a positive number, or one for each "
                f"of the {self.channels} latent channels"
            )

    @property
    def factor(self) -> int:
        """Pixels a latent position along each side."""
        return self.autoencoder.factor

    @property
    def channels(self) -> int:
        """Latent channels."""
        return self.autoencoder.latent_channels

    @property
    def attends(self) -> bool:
        """Whether the network has attention, which sees its whole input."""
        network = self.autoencoder
        return bool(network.mid_attn or network.attn_factors)

    @property
    def factors(self) -> float | jax.Array:
        """The scale as latents are multiplied by it: a number, or f32 "1 1 1 c"."""
        if isinstance(self.scale, tuple):
            return jnp.asarray(self.scale, jnp.float32).reshape(1, 1, 1, -1)
        return self.scale

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
            return self.factors * DiagonalGaussian.from_moments(moments).sample(key)
        return self.factors * moments

    @typecheck
    def mode(self, moments: Float[Array, "b h w m"]) -> Float[Array, "b h w c"]:
        """Latents z0 without noise: the posterior mean times the scale."""
        if self.autoencoder.is_kl:
            return self.factors * DiagonalGaussian.from_moments(moments).mean
        return self.factors * moments

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
        """z0 -> pixels f32, about [-1, 1]; quantizes first if the stage is VQ."""

        def run(network: Autoencoder, z: Array) -> Array:
            return network.decode(z if network.is_kl else network.quantize(z).z)

        return self.autoencoder.apply(params, z0 / self.factors, method=run)


def latent_scale(
    codec: Codec, moments: Array, key: Array, *, per_channel: bool = False
) -> Scale:
    """1 / std over all elements of some latents (the original's scale_by_std).

    `per_channel` gives one number for each channel. With several processes, over the
    latents of all of them, and equal on all. UserError for constant latents.
    """
    unscaled = dataclasses.replace(codec, scale=1.0)
    z = unscaled.sample(jnp.asarray(moments), key)
    mine = channel_statistics(jax.device_get(z))
    variances = pooled_variances(process_allgather(mine), per_channel=per_channel)
    if not (variances > 0).all():
        raise UserError(f"latents with variances {variances} have no scale")
    scales = tuple(float(scale) for scale in 1.0 / np.sqrt(variances))
    return scales if per_channel else scales[0]


def channel_statistics(z: np.ndarray) -> np.ndarray:
    """(count, mean, variance) of each channel: f32 "3 c", from f64 sums."""
    z = np.asarray(z, np.float64).reshape(-1, z.shape[-1])
    count = np.full(z.shape[-1], len(z))
    return np.stack([count, z.mean(axis=0), z.var(axis=0)]).astype(np.float32)


def pooled_variances(statistics: np.ndarray, *, per_channel: bool) -> np.ndarray:
    """Variances f64 "c", or one over all channels "1", of parts "parts 3 c"."""
    parts = np.asarray(statistics, np.float64).transpose(1, 0, 2)
    if not per_channel:
        parts = parts.reshape(3, -1, 1)
    counts, means, variances = parts
    weights = counts / counts.sum(axis=0)
    mean = (weights * means).sum(axis=0)
    return (weights * (variances + (means - mean) ** 2)).sum(axis=0)
