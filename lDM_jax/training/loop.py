"""The only training loop. It never knows what it trains: it drives a `Stage`.

Owns the work directory: lock, config.json, metrics.jsonl, TensorBoard, previews and the
moments at which checkpoints are made. The key of step k is rng.key(root, "step", k), so
that a resumed run is bit-equal to an uninterrupted one. The scalars of step k are read
while step k + 1 runs: the host makes the device wait only where it saves or looks.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
from ml_collections import ConfigDict
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from lDM_jax import image, rng
from lDM_jax.arrays import UserError
from lDM_jax.training.checkpoint import Checkpoints
from lDM_jax.training.sharding import (
    Mesh,
    batch_sharding,
    check_batch_size,
    put_batch,
    replicated,
    state_sharding,
)
from lDM_jax.training.state import start_from

log = logging.getLogger(__name__)

# Values that may differ between a run and its continuation.
MAY_CHANGE = {
    f"train.{name}"
    for name in (
        "num_steps",
        "log_every_steps",
        "preview_every_steps",
        "eval_every_steps",
        "checkpoint_every_steps",
        "keep_checkpoints",
    )
} | {"data.num_workers", "mesh.data", "mesh.fsdp"}
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def run(experiment: Any, workdir: str, *, mesh: Mesh) -> int:
    """Train `experiment` (see experiment.Experiment) in `workdir` up to its last step.

    Continues from the newest whole checkpoint. Returns 0, also after SIGTERM or SIGINT,
    which finish the step and save. Raises UserError for a directory of another config,
    a second process, a batch that does not split over the devices, a non-finite loss or
    a failing disk.
    """
    check_batch_size(mesh, experiment.config.train.batch_size)
    try:
        with WorkDirectory(Path(workdir), experiment.config) as directory:
            return train(experiment, directory, mesh)
    except OSError as error:
        raise UserError(
            f"work directory {workdir} cannot be used: {error}; "
            "the last whole checkpoint is intact"
        ) from None


def train(experiment: Any, directory: "WorkDirectory", mesh: Mesh) -> int:
    """The loop. Do not change the order: batch, step, record, save, then look."""
    config, stage = experiment.config.train, experiment.stage
    iterator = experiment.iterator
    root = jax.random.key(experiment.config.seed)
    frozen = jax.device_put(experiment.frozen, replicated(mesh))
    init_key = rng.stream(root, "init")
    shardings = state_sharding(mesh, jax.eval_shape(stage.init, init_key))
    step_fn = jax.jit(
        stage.step,
        donate_argnums=0,
        in_shardings=(shardings, None, batch_sharding(mesh), None),
        out_shardings=(shardings, replicated(mesh)),
    )
    checkpoints = Checkpoints(directory.path, keep=config.keep_checkpoints)
    last, pending, stopping = config.num_steps, None, False

    with stop_signal() as stop, closing(checkpoints, iterator) as opened:
        state, start = restore_or_init(experiment, checkpoints, init_key, shardings)
        recorder = opened(Recorder(directory, config, start))
        for step in range(start, last):
            # 1. the batch; the iterator's state is now the one behind it
            batch, done = put_batch(mesh, next(iterator)), step + 1
            # 2. one update, dispatched
            state, scalars = step_fn(state, frozen, batch, rng.key(root, "step", step))
            # 3. the scalars of the step before, read while this one runs
            recorder.record(pending)
            pending, stopping = (done, scalars), stop.requested
            saves = due(done, config.checkpoint_every_steps, last) or done == last
            previews = due(done, config.preview_every_steps, last)
            evaluates = due(done, config.eval_every_steps, last)
            if not (saves or previews or evaluates or stopping):
                continue
            # 4. nothing is made of a state whose loss is not finite
            recorder.record(pending, check=True)
            pending = None
            # 5. checkpoint, at the last step and on a signal always
            if saves or stopping:
                checkpoints.save(
                    done, state, iterator.get_state(), directory.stored_config
                )
            if stopping:
                break
            # 6. look at it; this time is not training time
            if previews:
                preview(stage, state, frozen, batch, root, directory, done)
            if evaluates:
                figures = stage.evaluate(state, frozen, experiment.eval_batches())
                recorder.evaluation(done, figures)
            recorder.restart_clock(done)
        checkpoints.wait()
    if stopping:
        log.info("stopped by a signal at step %d; the same command continues", done)
    elif start >= last:
        log.info("nothing to do: step %d of train.num_steps = %d is done", start, last)
    return 0


def due(step: int, every: int, last: int) -> bool:
    """True at multiples of `every` (0: never) and at the last step."""
    return every > 0 and (step % every == 0 or step == last)


def restore_or_init(experiment, checkpoints: Checkpoints, key, shardings):
    """(state, step): the newest whole checkpoint with its data position, or step 0."""
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
        return start_from(init(key), experiment.initial), 0
    state, iterator_state, step = found
    experiment.iterator.set_state(iterator_state)
    log.info("continuing from step %d", step)
    return state, step


def preview(stage, state, frozen, batch, root, directory, step: int) -> None:
    """Write the stage's preview pictures; only process 0 does."""
    pictures = stage.preview(state, frozen, batch, rng.stream(root, "preview"))
    if jax.process_index() != 0:
        return
    folder = directory.path / "previews"
    folder.mkdir(exist_ok=True)
    for name, pixels in pictures.items():
        image.write_png(folder / f"{step:07d}_{name}.png", pixels)


