"""The only training loop. It never knows what it trains: it drives a `Stage`.

Owns the moments at which a run saves, looks and stops. `guard` has the update,
`recorder` the log, `workdir` the directory and its lock, `checkpoint` the files,
`distributed` the other processes. The key of step k is rng.key(root, "step", k), so
that a resumed run is bit-equal to an uninterrupted one. The scalars of step k are
waited for while step k + 1 runs: the device always has a step before it.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from lDM_jax.core import image, rng
from lDM_jax.core.distributed import first_rows, is_first, preemption
from lDM_jax.core.errors import UserError
from lDM_jax.core.sharding import (
    Mesh,
    check_batch_size,
    put_batch,
    put_replicated,
    state_sharding,
)
from lDM_jax.training.recorder import Diverged, Recorder, due
from lDM_jax.training.state import start_from
from lDM_jax.training.update_guard import Guard, Limits, jit_update
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
    config = experiment.config.train
    check_batch_size(mesh, config.batch_size, config.accumulate_steps)
    try:
        with WorkDirectory(Path(workdir), experiment.config) as directory:
            try:
                return train(experiment, directory, mesh, image_flops)
            except (UserError, OSError):
                directory.check()  # if it vanished, that is what to say
                raise
    except OSError as error:
        raise UserError(
            f"work directory {workdir} cannot be used: {error}; "
            "the last whole checkpoint is intact"
        ) from None


def train(
    experiment: Any, directory: WorkDirectory, mesh: Mesh, image_flops: float = 0.0
) -> int:
    """The loop. Do not change the order: batch, update, record, save, then look."""
    config, stage = experiment.config.train, experiment.stage
    iterator, last = experiment.iterator, config.num_steps
    root = jax.random.key(experiment.config.seed)
    frozen = put_replicated(mesh, experiment.frozen)
    init_key = rng.stream(root, "init")
    shardings = state_sharding(mesh, jax.eval_shape(stage.init, init_key))
    update = jit_update(stage, mesh, shardings, root=root, limits=limits_of(config))
    keep = keep_of(config)
    checkpoints = Checkpoints(directory.path, keep=keep)
    averages_every = snapshots_every(config)
    judge = getattr(experiment, "judge", None)
    done = pending = None
    stopping = False

    with preemption() as stop, closing(checkpoints, iterator) as opened:
        if averages_every:
            snapshots = opened(Checkpoints(directory.path, keep=ALL, folder=SNAPSHOTS))
        state, guard, start = restore_or_init(
            experiment, checkpoints, init_key, shardings, mesh
        )
        if start and due(start, averages_every, last):  # a kill may have lost it
            snapshots.save(start, state.profiles, {}, directory.stored_config)
        known = dict(image_flops=image_flops, skipped=int(guard.skipped))
        recorder = opened(Recorder(directory, config, start, **known))
        try:
            for done in range(start + 1, last + 1):
                # 1. the batch; the iterator's state is now the one behind it
                with recorder.waiting():
                    rows = next(iterator)
                batch = put_batch(mesh, rows)
                # 2. one update, dispatched
                with recorder.dispatching():
                    state, guard, scalars = update(state, guard, frozen, batch)
                # 3. the scalars of the step before, waited for while this one runs
                recorder.record(pending)
                pending, stopping = (done, scalars), stop.at(done)
                saves = due(done, config.checkpoint_every_steps, last) or done == last
                previews = due(done, config.preview_every_steps, last)
                evaluates = due(done, config.eval_every_steps, last)
                judges = judge and due(done, config.fd_every_steps, last)
                averages = due(done, averages_every, last)
                looks = previews or evaluates or judges
                if not (saves or averages or looks or stopping):
                    continue
                # 4. a run that the guard has ended saves nothing as if it were well
                recorder.record(pending, check=True)
                pending, figures = None, None
                checkpoints.check()
                if (evaluates or judges) and keep.best and not stopping:
                    figures = measure(experiment, state, frozen, evaluates, judges)
                    if evaluates and (judges or not judge):
                        keep.check(figures)
                # 5. checkpoint, at the last step and on a signal always
                if saves or stopping:
                    directory.check()
                    checkpoints.save(
                        done,
                        state,
                        iterator.get_state(),
                        directory.stored_config,
                        guard=guard.record(),
                        metrics=figures,
                    )
                if averages:  # one that is there from before a kill is the same
                    snapshots.save(done, state.profiles, {}, directory.stored_config)
                if stopping:
                    break
                # 6. look at it; this time is not training time
                if previews:
                    preview(stage, state, frozen, batch, root, directory, done)
                if evaluates or judges:
                    figures = figures or measure(
                        experiment, state, frozen, evaluates, judges
                    )
                    recorder.evaluation(done, figures)
                if looks or done == last:
                    recorder.report()
                recorder.restart_clock(done)
            checkpoints.wait()
        except Diverged as trouble:
            end(trouble, checkpoints, directory, done, state, guard, iterator)
    if stopping:
        log.info("stopped by a signal at step %d; the same command continues", done)
    elif start >= last:
        log.info("nothing to do: step %d of train.num_steps = %d is done", start, last)
    return 0


def measure(experiment, state, frozen, evaluates: bool, judges: bool) -> dict:
    """What is due of the stage's held-out figures and of `experiment.judge`'s."""
    figures = {}
    if evaluates:
        batches = experiment.eval_batches()
        figures |= experiment.stage.evaluate(state, frozen, batches)
    if judges:
        figures |= experiment.judge(state.ema, int(state.step))
    return figures


def snapshots_every(config: ConfigDict) -> int:
    """After how many steps the averages for `training.posthoc` are stored; 0: never."""
    if not config.get("ema_stds", ()):
        return 0
    return config.ema_snapshot_every_steps or config.checkpoint_every_steps


def limits_of(config: ConfigDict) -> Limits:
    """The guard's limits of config.train."""
    return Limits(config.max_skipped_steps, config.skip_spike_sigmas)


