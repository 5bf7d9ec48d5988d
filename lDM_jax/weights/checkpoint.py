"""Checkpoints of a run: state, data iterator and config, atomic and asynchronous.

Layout of a work directory: `checkpoints/<step>/{state,iterator,guard,config,checksums}`
and, with an evaluation of that step, `metrics`; `damaged_checkpoints/` holds what could
not be read, `ema_snapshots/<step>/` averages for `training.posthoc_ema`. Keys are not
stored: they derive from seed and step. A checkpoint says nothing of the mesh it was
written on: it is restored onto any. With several processes all of them call everything
here, on one shared disk. The only file that knows orbax.

Orbax notices a file that is cut short, but not a flipped bit in the numbers, so each
leaf has a checksum: the sum of its 32-bit words mod 2^32, which does not depend on how
the leaf is split over devices.
"""

import contextlib
import dataclasses
import logging
import math
import os
import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lDM_jax.core.distributed import all_agree, is_first
from lDM_jax.core.errors import UserError

log = logging.getLogger(__name__)
FOLDER, DAMAGED, POST_MORTEM = "checkpoints", "damaged_checkpoints", "post_mortem"
SNAPSHOTS = "ema_snapshots"
ITEMS = ("state", "iterator", "guard", "config", "checksums")


def _orbax():
    """orbax.checkpoint, imported at its first use: it is one of the slow imports, and
    programs that only sample from shipped weights never need it."""
    import orbax.checkpoint

    return orbax.checkpoint


def not_from_orbax(record: logging.LogRecord) -> bool:
    """False for what orbax logs of its work through absl's logger, and for what
    asyncio's logger says of tasks that were dropped when another one failed."""
    if record.name == "asyncio":
        text = record.getMessage()
        return not any(name in text for name in ("orbax", "OCDBT", "TensorStore"))
    return "orbax" not in Path(record.pathname).parts


def quiet_orbax() -> None:
    """Silence what orbax says and leaves behind; programs call it once at their start.

    Its failures arrive as one UserError. After the first array that fails orbax closes
    its event loop and raises; what works on the other arrays is dropped, and Python
    would print a warning or a traceback for each of them. A process-wide setting, so
    importing this file does not make it.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(not_from_orbax)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    report = sys.unraisablehook

    def hook(unraisable) -> None:
        code = getattr(unraisable.object, "cr_code", None)  # a coroutine's
        ours = code is not None and "orbax" in Path(code.co_filename).parts
        if not ours and str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    sys.unraisablehook = hook


@dataclasses.dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: those that any of the rules wants.

    latest: the n newest; every_steps: multiples of it, 0 none; best: the n best by
    `metric` (mode "min" or "max") among those of an evaluated step.
    """

    latest: int = 2
    every_steps: int = 0
    best: int = 0
    metric: str = "loss"
    mode: str = "min"

    def __post_init__(self):
        if self.latest < 1 or self.every_steps < 0 or self.best < 0:
            raise UserError(
                f"config.train.keep_checkpoints = {self.latest} must be at least 1, "
                f"keep_every_steps = {self.every_steps} and keep_best = {self.best} "
                "at least 0"
            )
        if self.mode not in ("min", "max"):
            text = f"config.train.best_mode = {self.mode!r}; valid: 'min', 'max'"
            raise UserError(text)

    def policy(self):
        """The same for orbax."""
        policies = _orbax().checkpoint_managers
        rules: list[Any] = [policies.LatestN(self.latest)]
        if self.every_steps:
            rules.append(policies.EveryNSteps(self.every_steps))
        if self.best:
            options = dict(reverse=self.mode == "min", n=self.best)
            options["keep_checkpoints_without_metrics"] = False
            rules.append(policies.BestN(get_metric_fn=self.value, **options))
        return policies.AnyPreservationPolicy(rules)

    def value(self, metrics: dict[str, float]) -> float:
        """The metric of one checkpoint; the worst one where it is no number."""
        value = metrics.get(self.metric)
        if value is None or not math.isfinite(value):
            return math.inf if self.mode == "min" else -math.inf
        return value

    def check(self, metrics: dict[str, float]) -> None:
        """UserError if an evaluation does not measure the metric."""
        if self.best and self.metric not in metrics:
            text = (
                f"config.train.best_metric = {self.metric!r} is not measured; valid: "
            )
            raise UserError(text + ", ".join(sorted(metrics)))


