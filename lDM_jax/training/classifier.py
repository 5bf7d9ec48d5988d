"""Stage "classifier": init, step, preview and evaluate of a classifier of latents.

    z_t = alpha_t z0 + sigma_t eps,  t ~ process
    loss = -log softmax(classifier(z_t, t))[label]

What classifier guidance needs: it must know the classes at every noise level, and its
gradient by z_t is what guides. Nothing else of a second stage is involved.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lDM_jax.core import rng
from lDM_jax.core.arrays import Array, Batch
from lDM_jax.diffusion.codec import Codec
from lDM_jax.diffusion.process import Process
from lDM_jax.models.latent_classifier import LatentClassifier
from lDM_jax.training.accumulation import mean_gradients
from lDM_jax.training.state import Averages, Stage, TrainState, apply_gradients


def make_stage(
    network: LatentClassifier,
    process: Process,
    codec: Codec,
    optimizer: optax.GradientTransformation,
    *,
    latent_shape: tuple[int, int, int],
    ema_decay: float = 0.9999,
    ema_std: float = 0.0,
    accumulate_steps: int = 1,
) -> Stage:
    """The classifier's stage; `frozen` holds "first_stage".

    Batches have `label` and `moments` or `image`. Held-out figures: loss and accuracy
    over random times, and accuracy_clean at the first one. accumulate_steps: as in
    `training.diffusion.make_stage`.
    """
    averages = Averages(ema_decay, ema_std)

    def init(key: Array) -> TrainState:
        z = jnp.zeros((1, *latent_shape))
        params = network.init(rng.stream(key, "unet"), z, jnp.zeros(1, jnp.int32))
        return TrainState.create(params, optimizer)

    def latents(frozen, batch: Batch, key: Array) -> Array:
        moments = batch.get("moments")
        if moments is None:
            moments = codec.moments(frozen["first_stage"], batch["image"])
        return jax.lax.stop_gradient(codec.sample(moments, rng.stream(key, "latent")))

    def noisy(z0: Array, t: Array, key: Array) -> Array:
        eps = jax.random.normal(rng.stream(key, "noise"), z0.shape)
        return process.q_sample(z0, eps, t)

    def judge(params, z, t, label, rngs=None):
        logits = network.apply(params, z, t, rngs is not None, rngs=rngs)
        rows = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        hits = jnp.argmax(logits, axis=-1) == label
        return rows, hits.astype(jnp.float32)

    def step(state: TrainState, frozen, batch: Batch, key: Array):
        z0 = latents(frozen, batch, key)
        t = process.sample_times(rng.stream(key, "time"), len(z0))
        dropout_key = rng.stream(key, "dropout")

        def part_loss(params, rows, index):
            rngs = {"dropout": jax.random.fold_in(dropout_key, index)}
            loss, hits = judge(params, *rows, rngs=rngs)
            return loss.mean(), {"loss": loss.mean(), "accuracy": hits.mean()}

        rows = noisy(z0, t, key), t, batch["label"]
        grads, scalars = mean_gradients(part_loss, state.params, rows, accumulate_steps)
        state, norms = apply_gradients(state, grads, optimizer, averages)
        return state, {**scalars, **norms}

    def preview(state: TrainState, frozen, batch: Batch, key: Array):
        del state, frozen, batch, key
        return {}

    @jax.jit
    def held_out(params, frozen, batch: Batch, key: Array):
        z0 = latents(frozen, batch, key)
        t = process.sample_times(rng.stream(key, "time"), len(z0))
        rows, hits = judge(params, noisy(z0, t, key), t, batch["label"])
        first = jnp.zeros_like(t) + jnp.asarray(process.continuous, t.dtype)
        _, clean = judge(params, noisy(z0, first, key), first, batch["label"])
        return {"loss": rows, "accuracy": hits, "accuracy_clean": clean}

    def evaluate(state: TrainState, frozen, batches: Iterable[Batch]):
        root, parts = jax.random.key(0), []
        for index, batch in enumerate(batches):
            real = np.asarray(batch["weight"]) > 0
            rest = {name: v for name, v in batch.items() if name != "weight"}
            found = held_out(state.ema, frozen, rest, rng.key(root, "evaluate", index))
            parts.append({name: np.asarray(v)[real] for name, v in found.items()})
        return {
            name: float(np.concatenate([part[name] for part in parts]).mean())
            for name in parts[0]
        }

    return Stage(init=init, step=step, preview=preview, evaluate=evaluate)
