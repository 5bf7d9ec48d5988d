"""The update that the loop runs: a stage's step, its key, and a guard around it.

    key   = rng.key(root, "step", step)           nothing about randomness is stored
    fine  = loss and gradient norms are finite, the loss is no spike, not halted
    state = fine ? step(state) : state            the step counts on in both cases

A spike is a loss above mean + `spike_sigmas` standard deviations of the last `WINDOW`
accepted ones. After `max_skipped` skipped updates in a row nothing moves any more, so
that the state stays what it was when the trouble began; the loop then ends the run.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lDM_jax.core import rng
from lDM_jax.core.arrays import Array
from lDM_jax.core.errors import UserError
from lDM_jax.core.sharding import Mesh, batch_sharding, replicated
from lDM_jax.training.state import Stage

WINDOW = 128


@flax.struct.dataclass
class Guard:
    """What the guard remembers; all of it small, the same on every device.

    skipped, in_row i32 "": updates skipped so far, and since the last accepted one.
    accepted i32 "": accepted updates; losses f32 "WINDOW": the last of them, a ring.
    """

    skipped: jax.Array
    in_row: jax.Array
    accepted: jax.Array
    losses: jax.Array

    @classmethod
    def start(cls) -> "Guard":
        """Nothing skipped, nothing seen."""
        skipped, in_row, accepted = (jnp.zeros((), jnp.int32) for _ in range(3))
        return cls(skipped, in_row, accepted, jnp.zeros(WINDOW))

    def record(self) -> dict:
        """As JSON can hold it; f32 numbers are exact in it."""
        return {name: jax.device_get(v).tolist() for name, v in vars(self).items()}

    @classmethod
    def from_record(cls, record: dict) -> "Guard":
        """The inverse of `record`. in_row starts anew: a restart is a new attempt."""
        values, like = {**record, "in_row": 0}, vars(cls.start())
        return cls(
            **{k: jnp.asarray(values[k], leaf.dtype) for k, leaf in like.items()}
        )


@dataclasses.dataclass(frozen=True)
class Limits:
    """max_skipped: updates in a row that may be skipped; spike_sigmas 0: no limit."""

    max_skipped: int = 10
    spike_sigmas: float = 0.0

    def __post_init__(self):
        if self.max_skipped < 1 or self.spike_sigmas < 0:
            raise UserError(
                f"config.train.max_skipped_steps = {self.max_skipped} must be at least "
                f"1, skip_spike_sigmas = {self.spike_sigmas} at least 0"
            )


def is_spike(guard: Guard, loss: Array, sigmas: float) -> Array:
    """True if the window is full and `loss` lies above mean + sigmas x std of it."""
    if not sigmas:
        return jnp.zeros((), bool)
    limit = guard.losses.mean() + sigmas * guard.losses.std()
    return (guard.accepted >= WINDOW) & (loss > limit)


def guarded(stage: Stage, root: Array, limits: Limits) -> Callable:
    """(state, guard, frozen, batch) -> (state, guard, scalars), pure.

    Scalars gain "skipped" (so far) and "skipped_in_row".
    """

    def update(state: Any, guard: Guard, frozen: Any, batch: Any):
        key = rng.key(root, "step", state.step)
        new, scalars = stage.step(state, frozen, batch, key)
        watched = [v for k, v in scalars.items() if k == "loss" or k.endswith("gnorm")]
        fine = jnp.isfinite(jnp.stack(watched)).all()
        fine &= ~is_spike(guard, scalars["loss"], limits.spike_sigmas)
        fine &= guard.in_row < limits.max_skipped
        state = jax.tree.map(lambda new, old: jnp.where(fine, new, old), new, state)
        noted = guard.losses.at[guard.accepted % WINDOW].set(scalars["loss"])
        guard = Guard(
            skipped=guard.skipped + ~fine,
            in_row=jnp.where(fine, 0, guard.in_row + 1),
            accepted=guard.accepted + fine,
            losses=jnp.where(fine, noted, guard.losses),
        )
        counts = {"skipped": guard.skipped, "skipped_in_row": guard.in_row}
        return state.replace(step=new.step), guard, {**scalars, **counts}

    return update


def jit_update(
    stage: Stage, mesh: Mesh, shardings: Any, *, root: Array, limits: Limits
) -> Callable:
    """`guarded`, compiled for a mesh; state and guard are donated.

    The one program of training: the loop runs it, tools.compile_report compiles it.
    """
    return jax.jit(
        guarded(stage, root, limits),
        donate_argnums=(0, 1),
        in_shardings=(shardings, replicated(mesh), None, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh), replicated(mesh)),
    )