ALL = Keep(latest=10**9)


class Restored(NamedTuple):
    """A checkpoint read back; guard is None in those from before there was one."""

    state: Any
    iterator: dict
    guard: dict | None
    step: int


class Checkpoints:
    """The checkpoints of one work directory; those that `keep` names stay.

    Belongs to the run that trains: opening removes what a killed save left behind.
    """

    def __init__(
        self, workdir: str | Path, *, keep: Keep | None = None, folder: str = FOLDER
    ):
        self.workdir = Path(workdir).absolute()
        self.keep = keep or Keep()
        self.folder = self.workdir / folder
        self._manager = self._open()

    def _open(self):
        """orbax's CheckpointManager of the folder."""
        ocp = _orbax()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self.keep.policy(),
            best_fn=self.keep.value if self.keep.best else None,  # stores metrics
            create=True,
            cleanup_tmp_directories=True,
        )
        return ocp.CheckpointManager(self.folder, options=options, item_names=ITEMS)

    def save(
        self,
        step: int,
        state: Any,
        iterator_state: dict,
        config: dict,
        *,
        guard: dict | None = None,
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Start writing step `step`; `state` may be donated as soon as this returns.

        metrics: what was measured at this step, for `Keep.best`. Raises UserError when
        the disk is full or the directory is gone, also for the save before this one,
        whose writing went on in the background.
        """
        ocp = _orbax()
        items = dict(
            state=ocp.args.StandardSave(state),
            iterator=ocp.args.JsonSave(iterator_state),
            config=ocp.args.JsonSave(config),
            checksums=ocp.args.JsonSave(checksums(state)),
        )
        if guard is not None:
            items["guard"] = ocp.args.JsonSave(guard)
        with self._writing():
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics)

    def check(self) -> None:
        """Raise as `save` does if writing in the background has failed; never waits."""
        with self._writing():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Block until everything is on disk; raises as `save` does."""
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Finish writing and release threads; raises as `save` does."""
        with self._writing():
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except Exception as error:  # tensorstore raises bare Exceptions
            intact = "the last whole checkpoint is intact"
            rest = intact if self.steps() else "no whole checkpoint is there yet"
            text = f"cannot write a checkpoint in {self.workdir}: {in_one_line(error)}"
            raise UserError(f"{text}; {rest}") from None

    def steps(self) -> list[int]:
        """Steps that have a finished checkpoint on disk, ascending."""
        return finished_steps(self.folder)

    def restore_latest(self, abstract: Any) -> Restored | None:
        """The newest whole checkpoint; None if there is none.

        `abstract`: shapes with shardings. Newer, damaged checkpoints are moved to
        `damaged_checkpoints/`, and the log says so. Raises UserError, and moves
        nothing, when there are checkpoints but no whole one: that is rather a fault of
        the disk or another version of the code than a reason to start again.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            restored, reason = None, "another process cannot read it"
            try:
                restored = self._restore(step, abstract)
            except Exception as error:  # tensorstore raises bare Exceptions
                reason = in_one_line(error)
            if not all_agree(restored is not None):
                damaged[step] = reason
                continue
            for number, reason in damaged.items():
                self._set_aside(number, reason)
            return restored
        if damaged:
            step, reason = next(iter(damaged.items()))
            raise UserError(
                f"none of the checkpoints {sorted(damaged)} in {self.folder} "
                f"can be restored ({step}: {reason}); move that folder away to start "
                "again from step 0, or choose another --workdir"
            )
        return None

    def _restore(self, step: int, abstract: Any) -> Restored:
        ocp = _orbax()
        items = {
            "state": ocp.args.StandardRestore(abstract),
            "iterator": ocp.args.JsonRestore(),
        }
        # Runs begun before these were stored go on without.
        stored_names = {path.name for path in (self.folder / str(step)).iterdir()}
        there = sorted(stored_names & {"checksums", "guard"})
        items |= {name: ocp.args.JsonRestore() for name in there}
        stored = self._manager.restore(step, args=ocp.args.Composite(**items))
        if "checksums" in there:
            verify(stored.state, stored.checksums)
        guard = stored.guard if "guard" in there else None
        return Restored(stored.state, stored.iterator, guard, step)

    def _set_aside(self, step: int, reason: str) -> None:
        log.warning(
            "checkpoint %d is damaged and was moved to %s (%s)", step, DAMAGED, reason
        )
        self._manager.close()
        if is_first():
            target = self.workdir / DAMAGED
            target.mkdir(exist_ok=True)
            shutil.rmtree(target / str(step), ignore_errors=True)
            shutil.move(self.folder / str(step), target / str(step))
        all_agree(True)  # nobody opens the folder before it is in order
        self._manager = self._open()


def load_ema(workdir: str | Path) -> dict:
    """EMA parameters of the newest whole checkpoint; see `load_state`."""
    return load_state(workdir)["ema"]


def load_state(workdir: str | Path) -> dict:
    """The newest whole checkpoint's state as nested dicts of numpy arrays.

    Reads only; damaged checkpoints are skipped with a warning. Raises UserError when
    there is no whole one.
    """
    folder = Path(workdir).absolute() / FOLDER
    if not folder.is_dir():
        raise UserError(f"{workdir} has no {FOLDER}: it is not a run's work directory")
    for step in reversed(finished_steps(folder)):
        try:
            return _load_state(folder / str(step))
        except Exception as error:  # tensorstore raises bare Exceptions
            reason = in_one_line(error)
            log.warning("checkpoint %d is damaged and skipped (%s)", step, reason)
    raise UserError(f"{workdir} has no whole checkpoint yet")


def load_snapshot(workdir: str | Path, step: int) -> list[dict]:
    """The averages that a run has stored at `step`; UserError if missing or damaged."""
    folder = Path(workdir).absolute() / SNAPSHOTS / str(step)
    try:
        return _load_state(folder)
    except Exception as error:  # tensorstore raises bare Exceptions
        raise UserError(f"{folder} cannot be read: {in_one_line(error)}") from None


def _load_state(folder: Path) -> Any:
    ocp = _orbax()
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with ocp.StandardCheckpointer() as reader:
        state = reader.restore(
            folder / "state",
            jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
                reader.metadata(folder / "state").item_metadata.tree,
            ),
        )
    if (folder / "checksums").is_dir():
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            verify(state, reader.restore(folder / "checksums"))
    return jax.tree.map(np.asarray, state)


