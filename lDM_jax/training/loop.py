"""The only training loop. It never knows what it trains: it drives a `Stage`.

Owns the order in which a run updates, saves and looks. `settings` has the numbers,
`update_guard` the update, `recorder` the log, `workdir` the directory and its lock,
`checkpoint` the files, `distributed` the other processes. The key of step k is
rng.key(root, "step", k), so that a resumed run is bit-equal to an uninterrupted one.
The scalars of step k are waited for while step k + 1 runs: the device always has a step
before it.
"""

import contextlib
import logging
from pathlib import Path
from typing import Any

import jax

from lDM_jax.core import image, rng, sharding
from lDM_jax.core.distributed import is_first, preemption, whole
from lDM_jax.core.errors import UserError
from lDM_jax.core.sharding import Mesh, put_replicated
from lDM_jax.training.recorder import Diverged, Recorder
from lDM_jax.training.settings import Due, LoopSettings, loop_settings
from lDM_jax.training.state import start_from
from lDM_jax.training.update_guard import Guard, jit_update
from lDM_jax.training.workdir import WorkDirectory
from lDM_jax.weights.checkpoint import ALL, POST_MORTEM, SNAPSHOTS, Checkpoints, Keep

log = logging.getLogger(__name__)
PREVIEW_ROWS = 16


def run(experiment: Any, workdir: str, *, mesh: Mesh, image_flops: float = 0.0) -> int:
    """Train `experiment` (see experiment.Experiment) in `workdir` up to its last step.

    Continues from the newest whole checkpoint. image_flops: of one training image, for
    the MFU; 0 is not known. Returns 0, also after SIGTERM or SIGINT to any process,
    which finish the step and save. Raises UserError for a directory of another config,
    a second run in it, a batch that does not split over the devices, a loss that stays
    non-finite, or a failing disk.
    """
    judged = getattr(experiment, "judge", None) is not None
    settings = loop_settings(experiment.config, judged=judged)
    sharding.check_batch_size(mesh, settings.batch_size, settings.accumulate_steps)
    try:
        with WorkDirectory(Path(workdir), experiment.config) as directory:
            try:
                return train(experiment, settings, directory, mesh, image_flops)
            except (UserError, OSError):
                directory.check()  # if it vanished, that is what to say
                raise
    except OSError as error:
        raise UserError(
            f"work directory {workdir} cannot be used: {error}; "
            "the last whole checkpoint is intact"
        ) from None


def train(
    experiment: Any,
    settings: LoopSettings,
    directory: WorkDirectory,
    mesh: Mesh,
    image_flops: float,
) -> int:
    """The loop. Do not change the order: batch, update, record, save, then look."""
    stage, iterator, last = experiment.stage, experiment.iterator, settings.num_steps
    root = jax.random.key(settings.seed)
    frozen = put_replicated(mesh, experiment.frozen)
    shardings = sharding.state_sharding(mesh, jax.eval_shape(stage.init, root))
    update = jit_update(stage, mesh, shardings, root=root, limits=settings.limits)
    done, pending, stopping = 0, None, False
    with preemption() as stop, contextlib.ExitStack() as stack:
        storage = Storage(directory, iterator, settings)
        stack.callback(storage.close)
        state, guard, start = storage.restore_or_init(experiment, shardings, mesh)
        recorder = Recorder(directory, settings, start, guard, image_flops)
        stack.callback(recorder.close)
        try:
            for done in range(start + 1, last + 1):
                # 1. the batch; the iterator's state is now the one behind it
                with recorder.waiting():
                    rows = next(iterator)
                batch = sharding.put_batch(mesh, rows)
                # 2. one update, dispatched
                with recorder.dispatching():
                    state, guard, scalars = update(state, guard, frozen, batch)
                # 3. the scalars of the step before, waited for while this one runs
                recorder.record(pending)
                pending, stopping = (done, scalars), stop.at(done)
                due = settings.due(done, stopping=stopping)
                if not any(due):
                    continue
                # 4. a run that the guard has ended saves nothing as if it were well
                recorder.record(pending, check=True)
                pending = figures = None
                storage.checkpoints.check()
                if due.measures and settings.keep.best and not stopping:
                    figures = measure(experiment, state, frozen, due)
                # 5. checkpoint, at the last step and on a signal always
                storage.save(done, state, guard, due, figures)
                if stopping:
                    break
                # 6. look at it; this time is not training time
                if due.previews:
                    preview(stage, state, frozen, batch, root, directory, done)
                if due.measures:
                    figures = figures or measure(experiment, state, frozen, due)
                    recorder.evaluation(done, figures)
                if due.previews or due.measures or done == last:
                    recorder.report()
                recorder.restart_clock(done)
            storage.checkpoints.wait()
        except Diverged as trouble:
            storage.end(trouble, done, state, guard)
    if stopping:
        log.info("stopped by a signal at step %d; the same command continues", done)
    return 0


