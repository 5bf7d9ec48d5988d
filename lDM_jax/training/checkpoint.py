"""Checkpoints of a run: state and data iterator, atomic and asynchronous, by Orbax.

Layout of a work directory: `config.json` (resolved config, package versions),
`checkpoints/<step>/{state,iterator}`. Keys are not stored: they derive from seed and
step. The only file that knows orbax.
"""

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from lDM_jax.arrays import UserError

log = logging.getLogger(__name__)
FOLDER, DAMAGED = "checkpoints", "damaged_checkpoints"
# What orbax and tensorstore raise for missing, truncated or altered files.
DAMAGE = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError)


class Checkpoints:
    """The checkpoints of one work directory; `keep` newest ones stay."""

    def __init__(self, workdir: str | Path, *, keep: int = 2):
        self.workdir = Path(workdir).absolute()
        self.keep = keep
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(max_to_keep=self.keep, create=True)
        return ocp.CheckpointManager(
            self.workdir / FOLDER,
            options=options,
            item_names=("state", "iterator"),
        )

    def save(self, step: int, state: Any, iterator_state: dict) -> None:
        """Start writing step `step`; errors of the write before it surface here.

        Raises UserError when the disk is full or the directory is gone.
        """
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    iterator=ocp.args.JsonSave(iterator_state),
                ),
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failure(error) from None

    def wait(self) -> None:
        """Block until everything is on disk; raises as `save` does."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> UserError:
        reason = " ".join(str(error).split())[:300]
        return UserError(
            f"cannot write a checkpoint in {self.workdir}: {reason}; "
            "the last whole checkpoint is intact"
        )

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def restore_latest(self, abstract: Any) -> tuple[Any, dict, int] | None:
        """(state, iterator state, step) of the newest whole checkpoint, or None.

        `abstract`: shapes with shardings. Damaged checkpoints are moved to
        `damaged_checkpoints/`, and the log says so.
        """
        for step in reversed(self.steps()):
            try:
                items = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(abstract),
                        iterator=ocp.args.JsonRestore(),
                    ),
                )
                return items.state, items.iterator, step
            except DAMAGE as error:
                self._set_aside(step, error)
        return None

    def _set_aside(self, step: int, error: Exception) -> None:
        reason = " ".join(str(error).split())[:200]
        log.warning(
            "checkpoint %d is damaged and was moved to %s (%s)", step, DAMAGED, reason
        )
        self._manager.close()
        target = self.workdir / DAMAGED
        target.mkdir(exist_ok=True)
        shutil.rmtree(target / str(step), ignore_errors=True)
        shutil.move(self.workdir / FOLDER / str(step), target / str(step))
        self._manager = self._open()

    def close(self) -> None:
        """Finish writing and release threads."""
        self._manager.close()


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
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def shape(leaf) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)

    steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
    for step in sorted(steps, reverse=True):
        path = folder / str(step) / "state"
        try:
            with quiet(), ocp.StandardCheckpointer() as reader:
                metadata = reader.metadata(path).item_metadata.tree
                state = reader.restore(path, jax.tree.map(shape, metadata))
            return jax.tree.map(np.asarray, state)
        except DAMAGE as error:
            reason = " ".join(str(error).split())[:200]
            log.warning("checkpoint %d is damaged and skipped (%s)", step, reason)
    raise UserError(f"{workdir} has no whole checkpoint yet")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep orbax's warnings (of a step read by itself) out of the user's terminal."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
