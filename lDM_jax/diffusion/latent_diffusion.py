"""The networks of latent diffusion and how they meet, without training.

    z_t = alpha_t z0 + sigma_t eps     prediction = denoiser(z_t, t, conditioner(batch))

First stage and text tower are `frozen`: an argument, never optimized.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from lDM_jax.core import rng
from lDM_jax.core.arrays import Array, Batch, Cond
from lDM_jax.diffusion import losses
from lDM_jax.diffusion.codec import Codec
from lDM_jax.diffusion.process import Process

LOG_VARIANCE_WAVES = 16
LOG_VARIANCE_GAIN = 10.0  # Adam moves u this much faster than a weight


@dataclasses.dataclass(frozen=True)
class Tower:
    """A text encoder that somebody else trained, and what it reads of a batch.

    name: of its parameters in `frozen`; null_tokens: the empty prompt, as it reads it;
    reads, writes: keys of the batch, tokens i32 "b n" -> embeddings f32 "b n d".
    """

    name: str
    network: nn.Module
    null_tokens: tuple[int, ...]
    reads: str = "tokens"
    writes: str = "embeddings"

    def blank(self, z0: Array) -> Array:
        """Zeros in the shape of the embeddings."""
        return jnp.zeros((len(z0), len(self.null_tokens), self.network.width))

    def encode(self, params: dict, batch: Batch, drop: Array) -> Array:
        """The embeddings of a batch; rows where `drop` is true get the empty prompt's.

        Cached embeddings are taken as they are: only the empty prompt is read then.
        """
        null = jnp.asarray(self.null_tokens, jnp.int32)[None]
        if self.writes in batch:
            blank = self.network.apply(params, null)
            return jnp.where(drop[:, None, None], blank, batch[self.writes])
        tokens = jnp.where(drop[:, None], null, batch[self.reads])
        return self.network.apply(params, tokens)


@dataclasses.dataclass(frozen=True)
class MaskedLatents:
    """What the first stage makes of the picture that is black under the mask.

    Reads `image` and `mask` of a batch, writes f32 "b h w c+1": the latents, and the
    mask in {-1, 1} at their extent.
    """

    codec: Codec
    name: str = "first_stage"
    writes: str = "masked"

    def blank(self, z0: Array) -> Array:
        """Zeros in the shape of what is written."""
        return jnp.zeros((*z0.shape[:3], z0.shape[3] + 1))

    def encode(self, params: dict, batch: Batch, drop: Array) -> Array:
        """Latents and mask; rows are dropped by the conditioner."""
        del drop
        z = self.codec.encode(params, masked_image(batch["image"], batch["mask"]))
        mask = 2 * nearest(batch["mask"], self.codec.factor) - 1
        return jnp.concatenate([z, mask], axis=-1)


@dataclasses.dataclass(frozen=True)
class LatentDiffusion:
    """The networks of the second stage and how they meet.

    `params` is {"unet": ..., "conditioner": ...}, what trains: the denoiser's keep the
    name under which they have always been stored. `frozen` holds what does not train:
    "first_stage" and each tower's. derived: what else frozen networks make of a batch.
    log_variance: learn, beside them, how large the error is at each time
    (`losses.diffusion_loss`).
    """

    denoiser: nn.Module
    conditioner: nn.Module
    process: Process
    codec: Codec
    towers: tuple[Tower, ...] = ()
    log_variance: bool = False
    derived: tuple[MaskedLatents, ...] = ()

    def init(self, key: Array, batch: Batch, z0: Array) -> dict:
        """Random parameters from one example batch and its latents."""
        key_denoiser = rng.stream(key, "unet")
        key_conditioner = rng.stream(key, "conditioner")
        blank = {one.writes: one.blank(z0) for one in (*self.derived, *self.towers)}
        batch = {**batch, **blank}
        cond, cond_params = self.conditioner.init_with_output(key_conditioner, batch)
        t = jnp.zeros(z0.shape[0], jnp.int32)
        denoiser_params = self.denoiser.init(key_denoiser, z0, t, cond)
        params = {"unet": denoiser_params, "conditioner": cond_params}
        if self.log_variance:
            params["log_variance"] = {"coefficients": jnp.zeros(LOG_VARIANCE_WAVES)}
        return params

    def condition(
        self,
        params: dict,
        frozen: dict,
        batch: Batch,
        drop: Array | None = None,
        *,
        rngs: dict | None = None,
    ) -> Cond:
        """Batch -> Cond; rows where `drop` is true get the null condition.

        rngs: {"dropout": key} while training; None evaluates without dropout.
        """
        if drop is None:
            drop = jnp.zeros(len(next(iter(batch.values()))), bool)
        derived = {
            one.writes: one.encode(frozen[one.name], batch, drop)
            for one in (*self.derived, *self.towers)
        }
        derived = jax.lax.stop_gradient(derived)
        batch, train = {**batch, **derived}, rngs is not None
        own = params.get("conditioner", {})  # absent from files where it is empty
        return self.conditioner.apply(own, batch, drop, train, rngs=rngs)

    def denoise(
        self,
        params: dict,
        z_t: Array,
        t: Array,
        cond: Cond,
        *,
        rngs: dict | None = None,
    ) -> Array:
        """One evaluation of the denoiser; rngs as in `condition`."""
        train = rngs is not None
        return self.denoiser.apply(params["unet"], z_t, t, cond, train, rngs=rngs)

    def log_variance_of(self, params: dict, t: Array) -> Array | None:
        """u(t) "b", a cosine series in t / T; None where it is not learned."""
        if not self.log_variance:
            return None
        coefficients = params["log_variance"]["coefficients"]
        place = t.astype(jnp.float32) / self.process.num_timesteps
        return losses.cosine_series(LOG_VARIANCE_GAIN * coefficients, place)


def masked_image(x: Array, mask: Array) -> Array:
    """The picture with -1 (black) where it is to be painted; mask {0, 1} "b H W 1"."""
    return x * (1 - mask) - mask


def nearest(x: Array, factor: int) -> Array:
    """Every factor-th pixel, the first of its cell: torch's "nearest" downsampling."""
    return x[:, ::factor, ::factor]
