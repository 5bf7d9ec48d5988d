"""What training carries: `TrainState`, its EMA, and the loop's `Stage` contract."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lDM_jax.arrays import Array, UserError


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
        values = np.asarray(initial[name]).astype(leaf.dtype)
        sharding = leaf.sharding  # of all processes, each of which has the values
        return jax.make_array_from_callback(leaf.shape, sharding, lambda i: values[i])

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


def power_exponent(std: float) -> float:
    """gamma of the power function whose relative width is `std`.

    The EMA's weights are proportional to t^gamma on 0 .. now; their standard deviation,
    as a share of the time passed, is std = sqrt((g + 1) / ((g + 2)^2 (g + 3))). Source:
    Karras et al. 2023 (arXiv 2312.02696), section 3.1. UserError unless
    0 < std < 1 / sqrt(12), the width of a plain mean.
    """
    if not 0 < std < 12**-0.5:
        raise UserError(f"ema_std = {std}; valid: above 0 and below 0.2886")
    return float(np.roots([1, 7, 16 - std**-2, 12 - std**-2]).real.max())


def averaging(decay: float, std: float = 0.0) -> Callable:
    """(ema, params, step) -> ema: `ema_update`, or with `std` a power function.

    beta_n = (1 - 1 / n)^(gamma + 1), so that the average always spans the same share of
    the run and the random start is forgotten at the first update.
    """
    if not std:
        return lambda ema, params, step: ema_update(ema, params, decay, step)
    gamma = power_exponent(std)

    def update(ema: Any, params: Any, step: int | Array) -> Any:
        n = jnp.asarray(step, jnp.float32)
        rest = 1 - (1 - 1 / n) ** (gamma + 1)
        return jax.tree.map(lambda e, p: e + rest * (p - e), ema, params)

    return update
