"""Stage 2: the denoiser's init, step, preview and evaluate, as a `Stage`.

    z0 = codec.sample(moments)   t ~ process   z_t = alpha_t z0 + sigma_t eps
    loss = mean w(t) |net(z_t, t, conditioner(batch)) - target|^2

Denoiser and conditioner train together and, unlike the original, both have an EMA.
First stage and text tower are `frozen`: an argument, never optimised and never
checkpointed here.
"""

import dataclasses
from collections.abc import Callable, Iterable

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
from lDM_jax.training.state import (
    Averages,
    Stage,
    TrainState,
    apply_gradients,
    with_profiles,
)

TIME_BUCKETS = 4


@dataclasses.dataclass(frozen=True)
class PreviewSettings:
    """How previews are drawn: the sampler's name, its steps, its grid, the guidance."""

    steps: int = 50
    guidance: float = 1.0
    name: str = "ddim"
    spacing: str = "leading"


def make_stage(
    model: LatentDiffusion,
    optimizer: optax.GradientTransformation,
    *,
    example_batch: Batch,
    latent_shape: tuple[int, int, int],
    drop_rate: float = 0.1,
    loss: str = "l2",
    weighting: str = "uniform",
    min_snr_gamma: float = 0.0,
    log_variance: bool = False,
    ema_decay: float = 0.9999,
    ema_std: float = 0.0,
    ema_stds: tuple[float, ...] = (),
    accumulate_steps: int = 1,
    preview: PreviewSettings | None = None,
) -> Stage:
    """The denoiser's stage; `frozen` as in `LatentDiffusion`.

    example_batch: shapes of one batch; latent_shape: (h, w, c) of its latents.
    accumulate_steps: parts of a batch whose gradients are computed one after another.
    min_snr_gamma: of weighting "min_snr", 0 takes 5. log_variance: as in
    `LatentDiffusion`. ema_stds: see `Averages`.
    """
    model = dataclasses.replace(model, log_variance=log_variance or model.log_variance)
    process, codec, shown = model.process, model.codec, preview or PreviewSettings()
    losses.check_kind(loss)
    weigh = dict(kind=weighting, gamma=float(min_snr_gamma or MIN_SNR_GAMMA))
    process.loss_weight(jnp.zeros(1, jnp.int32), **weigh)
    averages = Averages(ema_decay, ema_std, tuple(ema_stds))

    def init(key: Array) -> TrainState:
        batch = {name: jnp.asarray(value[:1]) for name, value in example_batch.items()}
        params = model.init(key, batch, jnp.zeros((1, *latent_shape)))
        state = TrainState.create(params, optimizer)
        return with_profiles(state, len(averages.stds))

    def draw(frozen, batch: Batch, key: Array, parts: int = 1) -> dict:
        """Everything random of a batch, row by row, and what is encoded of it."""
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
        drop = jax.random.bernoulli(rng.stream(key, "drop"), drop_rate, (rows,))
        return {"batch": batch, "z0": z0, "t": t, "eps": eps, "drop": drop}

    def rows_loss(params, frozen, rows: dict, dropout_key: Array):
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
            weight=process.loss_weight(t, **weigh),
            kind=loss,
            log_variance=model.log_variance_of(params, t),
        )
        place = t.astype(jnp.float32) / process.num_timesteps
        times = losses.by_time(error, place, TIME_BUCKETS)
        return total, {"loss": total, "error": error.mean(), "times": times}

    def step(state: TrainState, frozen, batch: Batch, key: Array):
        dropout_key = rng.stream(key, "dropout")

        def part_loss(params, rows, index):
            own = dropout_key
            if accumulate_steps > 1:
                own = jax.random.fold_in(dropout_key, index)
            return rows_loss(params, frozen, rows, own)

        rows = draw(frozen, batch, key, accumulate_steps)
        grads, scalars = mean_gradients(part_loss, state.params, rows, accumulate_steps)
        sums, counts = scalars.pop("times")
        scalars |= time_errors(sums / counts)
        state, norms = apply_gradients(state, grads, optimizer, averages)
        return state, {**scalars, **norms}

    sample = jax.jit(make_sampler(model, shown), static_argnums=(3,))

    def look(state: TrainState, frozen, batch: Batch, key: Array):
        del key
        rows = {name: jnp.asarray(value[:16]) for name, value in batch.items()}
        keys = rng.seed_keys(range(len(next(iter(rows.values())))))
        x = sample(state.ema, frozen, rows, latent_shape, keys, shown.guidance)
        return {"samples": image.grid(image.to_uint8(whole(x)))}

    @jax.jit
    def held_out_loss(params, frozen, batch, key):
        rows = draw(frozen, batch, key)
        return rows_loss(params, frozen, rows, rng.stream(key, "dropout"))[1]

    def evaluate(state: TrainState, frozen, batches: Iterable[Batch]):
        root, values, times = jax.random.key(0), [], np.zeros((2, TIME_BUCKETS))
        for index, batch in enumerate(batches):
            rows = int(np.sum(batch["weight"]))
            full = {n: v[:rows] for n, v in batch.items() if n != "weight"}
            key = rng.key(root, "evaluate", index)
            found = held_out_loss(state.ema, frozen, full, key)
            values.append((float(found["loss"]), float(found["error"]), rows))
            times += whole(found["times"])
        loss, error, rows = (np.array(column) for column in zip(*values, strict=True))
        figures = {"loss": loss @ rows, "error": error @ rows}
        figures = {name: float(value / rows.sum()) for name, value in figures.items()}
        with np.errstate(invalid="ignore"):
            means = time_errors(times[0] / times[1])
        known = {name: float(v) for name, v in means.items() if np.isfinite(v)}
        return figures | known  # few rows leave some times without one

    return Stage(init=init, step=step, preview=look, evaluate=evaluate)


def time_errors(means: Array) -> dict:
    """{"error/t0.00": ..., "error/t0.25": ...}: by where its bucket of t / T begins."""
    count = len(means)
    return {f"error/t{k / count:.2f}": mean for k, mean in enumerate(means)}


def make_sampler(model: LatentDiffusion, settings: PreviewSettings) -> Callable:
    """(params, frozen, batch, latent_shape, keys, guidance) -> pixels, one trajectory.

    Row i depends on keys[i] and its own conditions alone.
    """
    grid, sampler = model.process.grid(settings.steps, settings.spacing), settings.name

    def sample(params, frozen, batch: Batch, latent_shape, keys: Array, guidance):
        rows = keys.shape[0]
        cond = model.condition(params, frozen, batch)

        def denoise(z, t, cond=cond):
            return model.denoise(params, z, t, cond)

        if jax.tree.leaves(cond):  # else there is nothing to guide by
            null = model.condition(params, frozen, batch, jnp.ones(rows, bool))
            denoise = classifier_free(denoise, cond, null, guidance)
        z = rng.normal_per_seed(keys, latent_shape)
        z = samplers.sample(
            denoise, z, model.process, grid=grid, sampler=sampler, keys=keys
        )
        return model.codec.decode(frozen["first_stage"], z)

    return sample
