"""A run's directory: created, locked, and checked against the config stored in it.

Owns `.lock` and `config.json`. The lock belongs to the process: it ends with it, also
by kill -9, and a child that outlives the process does not hold it. What else lies in
the directory belongs to `recorder` and `checkpoint`.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import socket
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from lDM_jax.core.distributed import is_first, together
from lDM_jax.core.errors import UserError
from lDM_jax.core.files import write_json
from lDM_jax.diffusion.process import KINDS, keys_of

# Values that may differ between a run and its continuation.
MAY_CHANGE = {
    f"train.{name}"
    for name in (
        "num_steps",
        "accumulate_steps",
        "max_skipped_steps",
        "skip_spike_sigmas",
        "log_every_steps",
        "preview_every_steps",
        "eval_every_steps",
        "checkpoint_every_steps",
        "keep_checkpoints",
        "keep_every_steps",
        "keep_best",
        "best_metric",
        "best_mode",
        "wandb",
        "ema_snapshot_every_steps",
        "fd_every_steps",
        "fd_images",
        "fd_extractor",
    )
} | {"data.num_workers", "mesh.data", "mesh.fsdp", "mesh.tensor"}
# Compared where both know it: the program notes it, and did not always.
NOTED = "data.classes"
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class WorkDirectory:
    """The directory of a run; a context that holds its lock.

    Entering raises UserError, in every process of the run, if another run holds the
    lock or if the directory was made by another config.
    """

    def __init__(self, path: Path, config: ConfigDict):
        self.path = path.absolute()
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        plain = json.loads(config.to_json_best_effort())
        self.stored_config = {**plain, "versions": versions}
        self._lock: Any = None

    def __enter__(self) -> "WorkDirectory":
        with contextlib.ExitStack() as stack, together("opening the work directory"):
            if is_first():
                self.path.mkdir(parents=True, exist_ok=True)
                # "a": the holder's name in it stays readable to those it refuses.
                self._lock = stack.enter_context(open(self.path / ".lock", "a+"))
                self._take()
                self._check_config()
                write_json(self.path / "config.json", self.stored_config)
            self._held = stack.pop_all()
        return self

    def __exit__(self, *_) -> None:
        self._held.close()

    def _take(self) -> None:
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            raise UserError(
                f"another process is training in {self.path} ({holder}); stop it or "
                "choose another --workdir"
            ) from None
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._lock.flush()

    def check(self) -> None:
        """UserError if the directory vanished, or is no longer the one we locked."""
        if self._lock is None:
            return
        ours = os.fstat(self._lock.fileno())
        with contextlib.suppress(OSError):
            if os.path.samestat(ours, os.stat(self.path / ".lock")):
                return
        raise UserError(
            f"work directory {self.path} vanished or was replaced while training; "
            "checkpoints that were moved with it are intact"
        )

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
    """Differences "key: old -> new" of two configs that a continuation may not have.

    A key that one of them does not know equals 0, "" or False, which stand for "not
    set" in configs: a run goes on with a program that has one more option. Keys of
    process kinds that neither has are not read and may differ.
    """
    unread = {f"process.{name}" for name in unread_keys(old) & unread_keys(new)}
    a, b = (flatten_dict(config, sep=".") for config in (old, new))
    keys = sorted((a.keys() | b.keys()) - MAY_CHANGE - unread)
    return [
        f"{key}: {short(a.get(key, 'not set'))} -> {short(b.get(key, 'not set'))}"
        for key in keys
        if (a.get(key) or None) != (b.get(key) or None)
        and not key.startswith("versions.")
        and (key != NOTED or key in a)
    ]


def short(value: Any) -> str:
    """A value in a message, its middle left out where it is long."""
    text = str(value)
    return text if len(text) <= 120 else f"{text[:58]} ... {text[-57:]}"


def unread_keys(config: dict) -> frozenset[str]:
    """The keys of config.process that its kind does not read."""
    section = config.get("process", {})
    kind = section.get("kind", "discrete")
    every = frozenset().union(*map(keys_of, KINDS))
    return every - keys_of(kind) if kind in KINDS else frozenset()
