"""Several processes that train one model: how they find each other, what they agree on.

    start         jax.distributed from SLURM, TPU metadata, flags or the environment
    from_first    values of process 0 on every process
    all_agree     one truth for all: a collective "and"
    whole         an array that lies on several hosts, as numpy on every host
    Preemption    SIGTERM on any host -> one step at which all of them save

With one process all of it is local and nothing waits. `data.pipeline` decides who reads
which rows, `core.sharding` which device holds what.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lDM_jax.core.errors import UserError

MODES = ("auto", "on", "off")


def start(
    mode: str = "auto",
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> bool:
    """Join the other processes of this run; True if there are any to join.

    Call it before anything touches a device. With `coordinator` ("host:port") and the
    two numbers, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID in the
    environment, these decide. Otherwise "auto" joins a SLURM step of several tasks and
    a TPU pod of several hosts; "on" leaves the search to JAX, which also knows Open MPI
    and Kubernetes; "off" trains alone. Raises UserError for half a description.
    """
    if mode not in MODES:
        raise UserError(f"--distributed={mode}; valid: {', '.join(MODES)}")
    if mode == "off":
        return False
    arguments = explicit(coordinator, num_processes, process_id, environment)
    if arguments is None and mode == "auto" and not in_cluster(environment):
        return False
    try:
        jax.distributed.initialize(**(arguments or {}))
    except (RuntimeError, ValueError) as error:
        line = " ".join(str(error).split())[:300]
        raise UserError(f"the processes of this run cannot meet: {line}") from None
    return jax.process_count() > 1


def explicit(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    environment: Mapping[str, str],
) -> dict | None:
    """Arguments for jax.distributed.initialize; None without any."""
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    flags = (coordinator, num_processes, process_id)
    values = [
        environment.get(name) if flag is None else flag
        for name, flag in zip(names, flags, strict=True)
    ]
    if values == [None] * 3:
        return None
    if None in values:
        raise UserError(
            "several processes need --coordinator=host:port, --num_processes and "
            f"--process_id (or {', '.join(names)}) together; given: {values}"
        )
    try:
        count, index = int(values[1]), int(values[2])
    except ValueError:
        raise UserError(
            f"number and index of processes must be integers: {values[1:]}"
        ) from None
    if not 0 <= index < count:
        raise UserError(f"process_id = {index} must lie in [0, {count})")
    return dict(coordinator_address=values[0], num_processes=count, process_id=index)


def in_cluster(environment: Mapping[str, str]) -> bool:
    """True in a SLURM step of several tasks, or on a TPU pod of several hosts."""
    tasks = environment.get("SLURM_NTASKS", "1")
    if "SLURM_PROCID" in environment and "SLURM_STEP_NODELIST" in environment:
        return int(tasks) > 1
    return "," in environment.get("TPU_WORKER_HOSTNAMES", "")


def is_first() -> bool:
    """True in the process that writes logs and images."""
    return jax.process_index() == 0


def from_first(value: Any) -> Any:
    """A number, or a tree of numbers and arrays, as process 0 has it."""
    if jax.process_count() == 1:
        return value
    plain = jax.tree.map(np.asarray, value)
    sent = multihost_utils.broadcast_one_to_all(plain)
    return jax.tree.map(
        lambda old, new: type(old)(new) if isinstance(old, int | float) else new,
        value,
        sent,
    )


def all_agree(holds: bool) -> bool:
    """True if `holds` is true in every process; all of them must call it."""
    if jax.process_count() == 1:
        return holds
    votes = multihost_utils.process_allgather(np.asarray(holds))
    return bool(np.all(votes))


@contextlib.contextmanager
def together(what: str) -> Iterator[None]:
    """A block that succeeds in all processes or raises UserError in all of them.

    Where it failed the error is that process's own; the others name it.
    """
    try:
        yield
    except (UserError, OSError):
        all_agree(False)
        raise
    if not all_agree(True):
        raise UserError(f"{what} failed in another process; its own log says why")


def whole(array: Any) -> np.ndarray:
    """numpy of an array, also of one that lies on several hosts (all must call)."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        if array.is_fully_replicated:
            return np.asarray(array.addressable_data(0))
        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


class Preemption:
    """SIGTERM or SIGINT, to one process or to all: `at(step)` is true where to save.

    Alone, it is true at the first step that ends after the signal. With
    jax.distributed, JAX's own notifier watches SIGTERM; it spreads the news and `at`
    turns true in every process at the same later step, if each calls it every step.
    """

    def __init__(self):
        self.requested = False

    def at(self, step: int) -> bool:
        """True if this is the step to save at and to stop after."""
        if jax.process_count() == 1:
            return self.requested
        return multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def preemption() -> Iterator[Preemption]:
    """Handle the two signals; the old handlers come back later."""
    notice = Preemption()
    if threading.current_thread() is not threading.main_thread():
        yield notice  # only the main thread may handle signals
        return

    def request(number, frame) -> None:
        notice.requested = True

    def pass_on(number, frame) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    handlers: dict[int, Callable] = {signal.SIGTERM: request, signal.SIGINT: request}
    if jax.process_count() > 1:
        handlers = {signal.SIGINT: pass_on}
    old = {number: signal.signal(number, new) for number, new in handlers.items()}
    try:
        yield notice
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
