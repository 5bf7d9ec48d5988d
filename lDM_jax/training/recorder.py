"""What a run says of itself: log line, metrics.jsonl, TensorBoard, report.html.

Of process 0 only; Weights & Biases, where config.train.wandb names a project, is
imported when asked for and needed by nothing else.

Speed is wall time between log lines without saving and looking. `input_wait` is the
share of it in which the host waited for data; the device may have been busy then. MFU
is FLOPs of the network (counted on its jaxpr, three forward passes an image) over what
the devices could do, where their peak is known.
"""

import contextlib
import importlib.util
import json
import logging
import math
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from lDM_jax.core.distributed import is_first, together
from lDM_jax.core.errors import UserError
from lDM_jax.core.files import replacing
from lDM_jax.training import flops, report
from lDM_jax.training.settings import LoopSettings, is_due
from lDM_jax.training.update_guard import Guard
from lDM_jax.training.workdir import WorkDirectory

log = logging.getLogger(__name__)


class Diverged(Exception):
    """Too many updates in a row were skipped; the text says which and why."""


class Recorder:
    """Logs a run from step `start` on; ends it when the guard does."""

    def __init__(
        self,
        directory: WorkDirectory,
        settings: LoopSettings,
        start: int,
        guard: Guard,
        image_flops: float = 0.0,
    ):
        self.settings, self.directory = settings, directory
        self.image_flops, self.peak = image_flops, flops.peak_of(jax.devices())
        self.clock_step, self.clock, self.waited_secs = start, None, 0.0
        self.skipped = int(guard.skipped)
        self.compile_secs: float | None = None
        self.metrics = directory.path / "metrics.jsonl"
        self.board = self.service = None
        if settings.wandb:
            with together("starting Weights & Biases"):
                self.service = open_run(settings.wandb, directory)
        if is_first():
            self._forget_after(start)
            self.board = Board(directory.path / "tensorboard", start)

    def _forget_after(self, step: int) -> None:
        """Drop metrics beyond the restored step, so that each stands there once."""
        if not self.metrics.exists():
            return
        lines = self.metrics.read_text(errors="replace").splitlines()
        earlier = [line for line in lines if line and step_of(line) <= step]
        with replacing(self.metrics) as partial:
            partial.write_text("".join(f"{line}\n" for line in earlier))

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for data."""
        begin = time.perf_counter()
        yield
        self.waited_secs += time.perf_counter() - begin

    @contextlib.contextmanager
    def dispatching(self) -> Iterator[None]:
        """Around the call of the update, whose first one compiles."""
        begin = time.perf_counter()
        yield
        if self.compile_secs is None:
            self.compile_secs = time.perf_counter() - begin

    def record(self, pending: tuple[int, dict] | None, *, check: bool = False) -> None:
        """Take (step, scalars on the device), wait for them; log at intervals.

        Scalars are fetched only to be logged, or with `check`. Raises Diverged, after
        writing them, when the guard has given up.
        """
        if self.clock is None:  # the first step is compiled: from here it is training
            self.restart_clock(self.clock_step)
        if pending is None:
            return
        (step, scalars), settings = pending, self.settings
        scalars["loss"].block_until_ready()  # at most two steps are under way
        logs = is_due(step, settings.log_every_steps, settings.num_steps)
        if not (logs or check):
            return
        values = {k: float(v) for k, v in jax.device_get(scalars).items()}
        in_row = int(values.pop("skipped_in_row"))
        self._warn(step, int(values["skipped"]))
        halted = in_row >= settings.limits.max_skipped
        if logs or halted:
            self._log(step, values)
        if halted:
            raise Diverged(
                f"{in_row} updates in a row were skipped, up to step {step}: the loss "
                f"({values['loss']:.4g}) or its gradient (norm "
                f"{values.get('gnorm', math.nan):.4g}) was not finite, or a spike"
            )

    def _warn(self, step: int, skipped: int) -> None:
        """One line when the guard skipped since the last look."""
        new, self.skipped = skipped - self.skipped, skipped
        if new > 0:
            log.warning(
                f"skipped {new} update{'s' * (new > 1)} up to step {step}: loss or "
                f"gradient not finite, or a spike; {skipped} in all"
            )

    def restart_clock(self, step: int) -> None:
        """Count steps per second from `step` on and from now on."""
        self.clock_step, self.clock = step, time.perf_counter()
        self.waited_secs = 0.0

    def _log(self, step: int, values: dict[str, float]) -> None:
        secs = max(time.perf_counter() - self.clock, 1e-9)
        rate = (step - self.clock_step) / secs
        speed = {
            "it_per_sec": rate,
            "images_per_sec": rate * self.settings.batch_size,
            "input_wait": min(self.waited_secs / secs, 1.0),
            **self._use(rate),
        }
        self.restart_clock(step)
        if self.board is None:
            return
        self.directory.check()
        log.info("%s", self.line(step, values, speed))
        self._append("train", step, {**values, **speed})

    def _use(self, rate: float) -> dict[str, float]:
        """MFU and memory where they are known; the compile time once."""
        use = {}
        if self.image_flops and self.peak:
            use["mfu"] = rate * self.settings.batch_size * self.image_flops / self.peak
        statistics = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in statistics:
            use["memory_gib"] = statistics["peak_bytes_in_use"] / 2**30
        if self.compile_secs:
            use["compile_secs"], self.compile_secs = self.compile_secs, 0.0
        return use

    def line(self, step: int, values: dict[str, float], speed: dict[str, float]) -> str:
        """`step  120/2500 loss 0.1423 gnorm 0.61 3.21 it/s 205 img/s wait 0% eta ...`.

        "skipped" appears when something was, "mfu" where it is known; what has a "/" in
        its name is for metrics.jsonl and the curves.
        """
        total, rate = self.settings.num_steps, speed["it_per_sec"]
        head = f"step {step:>{len(str(total))}}/{total}"
        first = [name for name in ("loss", "gnorm") if name in values]
        hidden = {*first, *(name for name in values if "/" in name)}
        hidden |= {"skipped"} if not values.get("skipped") else set()
        names = first + sorted(values.keys() - hidden)
        text = "".join(f" {name} {values[name]:<8.4g}" for name in names)
        left = duration((total - step) / rate) if rate else "?"
        mfu = f" mfu {speed['mfu']:.2f}" if "mfu" in speed else ""
        return (
            f"{head}{text} {rate:.2f} it/s {speed['images_per_sec']:.0f} img/s "
            f"wait {speed['input_wait']:.0%}{mfu} eta {left}"
        )

    def evaluation(self, step: int, figures: dict[str, float]) -> None:
        """Log what the stage measured on held-out data."""
        if self.board is None:
            return
        text = " ".join(f"{name} {value:.4g}" for name, value in figures.items())
        log.info("held out at step %d: %s", step, text)
        self._append("eval", step, {f"eval_{k}": v for k, v in figures.items()})

    def _append(self, group: str, step: int, values: dict[str, float]) -> None:
        """One line of metrics.jsonl; JSON has no NaN, so null stands for it."""
        plain = {k: v if math.isfinite(v) else None for k, v in values.items()}
        with open(self.metrics, "a") as file:
            file.write(json.dumps({"step": step, **plain}) + "\n")
        named = {f"{group}/{name}": v for name, v in values.items()}
        self.board.add(named, step)
        if self.service is not None:
            self.service.log(named, step=step)

    def report(self) -> None:
        """Write report.html anew; what it shows lies in the work directory."""
        if self.board is not None:
            report.write(self.directory.path, self.directory.stored_config)

    def close(self) -> None:
        """Close the TensorBoard file and the run of Weights & Biases."""
        if self.board is not None:
            self.board.close()
        if self.service is not None:
            self.service.finish()


class Board:
    """TensorBoard's event file, written in this thread.

    tensorboardX's own SummaryWriter gives events to a thread through a queue of ten: on
    a full disk the thread dies, and the eleventh event waits forever.
    """

    def __init__(self, folder: Path, start: int):
        folder.mkdir(exist_ok=True)
        self._file = EventsWriter(str(folder / "events"), f".{start}")
        # TensorBoard then hides what earlier files say of steps beyond `start`.
        self._write(start + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, values: dict[str, float], step: int) -> None:
        """Write scalars of one step, on disk when this returns.

        What is not finite, such as the mean of an empty bucket, is no point of a curve.
        """
        for name, value in values.items():
            if math.isfinite(value):
                self._write(step, summary=scalar(name, value))
        self._file.flush()

    def _write(self, step: int, **content: Any) -> None:
        self._file.write_event(Event(wall_time=time.time(), step=step, **content))

    def close(self) -> None:
        """Close the file. Every `add` is on disk: what fails here is no loss."""
        with contextlib.suppress(OSError):
            self._file.close()


def open_run(project: str, directory: WorkDirectory) -> Any:
    """The Weights & Biases run of a work directory; None except in the first process.

    A run that continues goes on in the same run there: its id lies in the directory.
    Offline use (WANDB_MODE=offline) and the account are wandb's own settings. UserError
    in all processes if wandb is not installed; in the first if it does not start.
    """
    if importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"config.train.wandb = {project!r} needs the package wandb: pip install "
            'wandb, or leave it ""; metrics.jsonl, TensorBoard and report.html are '
            "written in any case"
        )
    if not is_first():
        return None
    import wandb

    file = directory.path / ".wandb_id"
    if not file.exists():
        file.write_text(uuid.uuid4().hex)
    try:
        return wandb.init(
            project=project,
            name=directory.path.name,
            id=file.read_text().strip(),
            resume="allow",
            dir=str(directory.path),
            config=directory.stored_config,
        )
    except Exception as error:  # of any kind: network, account, settings
        line = " ".join(str(error).split())[:200]
        raise UserError(
            f"wandb does not start ({line}); WANDB_MODE=offline needs no network"
        ) from None


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
