"""What training carries: `TrainState`, its EMA, and the loop's `Stage` contract."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from lDM_jax.arrays import Array


@flax.struct.dataclass
class TrainState:
    """step i32 "" (updates done), params, their EMA, and the optimiser's state."""

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any

    @classmethod
    def create(
        cls, params: Any, optimizer: optax.GradientTransformation
    ) -> "TrainState":
        """Step 0: the EMA starts as a copy of the parameters."""
        ema = jax.tree.map(jnp.array, params)
        return cls(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params))


def start_from(state: Any, initial: dict) -> Any:
    """A new state whose parameters and EMA are the given ones, by path "a/b/c".

    Paths that are not given stay random; every leaf keeps its sharding.
    """

    def replace(path, leaf):
        name = "/".join(str(entry.key) for entry in path)
        if name not in initial:
            return leaf
        return jax.device_put(initial[name].astype(leaf.dtype), leaf.sharding)

    params = jax.tree.map_with_path(replace, state.params)
    ema = jax.tree.map_with_path(replace, state.ema)
    return state.replace(params=params, ema=ema)


class Stage(NamedTuple):
    """What the loop needs of a stage, and nothing more.

    init:     key -> TrainState
    step:     (state, frozen, batch, key) -> (state, scalars); pure, jitted by the loop
    preview:  (state, frozen, batch, key) -> {name: uint8 "H W 3"}; on the host
    evaluate: (state, frozen, batches) -> {name: float}; on the host
    """

    init: Callable
    step: Callable
    preview: Callable
    evaluate: Callable


def ema_update(ema: Any, params: Any, decay: float, step: int | Array) -> Any:
    """d ema + (1 - d) params with d = min(decay, (1 + n) / (10 + n)), n = `step`.

    `step` counts updates including this one. The warm-up is the original's `LitEma`.
    """
    n = jnp.asarray(step, jnp.float32)
    d = jnp.minimum(decay, (1 + n) / (10 + n))
    return jax.tree.map(lambda e, p: e + (1 - d) * (p - e), ema, params)