class Storage:
    """What a run keeps in its directory: checkpoints, and snapshots of its averages."""

    def __init__(self, directory: WorkDirectory, iterator, settings: LoopSettings):
        self.directory, self.iterator, self.settings = directory, iterator, settings
        self.checkpoints = Checkpoints(directory.path, keep=settings.keep)
        self.snapshots = None
        if settings.averages_every_steps:
            self.snapshots = Checkpoints(directory.path, keep=ALL, folder=SNAPSHOTS)

    def restore_or_init(self, experiment, shardings, mesh: Mesh):
        """(state, guard, step): of the newest whole checkpoint with its data, or new.

        The snapshot of that step is written again: a kill may have lost it.
        """
        key = rng.stream(jax.random.key(self.settings.seed), "init")
        init = jax.jit(experiment.stage.init, out_shardings=shardings)
        stored = self.checkpoints.restore_latest(jax.eval_shape(init, key))
        if stored is None:
            guard = put_replicated(mesh, Guard.start())
            return start_from(init(key), experiment.initial), guard, 0
        self.iterator.set_state(stored.iterator)
        guard = Guard.from_record(stored.guard) if stored.guard else Guard.start()
        log.info("continuing from step %d", stored.step)
        if stored.step >= self.settings.num_steps:
            log.info("nothing to do: train.num_steps = %d", self.settings.num_steps)
        if stored.step and self.settings.due(stored.step).averages:
            self.save_averages(stored.step, stored.state)
        return stored.state, put_replicated(mesh, guard), stored.step

    def save(self, step: int, state, guard, due: Due, figures: dict | None) -> None:
        """What is due. UserError if the best checkpoint's metric is not measured."""
        judges = due.judges or not self.settings.judge_every_steps
        if figures and due.evaluates and judges:  # every figure that there ever is
            self.settings.keep.check(figures)
        if due.saves:
            self.directory.check()
            self._write(self.checkpoints, step, state, guard, metrics=figures)
        if due.averages:
            self.save_averages(step, state)

    def save_averages(self, step: int, state) -> None:
        """A snapshot; one that is there from before a kill is the same."""
        self.snapshots.save(step, state.profiles, {}, self.directory.stored_config)

    def _write(self, checkpoints: Checkpoints, step: int, state, guard, **rest) -> None:
        iterator, config = self.iterator.get_state(), self.directory.stored_config
        checkpoints.save(step, state, iterator, config, guard=guard.record(), **rest)

    def end(self, trouble: Diverged, step: int, state, guard) -> None:
        """Save the state for the post-mortem and raise UserError."""
        self.checkpoints.wait()
        remains = Checkpoints(self.directory.path, keep=Keep(1), folder=POST_MORTEM)
        self._write(remains, step, state, guard)
        remains.close()
        steps = self.checkpoints.steps()
        before = f"step {steps[-1]}" if steps else "no step yet"
        raise UserError(
            f"{trouble}; the state before these updates is in "
            f"{remains.folder / str(step)}, the last checkpoint is of {before}; lower "
            "the learning rate, clip gradients (optimizer.clip_norm), or look at the "
            "data"
        )

    def close(self) -> None:
        """Close both, and the data's workers, whatever happens."""
        with contextlib.ExitStack() as stack:
            if hasattr(self.iterator, "close"):
                stack.callback(self.iterator.close)
            for checkpoints in filter(None, (self.checkpoints, self.snapshots)):
                stack.callback(checkpoints.close)


def measure(experiment, state, frozen, due: Due) -> dict:
    """What is due of the stage's held-out figures and of `experiment.judge`'s."""
    figures = {}
    if due.evaluates:
        batches = experiment.eval_batches()
        figures |= experiment.stage.evaluate(state, frozen, batches)
    if due.judges:
        figures |= experiment.judge(state.ema, int(state.step))
    return figures


def preview(stage, state, frozen, batch, root, directory, step: int) -> None:
    """Write the stage's previews; only process 0 writes."""
    if jax.process_count() > 1:  # global arrays: their first rows, on every host
        batch = {name: whole(rows[:PREVIEW_ROWS]) for name, rows in batch.items()}
    images = stage.preview(state, frozen, batch, rng.stream(root, "preview"))
    if not is_first():
        return
    folder = directory.path / "previews"
    folder.mkdir(exist_ok=True)
    for name, pixels in images.items():
        image.write_png(folder / f"{step:07d}_{name}.png", pixels)