@contextlib.contextmanager
def stop_signal() -> Iterator[SimpleNamespace]:
    """`requested` turns True at SIGTERM or SIGINT; the old handlers come back later."""
    stop = SimpleNamespace(requested=False)
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return

    def request(number, frame) -> None:
        stop.requested = True

    numbers = (signal.SIGTERM, signal.SIGINT)
    old = {number: signal.signal(number, request) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


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


class WorkDirectory:
    """A run's directory: created, locked, and checked against its stored config."""

    def __init__(self, path: Path, config: ConfigDict):
        self.path = path.absolute()
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        plain = json.loads(config.to_json_best_effort())
        self.stored_config = {**plain, "versions": versions}

    def __enter__(self) -> "WorkDirectory":
        self.path.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            if jax.process_index() == 0:
                lock = stack.enter_context(open(self.path / ".lock", "w"))
                self._take(lock)
            self._check_config()
            if jax.process_index() == 0:
                write_json(self.path / "config.json", self.stored_config)
            self._held = stack.pop_all()
        return self

    def __exit__(self, *_) -> None:
        self._held.close()

    def _take(self, lock: Any) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is training in {self.path}; stop it or choose "
                "another --workdir"
            ) from None

    def _check_config(self) -> None:
        """UserError if config.json is there and is another config's."""
        file = self.path / "config.json"
        if not file.exists():
            return
        try:
            different = compare(json.loads(file.read_text()), self.stored_config)
        except (ValueError, AttributeError) as error:  # no JSON, or no object
            raise UserError(f"{file} is damaged: {error}") from None
        if different:
            raise UserError(
                f"{self.path} was made by a different config: "
                f"{'; '.join(different)}; choose another --workdir"
            )


def compare(old: dict, new: dict) -> list[str]:
    """Differences "key: old -> new" of two configs that a continuation may not have."""
    a, b = flatten(old), flatten(new)
    keys = sorted((a.keys() | b.keys()) - MAY_CHANGE)
    return [
        f"{key}: {a.get(key, 'not set')} -> {b.get(key, 'not set')}"
        for key in keys
        if a.get(key) != b.get(key) and not key.startswith("versions.")
    ]


