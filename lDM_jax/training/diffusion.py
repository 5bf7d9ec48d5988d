"""Stage 2: the denoiser as a `Stage`.

    z0 = codec.sample(moments)   t ~ process   z_t = alpha_t z0 + sigma_t eps
    loss = mean w(t) |net(z_t, t, conditioner(batch)) - target|^2

Denoiser and conditioner train together and, unlike the original, both have an EMA.
First stage and text tower are `frozen`: an argument, never optimized and never
checkpointed here.
"""

import dataclasses
from collections.abc import Iterable
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lDM_jax.core import image, rng
from lDM_jax.core.arrays import Array, Batch
from lDM_jax.core.distributed import whole
from lDM_jax.diffusion import losses, samplers
from lDM_jax.diffusion.guidance import classifier_free
from lDM_jax.diffusion.latent_diffusion import LatentDiffusion
from lDM_jax.diffusion.process import MIN_SNR_GAMMA
from lDM_jax.training.accumulation import in_parts, mean_gradients
from lDM_jax.training.state import Averages, TrainState, apply_gradients, with_profiles

TIME_BUCKETS = 4


@dataclasses.dataclass(frozen=True)
class PreviewSettings:
    """How previews are sampled: steps, guidance scale, sampler, spacing of the grid."""

    steps: int = 50
    guidance: float = 1.0
    sampler: str = "ddim"
    spacing: str = "leading"