def keep_of(config: ConfigDict) -> Keep:
    """Which checkpoints config.train keeps. UserError if "best" is never measured."""
    if config.keep_best and not config.eval_every_steps:
        raise UserError(
            f"config.train.keep_best = {config.keep_best} needs eval_every_steps above "
            "0, best a multiple of checkpoint_every_steps"
        )
    return Keep(
        latest=config.keep_checkpoints,
        every_steps=config.keep_every_steps,
        best=config.keep_best,
        metric=config.best_metric,
        mode=config.best_mode,
    )


def restore_or_init(experiment, checkpoints: Checkpoints, key, shardings, mesh: Mesh):
    """(state, guard, step): of the newest whole checkpoint with its data, or new."""
    init = jax.jit(experiment.stage.init, out_shardings=shardings)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        jax.eval_shape(experiment.stage.init, key),
        shardings,
    )
    found = checkpoints.restore_latest(abstract)
    if found is None:
        guard = put_replicated(mesh, Guard.start())
        return start_from(init(key), experiment.initial), guard, 0
    experiment.iterator.set_state(found.iterator)
    guard = Guard.from_record(found.guard) if found.guard else Guard.start()
    log.info("continuing from step %d", found.step)
    return found.state, put_replicated(mesh, guard), found.step


def end(trouble, checkpoints, directory, step: int, state, guard, iterator) -> None:
    """Save the state for the post-mortem and raise UserError."""
    checkpoints.wait()
    kept = Checkpoints(directory.path, keep=Keep(1), folder=POST_MORTEM)
    kept.save(
        step,
        state,
        iterator.get_state(),
        directory.stored_config,
        guard=guard.record(),
    )
    kept.close()
    steps = checkpoints.steps()
    before = f"step {steps[-1]}" if steps else "no step yet"
    raise UserError(
        f"{trouble}; the state before these updates is in {kept.folder / str(step)}, "
        f"the last checkpoint is of {before}; lower the learning rate, clip gradients "
        "(optimizer.clip_norm), or look at the data"
    )


def preview(stage, state, frozen, batch, root, directory, step: int) -> None:
    """Write the stage's preview pictures; only process 0 writes."""
    rows = first_rows(batch, PREVIEW_ROWS) if jax.process_count() > 1 else batch
    pictures = stage.preview(state, frozen, rows, rng.stream(root, "preview"))
    if not is_first():
        return
    folder = directory.path / "previews"
    folder.mkdir(exist_ok=True)
    for name, pixels in pictures.items():
        image.write_png(folder / f"{step:07d}_{name}.png", pixels)


@contextlib.contextmanager
def closing(*things: Any) -> Iterator[Callable[[Any], Any]]:
    """Close what can be closed, whatever happens; yields a function that adds one."""
    with contextlib.ExitStack() as stack:

        def opened(thing):
            if hasattr(thing, "close"):
                stack.callback(thing.close)
            return thing

        for thing in things:
            opened(thing)
        yield opened