def finished_steps(folder: Path) -> list[int]:
    """Steps in a checkpoint folder, ascending; unfinished ones have another name."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def checksums(tree: Any) -> dict[str, int]:
    """{path of a leaf: the sum of its words mod 2^32}; the same for every sharding."""
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    return {path: int(sum_) for path, sum_ in jax.device_get(_sums(leaves)).items()}


@jax.jit
def _sums(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    def one(leaf):
        words = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
        bits = jax.lax.bitcast_convert_type(leaf, words)
        return jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)

    return jax.tree.map(one, leaves)


def verify(tree: Any, stored: dict[str, int]) -> None:
    """Raise ValueError naming the leaves whose checksum is not the stored one."""
    sums = checksums(tree)
    wrong = sorted(p for p in sums.keys() | stored if sums.get(p) != stored.get(p))
    if wrong:
        raise ValueError(f"wrong checksum of {', '.join(wrong[:3])}")


def in_one_line(error: Exception) -> str:
    """What an exception says, in one line; of a long text the cause and the ends.

    Tensorstore hides the cause, as the system's error number, in a page of settings.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    number = re.search(r"os_error_code='(\d+)'", text)
    cause = f"{os.strerror(int(number[1]))}: " if number else ""
    if len(text) > 220:
        text = f"{text[:80]} ... {text[-130:]}"
    return cause + text