@dataclasses.dataclass(frozen=True, eq=False)
class DiffusionStage:
    """The denoiser's `Stage`; `frozen` as in `LatentDiffusion`.

    conditions: those of a batch, of which the shapes count; latent_shape: (h, w, c).
    drop_rate: share of rows that see the null condition. loss, weighting: see
    `losses.diffusion_loss`, `Process.loss_weight`; min_snr_gamma: of weighting
    "min_snr", 0 takes 5. accumulate_steps: parts of a batch whose gradients are
    computed one after another.
    """

    model: LatentDiffusion
    optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    conditions: Batch
    latent_shape: tuple[int, int, int]
    drop_rate: float = 0.1
    loss: str = "l2"
    weighting: str = "uniform"
    min_snr_gamma: float = 0.0
    averages: Averages = Averages()
    accumulate_steps: int = 1
    previews: PreviewSettings = PreviewSettings()

    def __post_init__(self):
        losses.check_kind(self.loss)
        self._weight(jnp.zeros(1, jnp.int32))

    def init(self, key: Array) -> TrainState:
        """Random parameters of denoiser and conditioner."""
        batch = {
            name: jnp.zeros((1, *value.shape[1:]), value.dtype)
            for name, value in self.conditions.items()
        }
        params = self.model.init(key, batch, jnp.zeros((1, *self.latent_shape)))
        state = TrainState.create(params, self.optimizer)
        return with_profiles(state, len(self.averages.stds))

    def step(self, state: TrainState, frozen, batch: Batch, key: Array):
        """One update of denoiser and conditioner."""
        parts, dropout_key = self.accumulate_steps, rng.stream(key, "dropout")

        def part_loss(params, rows, index):
            own = dropout_key if parts == 1 else jax.random.fold_in(dropout_key, index)
            return self._loss(params, frozen, rows, own)

        rows = self._noisy_rows(frozen, batch, key, parts)
        grads, scalars = mean_gradients(part_loss, state.params, rows, parts)
        sums, counts = scalars.pop("times")
        scalars |= time_errors(sums / counts)
        state, norms = apply_gradients(state, grads, self.optimizer, self.averages)
        return state, {**scalars, **norms}

    def preview(self, state: TrainState, frozen, batch: Batch, key: Array):
        """Samples of the EMA for the conditions of up to 16 rows."""
        del key
        rows = {name: jnp.asarray(value[:16]) for name, value in batch.items()}
        keys = rng.seed_keys(range(len(next(iter(rows.values())))))
        x = self._compiled_sample(state.ema, frozen, rows, keys)
        return {"samples": image.grid(image.to_uint8(whole(x)))}

    def evaluate(self, state: TrainState, frozen, batches: Iterable[Batch]):
        """Held-out loss and errors of the EMA, with the same noise at every call."""
        root, values, times = jax.random.key(0), [], np.zeros((2, TIME_BUCKETS))
        for index, batch in enumerate(batches):
            rows = int(np.sum(batch["weight"]))
            full = {n: v[:rows] for n, v in batch.items() if n != "weight"}
            key = rng.key(root, "evaluate", index)
            scalars = self._held_out_loss(state.ema, frozen, full, key)
            values.append((float(scalars["loss"]), float(scalars["error"]), rows))
            times += whole(scalars["times"])
        loss, error, rows = (np.array(column) for column in zip(*values, strict=True))
        figures = {"loss": loss @ rows, "error": error @ rows}
        figures = {name: float(value / rows.sum()) for name, value in figures.items()}
        with np.errstate(invalid="ignore"):
            means = time_errors(times[0] / times[1])
        finite = {name: float(v) for name, v in means.items() if np.isfinite(v)}
        return figures | finite  # few rows leave some times without one

    def sample(self, params, frozen, batch: Batch, keys: Array) -> Array:
        """Pixels f32 "b H W 3" of one trajectory each, as `previews` say; pure.

        Row i depends on keys[i] and its own conditions alone.
        """
        settings, model, rows = self.previews, self.model, keys.shape[0]
        cond = model.condition(params, frozen, batch, jnp.zeros(rows, bool))

        def denoise(z, t, cond=cond):
            return model.denoise(params, z, t, cond)

        if jax.tree.leaves(cond):  # else there is nothing to guide by
            null = model.condition(params, frozen, batch, jnp.ones(rows, bool))
            denoise = classifier_free(denoise, cond, null, settings.guidance)
        z = samplers.sample(
            denoise,
            rng.normal_per_seed(keys, self.latent_shape),
            model.process,
            grid=model.process.grid(settings.steps, settings.spacing),
            sampler=settings.sampler,
            keys=keys,
        )
        return model.codec.decode(frozen["first_stage"], z)

    def _noisy_rows(self, frozen, batch: Batch, key: Array, parts: int = 1) -> dict:
        """Everything random of a batch, row by row, and its latents."""
        codec, process = self.model.codec, self.model.process
        moments = batch.get("moments")
        if moments is None:
            moments = in_parts(
                lambda x: codec.moments(frozen["first_stage"], x), batch["image"], parts
            )
            moments = jax.lax.stop_gradient(moments)
        z0 = codec.sample(moments, rng.stream(key, "latent"))
        rows = z0.shape[0]
        t = process.sample_times(rng.stream(key, "time"), rows)
        eps = jax.random.normal(rng.stream(key, "noise"), z0.shape)
        drop = jax.random.bernoulli(rng.stream(key, "drop"), self.drop_rate, (rows,))
        return {"batch": batch, "z0": z0, "t": t, "eps": eps, "drop": drop}

    def _loss(self, params, frozen, rows: dict, dropout_key: Array):
        """(loss, scalars) of rows; "times" holds sums and counts of errors by time."""
        model, process = self.model, self.model.process
        z0, eps, t = rows["z0"], rows["eps"], rows["t"]
        dropout = {"dropout": dropout_key}
        cond = model.condition(
            params, frozen, rows["batch"], rows["drop"], rngs=dropout
        )
        z_t = process.q_sample(z0, eps, t)
        prediction = model.denoise(params, z_t, t, cond, rngs=dropout)
        total, error = losses.diffusion_loss(
            prediction,
            process.target(z0, eps, t),
            weight=self._weight(t),
            kind=self.loss,
            log_variance=model.log_variance_of(params, t),
        )
        place = t.astype(jnp.float32) / process.num_timesteps
        times = losses.by_time(error, place, TIME_BUCKETS)
        return total, {"loss": total, "error": error.mean(), "times": times}

    def _weight(self, t: Array) -> Array:
        """w(t) of the loss."""
        gamma = float(self.min_snr_gamma or MIN_SNR_GAMMA)
        return self.model.process.loss_weight(t, kind=self.weighting, gamma=gamma)

    @cached_property
    def _held_out_loss(self):
        """(params, frozen, batch, key) -> scalars of `_loss`, compiled."""

        def scalars(params, frozen, batch, key):
            rows = self._noisy_rows(frozen, batch, key)
            return self._loss(params, frozen, rows, rng.stream(key, "dropout"))[1]

        return jax.jit(scalars)

    @cached_property
    def _compiled_sample(self):
        return jax.jit(self.sample)


def time_errors(means: Array) -> dict:
    """{"error/t0.00": ..., "error/t0.25": ...}: by where its bucket of t / T begins."""
    count = len(means)
    return {f"error/t{k / count:.2f}": mean for k, mean in enumerate(means)}
