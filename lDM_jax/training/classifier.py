"""Stage 2, in place of the denoiser: a classifier of noisy latents as a `Stage`.

    z_t = alpha_t z0 + sigma_t eps,  t ~ process
    loss = -log softmax(classifier(z_t, t))[label]

What classifier guidance needs: it must know the classes at every noise level, and its
gradient by z_t is what guides. Nothing else of a second stage is involved.
"""

import dataclasses
from collections.abc import Iterable
from functools import cached_property

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
from lDM_jax.training.state import Averages, TrainState, apply_gradients


@dataclasses.dataclass(frozen=True, eq=False)
class ClassifierStage:
    """The classifier's `Stage`; `frozen` holds "first_stage".

    Batches have `label` and `moments` or `image`. latent_shape: (h, w, c).
    accumulate_steps: as in `training.diffusion.DiffusionStage`.
    """

    network: LatentClassifier
    process: Process
    codec: Codec
    optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    latent_shape: tuple[int, int, int]
    averages: Averages = Averages()
    accumulate_steps: int = 1

    def init(self, key: Array) -> TrainState:
        """Random parameters of the classifier."""
        z = jnp.zeros((1, *self.latent_shape))
        params = self.network.init(rng.stream(key, "unet"), z, jnp.zeros(1, jnp.int32))
        return TrainState.create(params, self.optimizer)

    def step(self, state: TrainState, frozen, batch: Batch, key: Array):
        """One update of the classifier."""
        z0, t = self._latents_and_times(frozen, batch, key)
        dropout_key = rng.stream(key, "dropout")

        def part_loss(params, rows, index):
            rngs = {"dropout": jax.random.fold_in(dropout_key, index)}
            loss, hits = self._judge(params, *rows, rngs=rngs)
            return loss.mean(), {"loss": loss.mean(), "accuracy": hits.mean()}

        rows = self._noisy(z0, t, key), t, batch["label"]
        grads, scalars = mean_gradients(
            part_loss, state.params, rows, self.accumulate_steps
        )
        state, norms = apply_gradients(state, grads, self.optimizer, self.averages)
        return state, {**scalars, **norms}

    def preview(self, state: TrainState, frozen, batch: Batch, key: Array):
        """Nothing to look at."""
        del state, frozen, batch, key
        return {}

    def evaluate(self, state: TrainState, frozen, batches: Iterable[Batch]):
        """Loss and accuracy at random times, accuracy_clean at the first one."""
        root, parts = jax.random.key(0), []
        for index, batch in enumerate(batches):
            real = np.asarray(batch["weight"]) > 0
            rest = {name: v for name, v in batch.items() if name != "weight"}
            key = rng.key(root, "evaluate", index)
            rows = self._held_out(state.ema, frozen, rest, key)
            parts.append({name: np.asarray(v)[real] for name, v in rows.items()})
        return {
            name: float(np.concatenate([part[name] for part in parts]).mean())
            for name in parts[0]
        }

    def _latents_and_times(self, frozen, batch: Batch, key: Array):
        """(z0, t) of a batch."""
        moments = batch.get("moments")
        if moments is None:
            moments = self.codec.moments(frozen["first_stage"], batch["image"])
        z0 = self.codec.sample(moments, rng.stream(key, "latent"))
        z0 = jax.lax.stop_gradient(z0)
        return z0, self.process.sample_times(rng.stream(key, "time"), len(z0))

    def _noisy(self, z0: Array, t: Array, key: Array) -> Array:
        eps = jax.random.normal(rng.stream(key, "noise"), z0.shape)
        return self.process.q_sample(z0, eps, t)

    def _judge(self, params, z: Array, t: Array, label: Array, rngs=None):
        """(cross entropy f32 "b", 1 where the best class is the label f32 "b")."""
        logits = self.network.apply(params, z, t, rngs is not None, rngs=rngs)
        rows = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        hits = jnp.argmax(logits, axis=-1) == label
        return rows, hits.astype(jnp.float32)

    @cached_property
    def _held_out(self):
        """(params, frozen, batch, key) -> figures of each row, compiled."""

        def figures(params, frozen, batch: Batch, key: Array):
            z0, t = self._latents_and_times(frozen, batch, key)
            label = batch["label"]
            rows, hits = self._judge(params, self._noisy(z0, t, key), t, label)
            first = jnp.zeros_like(t) + jnp.asarray(self.process.continuous, t.dtype)
            z_first = self._noisy(z0, first, key)
            _, clean = self._judge(params, z_first, first, label)
            return {"loss": rows, "accuracy": hits, "accuracy_clean": clean}

        return jax.jit(figures)