def flatten(tree: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        elif value != {}:
            flat[f"{prefix}{key}"] = value
    return flat


def write_json(file: Path, value: dict) -> None:
    """Write atomically."""
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    os.replace(partial, file)


class Recorder:
    """Log line, metrics.jsonl and TensorBoard of process 0; stops at a bad loss."""

    def __init__(self, directory: WorkDirectory, config: ConfigDict, start: int):
        self.config = config
        self.finite_step = self.clock_step = start
        self.clock: float | None = None
        self.metrics = directory.path / "metrics.jsonl"
        self.board = None
        if jax.process_index() == 0:
            self._forget_after(start)
            self.board = Board(directory.path / "tensorboard", start)

    def _forget_after(self, step: int) -> None:
        """Drop metrics beyond the restored step, so that each stands there once."""
        if not self.metrics.exists():
            return
        lines = self.metrics.read_text(errors="replace").splitlines()
        kept = [line for line in lines if line and step_of(line) <= step]
        partial = self.metrics.with_name(".metrics.jsonl.partial")
        partial.write_text("".join(f"{line}\n" for line in kept))
        os.replace(partial, self.metrics)

    def record(self, pending: tuple[int, dict] | None, *, check: bool = False) -> None:
        """Take (step, scalars on the device); log at intervals, then check the loss.

        Scalars are fetched only to be logged, or with `check`. Raises UserError when
        the loss is not finite, naming the steps since the last one known to be.
        """
        if self.clock is None:  # the first step is compiled: from here it is training
            self.restart_clock(self.clock_step)
        if pending is None:
            return
        step, scalars = pending
        logs = due(step, self.config.log_every_steps, self.config.num_steps)
        if not (logs or check):
            return
        values = {k: float(v) for k, v in jax.device_get(scalars).items()}
        if logs:
            self._log(step, values)
        if not math.isfinite(values["loss"]):
            raise UserError(
                f"the loss became {values['loss']} between steps {self.finite_step} "
                f"and {step}; the last checkpoint is from before; lower the learning "
                "rate, clip gradients (optimizer.clip_norm), or look at the data"
            )
        self.finite_step = step

    def restart_clock(self, step: int) -> None:
        """Count steps per second from `step` on and from now on."""
        self.clock_step, self.clock = step, time.perf_counter()

    def _log(self, step: int, values: dict[str, float]) -> None:
        secs = max(time.perf_counter() - self.clock, 1e-9)
        rate = (step - self.clock_step) / secs
        self.restart_clock(step)
        if self.board is None:
            return
        log.info("%s", self.line(step, values, rate))
        speed = {"it_per_sec": rate, "images_per_sec": rate * self.config.batch_size}
        self._append("train", step, {**values, **speed})

    def line(self, step: int, values: dict[str, float], rate: float) -> str:
        """`step  120/2500 loss 0.1423 gnorm 0.61 3.21 it/s 205 img/s eta 12m30s`."""
        total = self.config.num_steps
        head = f"step {step:>{len(str(total))}}/{total}"
        first = [name for name in ("loss", "gnorm") if name in values]
        names = first + sorted(values.keys() - set(first))
        shown = "".join(f" {name} {values[name]:<8.4g}" for name in names)
        left = duration((total - step) / rate) if rate else "?"
        images = rate * self.config.batch_size
        return f"{head}{shown} {rate:.2f} it/s {images:.0f} img/s eta {left}"

    def evaluation(self, step: int, figures: dict[str, float]) -> None:
        """Log what the stage measured on held-out data."""
        if self.board is None:
            return
        shown = " ".join(f"{name} {value:.4g}" for name, value in figures.items())
        log.info("held out at step %d: %s", step, shown)
        named = {f"eval_{name}": value for name, value in figures.items()}
        self._append("eval", step, named)

    def _append(self, group: str, step: int, values: dict[str, float]) -> None:
        """One line of metrics.jsonl; JSON has no NaN, so null stands for it."""
        plain = {k: v if math.isfinite(v) else None for k, v in values.items()}
        with open(self.metrics, "a") as file:
            file.write(json.dumps({"step": step, **plain}) + "\n")
        self.board.add({f"{group}/{name}": v for name, v in values.items()}, step)

    def close(self) -> None:
        """Close the TensorBoard file."""
        if self.board is not None:
            self.board.close()


class Board:
    """TensorBoard's event file, written in this thread.

    tensorboardX's own SummaryWriter gives events to a thread through a queue of ten: on
    a full disk the thread dies, and the eleventh event waits for ever.
    """

    def __init__(self, folder: Path, start: int):
        folder.mkdir(exist_ok=True)
        self._file = EventsWriter(str(folder / "events"), f".{start}")
        # TensorBoard then hides what earlier files say of steps beyond `start`.
        session = SessionLog(status=SessionLog.START)
        self._write(start + 1, session_log=session)

    def add(self, values: dict[str, float], step: int) -> None:
        """Write scalars of one step, on disk when this returns."""
        for name, value in values.items():
            self._write(step, summary=scalar(name, value))
        self._file.flush()

    def _write(self, step: int, **content: Any) -> None:
        self._file.write_event(Event(wall_time=time.time(), step=step, **content))

    def close(self) -> None:
        """Close the file. Every `add` is on disk: what fails here is no loss."""
        with contextlib.suppress(OSError):
            self._file.close()


def step_of(line: str) -> float:
    """The step of a metrics line; infinite for a half-written one."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def duration(secs: float) -> str:
    """90061 -> "1d1h", 754 -> "12m34s", 5 -> "5s"."""
    units = [("d", 86400), ("h", 3600), ("m", 60), ("s", 1)]
    whole = max(int(secs), 0)
    parts = []
    for name, size in units:
        count, whole = divmod(whole, size)
        if count or parts:
            parts.append(f"{count}{name}")
    return "".join(parts[:2]) or "0s"
