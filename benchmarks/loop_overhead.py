"""What the loop adds to a step: its time a step against the bare jitted update.

    python benchmarks/loop_overhead.py [--config=configs/emoji.py] [--steps=60]

Both train the same config from the same state on the same batches. The bare side calls
the compiled update on batches that lie on the device; the loop also loads data, logs
and evaluates nothing. The two take turns, so that a busy machine slows both alike; the
medians of their turns are compared.
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from lDM_jax.core import rng
from lDM_jax.core.sharding import make_mesh, put_batch, put_replicated, state_sharding
from lDM_jax.training import experiment as experiment_lib
from lDM_jax.training import loop
from lDM_jax.training.recorder import Recorder
from lDM_jax.training.settings import loop_settings
from lDM_jax.training.update_guard import Guard, jit_update
from lDM_jax.weights.checkpoint import quiet_orbax

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", "configs/emoji.py", "Config file.")
flags.DEFINE_integer("steps", 60, "Steps a turn.")
flags.DEFINE_integer("turns", 3, "Turns of each side.")


def time_update(experiment, mesh, batches: list, steps: int) -> float:
    """Seconds a step of the update alone, all of it under way at once."""
    config, root = experiment.config, jax.random.key(experiment.config.seed)
    key = rng.stream(root, "init")
    shardings = state_sharding(mesh, jax.eval_shape(experiment.stage.init, key))
    limits = loop_settings(config).limits
    update = jit_update(experiment.stage, mesh, shardings, root=root, limits=limits)
    state = jax.jit(experiment.stage.init, out_shardings=shardings)(key)
    guard = put_replicated(mesh, Guard.start())
    frozen = put_replicated(mesh, experiment.frozen)
    state, guard, scalars = update(state, guard, frozen, batches[0])  # compiles
    jax.block_until_ready(state)
    begin = time.perf_counter()
    for step in range(steps):
        batch = batches[step % len(batches)]
        state, guard, scalars = update(state, guard, frozen, batch)
        scalars["loss"].block_until_ready()
    jax.block_until_ready(state)
    return (time.perf_counter() - begin) / steps


def time_loop(experiment, mesh, steps: int) -> tuple[float, float]:
    """(seconds a step of the loop after its first log line, share of input wait)."""
    rows: list[tuple[int, float, float]] = []

    class Watch(Recorder):
        def _append(self, group, step, values):
            rows.append((step, time.perf_counter(), values["input_wait"]))
            super()._append(group, step, values)

    original, loop.Recorder = loop.Recorder, Watch
    try:
        with tempfile.TemporaryDirectory() as folder:
            loop.run(experiment, folder, mesh=mesh)
    finally:
        loop.Recorder = original
    (first, begin, _), (last, end, _) = rows[0], rows[-2]
    assert last - first >= steps
    return (end - begin) / (last - first), float(np.mean([row[2] for row in rows]))


def main(argv) -> None:
    del argv
    quiet_orbax()
    steps, mesh = FLAGS.steps, make_mesh()
    config = FLAGS.config
    config.optimizer.warmup_steps = 0  # which may be longer than these few steps
    # One log line before the measured steps, one after them, one more at the end.
    config.train.update(
        dict(
            num_steps=10 * -(-steps // 10) + 20,
            log_every_steps=10,
            preview_every_steps=0,
            eval_every_steps=0,
            checkpoint_every_steps=0,
        )
    )
    experiment = experiment_lib.make(config)
    beginning = experiment.iterator.get_state()
    batches = [put_batch(mesh, next(experiment.iterator)) for _ in range(8)]
    sides: dict[str, list[float]] = {"bare": [], "loop": []}
    waits = []
    for turn in range(FLAGS.turns):
        sides["bare"].append(time_update(experiment, mesh, batches, steps))
        experiment.iterator.set_state(beginning)
        secs, wait = time_loop(experiment, mesh, steps)
        sides["loop"].append(secs)
        waits.append(wait)
        text = ", ".join(f"{k} {1e3 * v[-1]:.2f} ms" for k, v in sides.items())
        print(f"turn {turn}: {text}, input wait {wait:.1%}", flush=True)
    medians = {name: float(np.median(values)) for name, values in sides.items()}
    print(
        f"median a step: bare {1e3 * medians['bare']:.2f} ms, loop "
        f"{1e3 * medians['loop']:.2f} ms, overhead "
        f"{medians['loop'] / medians['bare'] - 1:+.2%}"
    )


if __name__ == "__main__":
    app.run(main)
