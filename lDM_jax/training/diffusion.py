"""Stage 2: the denoiser's init, step, preview and evaluate, as a `Stage`.

    z0 = codec.sample(moments)   t ~ process   z_t = alpha_t z0 + sigma_t eps
    loss = mean w(t) |net(z_t, t, conditioner(batch)) - target|^2

Denoiser and conditioner train together and, unlike the original, both have an EMA.
The first stage is `frozen`: an argument, never optimised and never checkpointed here.
"""

import dataclasses
from collections.abc import Callable, Iterable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lDM_jax import image, losses, rng, samplers
from lDM_jax.arrays import Array, Batch, Cond
from lDM_jax.codec import Codec
from lDM_jax.diffusion import Process
from lDM_jax.guidance import classifier_free
from lDM_jax.training.state import Stage, TrainState, ema_update


@dataclasses.dataclass(frozen=True)
class Model:
    """The networks of the second stage and how they meet.

    `params` is {"unet": ..., "conditioner": ...}.
    """

    unet: nn.Module
    conditioner: nn.Module
    process: Process
    codec: Codec

    def init(self, key: Array, batch: Batch, z0: Array) -> dict:
        """Random parameters from one example batch and its latents."""
        unet_key, cond_key = rng.stream(key, "unet"), rng.stream(key, "conditioner")
        cond, cond_params = self.conditioner.init_with_output(cond_key, batch)
        t = jnp.zeros(z0.shape[0], jnp.int32)
        unet_params = self.unet.init(unet_key, z0, t, cond)
        return {"unet": unet_params, "conditioner": cond_params}

    def condition(self, params: dict, batch: Batch, drop: Array | None = None) -> Cond:
        """Batch -> Cond, without dropout."""
        return self.conditioner.apply(params["conditioner"], batch, drop)

    def denoise(self, params: dict, z_t: Array, t: Array, cond: Cond) -> Array:
        """One network evaluation, without dropout."""
        return self.unet.apply(params["unet"], z_t, t, cond)


def make_stage(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    example_batch: Batch,
    latent_shape: tuple[int, int, int],
    drop_rate: float = 0.1,
    loss: str = "l2",
    weighting: str = "uniform",
    ema_decay: float = 0.9999,
    preview_steps: int = 50,
    preview_guidance: float = 1.0,
) -> Stage:
    """The denoiser's stage. `frozen` holds the first stage's parameters.

    example_batch: shapes of one batch; latent_shape: (h, w, c) of its latents.
    """
    process, codec = model.process, model.codec
    losses.check_kind(loss)
    process.loss_weight(jnp.zeros(1, jnp.int32), kind=weighting)

    def init(key: Array) -> TrainState:
        batch = {name: jnp.asarray(value[:1]) for name, value in example_batch.items()}
        params = model.init(key, batch, jnp.zeros((1, *latent_shape)))
        return TrainState.create(params, optimizer)

    def batch_loss(params, frozen, batch: Batch, key: Array):
        moments = batch.get("moments")
        if moments is None:
            moments = jax.lax.stop_gradient(codec.moments(frozen, batch["image"]))
        z0 = codec.sample(moments, rng.stream(key, "latent"))
        rows = z0.shape[0]
        t = process.sample_times(rng.stream(key, "time"), rows)
        eps = jax.random.normal(rng.stream(key, "noise"), z0.shape)
        drop = jax.random.bernoulli(rng.stream(key, "drop"), drop_rate, (rows,))
        dropout = {"dropout": rng.stream(key, "dropout")}
        cond = model.conditioner.apply(
            params["conditioner"], batch, drop, True, rngs=dropout
        )
        z_t = process.q_sample(z0, eps, t)
        prediction = model.unet.apply(params["unet"], z_t, t, cond, True, rngs=dropout)
        weight = process.loss_weight(t, kind=weighting)
        total, error = losses.diffusion_loss(
            prediction, process.target(z0, eps, t), weight=weight, kind=loss
        )
        return total, {"loss": total, "error": error.mean()}

    def step(state: TrainState, frozen, batch: Batch, key: Array):
        grads, scalars = jax.grad(batch_loss, has_aux=True)(
            state.params, frozen, batch, key
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        scalars["gnorm"] = optax.tree.norm(grads)
        ema = ema_update(state.ema, params, ema_decay, state.step + 1)
        return TrainState(state.step + 1, params, ema, opt_state), scalars

    sample = jax.jit(make_sampler(model, steps=preview_steps), static_argnums=(3,))

    def preview(state: TrainState, frozen, batch: Batch, key: Array):
        del key
        rows = {name: jnp.asarray(value[:16]) for name, value in batch.items()}
        keys = rng.seed_keys(range(len(next(iter(rows.values())))))
        x = sample(state.ema, frozen, rows, latent_shape, keys, preview_guidance)
        return {"samples": image.grid(image.to_uint8(x))}

    held_out_loss = jax.jit(lambda *args: batch_loss(*args)[1]["loss"])

    def evaluate(state: TrainState, frozen, batches: Iterable[Batch]):
        root, values = jax.random.key(0), []
        for index, batch in enumerate(batches):
            rows = int(np.sum(batch["weight"]))
            whole = {n: v[:rows] for n, v in batch.items() if n != "weight"}
            key = rng.key(root, "evaluate", index)
            values.append((float(held_out_loss(state.ema, frozen, whole, key)), rows))
        count = sum(rows for _, rows in values)
        return {"loss": sum(value * rows for value, rows in values) / count}

    return Stage(init=init, step=step, preview=preview, evaluate=evaluate)


def make_sampler(model: Model, *, steps: int, sampler: str = "ddim") -> Callable:
    """(params, frozen, batch, latent_shape, keys, guidance) -> pixels, one trajectory.

    Row i depends on keys[i] and its own conditions alone.
    """
    grid = model.process.grid(steps)

    def sample(params, frozen, batch: Batch, latent_shape, keys: Array, guidance):
        rows = keys.shape[0]
        cond = model.condition(params, batch)
        null = model.condition(params, batch, jnp.ones(rows, bool))
        denoise = classifier_free(
            lambda z, t, cond: model.denoise(params, z, t, cond), cond, null, guidance
        )
        z = rng.normal_per_seed(keys, latent_shape)
        z = samplers.sample(
            denoise, z, model.process, grid=grid, sampler=sampler, keys=keys
        )
        return model.codec.decode(frozen, z)

    return sample
