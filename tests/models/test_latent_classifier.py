"""The classifier of noisy latents: where it starts, and that it learns one batch."""

import jax
import numpy as np
import optax
import pytest

from lDM_jax.diffusion.codec import Codec
from lDM_jax.diffusion.process import Process
from lDM_jax.models.autoencoder import Identity
from lDM_jax.models.latent_classifier import LatentClassifier
from lDM_jax.training.classifier import ClassifierStage
from lDM_jax.training.state import Averages

CLASSES, FROZEN = 5, {"first_stage": {}}


def test_it_starts_at_chance_and_learns_one_batch():
    network = LatentClassifier(CLASSES, 8, (1, 2), 1, (2,), num_heads=2, num_groups=4)
    stage = ClassifierStage(
        network,
        Process.discrete(),
        Codec(Identity()),
        optax.adam(1e-2),
        latent_shape=(8, 8, 3),
        averages=Averages(0.5),
    )
    labels = np.arange(8, dtype=np.int32) % CLASSES
    # a class is a color: what remains to be seen through the noise
    colours = np.random.default_rng(0).normal(size=(CLASSES, 1, 1, 3))
    image = np.broadcast_to(colours[labels], (8, 8, 8, 3)).astype(np.float32)
    batch, key = {"image": image, "label": labels}, jax.random.key(0)
    state = jax.jit(stage.init)(key)
    held_out = [{**batch, "weight": np.ones(8, np.float32)}]
    first = stage.evaluate(state, FROZEN, held_out)
    # the last layer is zero: every class is as likely
    assert first["loss"] == pytest.approx(np.log(CLASSES), rel=1e-5)
    step = jax.jit(stage.step)
    for index in range(120):
        state, scalars = step(state, FROZEN, batch, jax.random.fold_in(key, index))
    last = stage.evaluate(state, FROZEN, held_out)
    assert last["loss"] < 0.9 * first["loss"]
    assert np.isfinite(scalars["gnorm"])
