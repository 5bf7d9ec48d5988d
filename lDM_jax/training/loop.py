"""The only training loop. It never knows what it trains: it drives a `Stage`.

Owns the work directory: lock, config.json, metrics.jsonl, TensorBoard, previews and the
moments at which checkpoints are made. The key of step k is rng.key(root, "step", k), so
that a resumed run is bit-equal to an uninterrupted one. The scalars of step k are read
while step k + 1 runs: the host never makes the device wait.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import logging
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter

from lDM_jax import image, rng
from lDM_jax.arrays import UserError
from lDM_jax.training.checkpoint import Checkpoints
from lDM_jax.training.sharding import (
    Mesh,
    batch_sharding,
    put_batch,
    replicated,
    state_sharding,
)

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
    """Train `experiment` (see build.Experiment) in `workdir` up to its last step.

    Continues from the newest whole checkpoint. Returns 0, also after SIGTERM or SIGINT,
    which finish the step and save. Raises UserError for a directory of another config,
    a second process, a non-finite loss or a failing disk.
    """
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
    state, start = restore_or_init(experiment, checkpoints, init_key, shardings)
    recorder = Recorder(directory, config, start)
    last, saved, pending, stopped = config.num_steps, start, None, False

    with closing(checkpoints, experiment.iterator), stop_signal() as stop:
        for step in range(start, last):
            # 1. the batch, and the state of the iterator behind it
            batch = put_batch(mesh, next(experiment.iterator))
            # 2. one update, dispatched
            state, scalars = step_fn(state, frozen, batch, rng.key(root, "step", step))
            # 3. the scalars of the step before, read while this one runs
            recorder.record(pending)
            pending, done = (step + 1, scalars), step + 1
            stopped = stop.is_set()
            # 4. checkpoint: only of states whose loss was finite
            if due(done, config.checkpoint_every_steps, last) or stopped:
                recorder.record(pending)
                pending = None
                checkpoints.save(done, state, experiment.iterator.get_state())
                saved = done
            # 5. look at it
            if due(done, config.preview_every_steps, last):
                preview(stage, state, frozen, batch, root, directory, done)
            if due(done, config.eval_every_steps, last):
                figures = stage.evaluate(state, frozen, experiment.eval_batches())
                recorder.evaluation(done, figures)
            if stopped:
                break
        recorder.record(pending)
        checkpoints.wait()
    if stopped:
        log.info("stopped by a signal at step %d; the same command continues", saved)
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
        return init(key), 0
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
def stop_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM or SIGINT sets; the old handlers come back afterwards."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    old = {n: signal.signal(n, lambda *_: event.set()) for n in numbers}
    try:
        yield event
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def closing(*things: Any) -> Iterator[None]:
    """Close everything that can be closed, whatever happens."""
    try:
        yield
    finally:
        for thing in things:
            if hasattr(thing, "close"):
                thing.close()


class WorkDirectory:
    """A run's directory: created, locked, and checked against its stored config."""

    def __init__(self, path: Path, config: ConfigDict):
        self.path, self.config = path.absolute(), config

    def __enter__(self) -> "WorkDirectory":
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / ".lock", "w")  # noqa: SIM115
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise UserError(
                f"another process is training in {self.path}; stop it or choose "
                "another --workdir"
            ) from None
        try:
            self._store_config()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._lock.close()

    def _store_config(self) -> None:
        """Write config.json, or compare with the one that is there."""
        new = json.loads(self.config.to_json_best_effort())
        file = self.path / "config.json"
        if file.exists():
            try:
                old = json.loads(file.read_text())
            except json.JSONDecodeError as error:
                raise UserError(f"{file} is damaged: {error}") from None
            different = compare(old, new)
            if different:
                raise UserError(
                    f"{self.path} was made by a different config: "
                    f"{'; '.join(different)}; choose another --workdir"
                )
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        write_json(file, {**new, "versions": versions})


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
        self.config, self.start = config, start
        self.writes = jax.process_index() == 0
        self.metrics = directory.path / "metrics.jsonl"
        self.last_step, self.last_time = start, time.perf_counter()
        if self.writes:
            self._forget_after(start)
            self.board = SummaryWriter(str(directory.path / "tensorboard"))

    def _forget_after(self, step: int) -> None:
        """Drop metrics beyond the restored step, so that each stands there once."""
        if not self.metrics.exists():
            return
        lines = self.metrics.read_text().splitlines()
        kept = [line for line in lines if line and step_of(line) <= step]
        partial = self.metrics.with_name(".metrics.jsonl.partial")
        partial.write_text("".join(f"{line}\n" for line in kept))
        shutil.move(partial, self.metrics)

    def record(self, pending: tuple[int, dict] | None) -> None:
        """Take (step, scalars on the device); log at intervals, check the loss."""
        if pending is None:
            return
        step, scalars = pending
        logs = due(step, self.config.log_every_steps, self.config.num_steps)
        saves = due(step, self.config.checkpoint_every_steps, self.config.num_steps)
        if not (logs or saves):
            return
        values = {k: float(v) for k, v in jax.device_get(scalars).items()}
        if logs:
            self._log(step, values)
        if not math.isfinite(values["loss"]):
            raise UserError(
                f"the loss became {values['loss']} between steps {self.last_step} and "
                f"{step}; the last checkpoint is from before; lower the learning rate, "
                "clip gradients (optimizer.clip_norm), or look at the data"
            )
        if logs:
            self.last_step, self.last_time = step, time.perf_counter()

    def _log(self, step: int, values: dict[str, float]) -> None:
        secs = max(time.perf_counter() - self.last_time, 1e-9)
        rate = (step - self.last_step) / secs
        speed = {"it_per_sec": rate, "images_per_sec": rate * self.config.batch_size}
        if not self.writes:
            return
        log.info("%s", self.line(step, values, rate))
        self._append("train", {"step": step, **values, **speed})

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
        if not self.writes:
            return
        shown = " ".join(f"{name} {value:.4g}" for name, value in figures.items())
        log.info("held out at step %d: %s", step, shown)
        named = {f"eval_{name}": value for name, value in figures.items()}
        self._append("eval", {"step": step, **named})
        # The time spent here is not training time.
        self.last_step, self.last_time = step, time.perf_counter()

    def _append(self, group: str, values: dict[str, float]) -> None:
        with open(self.metrics, "a") as file:
            file.write(json.dumps(values) + "\n")
        for name, value in values.items():
            if name != "step":
                self.board.add_scalar(f"{group}/{name}", value, values["step"])
        self.board.flush()


def step_of(line: str) -> float:
    """The step of a metrics line; infinite for a half-written one."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
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
