"""A toy experiment for the loop's tests: linear regression, run as a program.

    python tests/toy_run.py WORKDIR KEY=VALUE...

Prints nothing but the loop's log; exits as train.py does. With JAX_COORDINATOR_ADDRESS,
JAX_NUM_PROCESSES and JAX_PROCESS_ID it is one of several processes.
"""

import json
import logging
import os
import sys
import time
from types import SimpleNamespace

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lDM_jax.core import distributed
from lDM_jax.core.errors import UserError
from lDM_jax.core.sharding import make_mesh
from lDM_jax.training import loop
from lDM_jax.training.optim import make_optimizer
from lDM_jax.training.state import (
    Averages,
    TrainState,
    apply_gradients,
    with_profiles,
)
from lDM_jax.weights.checkpoint import quiet_orbax

WIDTH = 6


class Rows:
    """Batch k is a function of k; the state is k. Every process has its rows of it."""

    def __init__(self, batch_size: int, delay_secs: float):
        self.next, self.batch_size, self.delay_secs = 0, batch_size, delay_secs
        own = batch_size // jax.process_count()
        self.own = slice(own * jax.process_index(), own * (jax.process_index() + 1))

    def __next__(self):
        rng = np.random.default_rng(self.next)
        self.next += 1
        time.sleep(self.delay_secs)
        x = rng.standard_normal((self.batch_size, WIDTH)).astype(np.float32)
        y = x @ np.arange(WIDTH, dtype=np.float32)
        return {"x": x[self.own], "y": y[self.own]}

    def get_state(self):
        return {"next": self.next}

    def set_state(self, state):
        self.next = state["next"]


def config(**changes) -> ConfigDict:
    """A config with the sections the loop reads."""
    train = dict(
        batch_size=8,
        num_steps=60,
        log_every_steps=10,
        preview_every_steps=0,
        eval_every_steps=0,
        checkpoint_every_steps=10,
        keep_checkpoints=3,
        keep_every_steps=0,
        keep_best=0,
        best_metric="distance",
        best_mode="min",
        accumulate_steps=1,
        max_skipped_steps=5,
        skip_spike_sigmas=0.0,
        ema_stds=(),
        ema_snapshot_every_steps=0,
        fd_every_steps=0,
        wandb="",
    )
    train.update({k: v for k, v in changes.items() if k in train})
    rest = {k: v for k, v in changes.items() if k not in train}
    base = {"delay_secs": 0.0, "nan_at_step": -1, "nan_steps": 1, "rate": 0.03}
    base |= {"ballast": 0, "fsdp": 1}
    return ConfigDict({"seed": 0, "train": train, **base, **rest})


def experiment(settings: ConfigDict) -> SimpleNamespace:
    """What loop.run needs."""
    optimizer, _ = make_optimizer(learning_rate=settings.rate, weight_decay=0.01)
    averages = Averages(decay=0.9, stds=tuple(settings.train.ema_stds))

    def init(key):
        params = {"w": jax.random.normal(key, (WIDTH,)), "b": jnp.zeros(())}
        if settings.ballast:  # numbers that take time to write
            params["ballast"] = jax.random.normal(key, (settings.ballast,))
        state = TrainState.create(params, optimizer)
        return with_profiles(state, len(averages.stds))

    def step(state, frozen, batch, key):
        def loss(params):
            noise = 0.1 * jax.random.normal(key, batch["y"].shape)
            error = batch["x"] @ params["w"] + params["b"] - batch["y"] - noise
            return jnp.mean(error**2)

        value, grads = jax.value_and_grad(loss)(state.params)
        since = state.step + 1 - settings.nan_at_step
        bad = (settings.nan_at_step >= 0) & (since >= 0) & (since < settings.nan_steps)
        value = jnp.where(bad, jnp.nan, value)
        state, _ = apply_gradients(state, grads, optimizer, averages)
        return state, {"loss": value, "gnorm": jnp.abs(grads["b"])}

    def preview(state, frozen, batch, key):
        return {"toy": np.full((4, 4, 3), 128, np.uint8)}

    def evaluate(state, frozen, batches):
        w = distributed.whole(state.ema["w"])
        return {"distance": float(np.abs(w - np.arange(WIDTH)).max())}

    return SimpleNamespace(
        config=settings,
        stage=SimpleNamespace(init=init, step=step, preview=preview, evaluate=evaluate),
        frozen={},
        iterator=Rows(settings.train.batch_size, settings.delay_secs),
        eval_batches=list,
        initial={},
    )


def main(argv: list[str]) -> int:
    changes = dict(part.split("=") for part in argv[2:])
    settings = config(**{name: json.loads(value) for name, value in changes.items()})
    quiet_orbax()
    form = dict(format="%(message)s", stream=sys.stdout, force=True)
    logging.basicConfig(level=logging.INFO, **form)
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        distributed.start()
        mesh = make_mesh(fsdp=settings.fsdp)
        return loop.run(experiment(settings), argv[1], mesh=mesh)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv))
