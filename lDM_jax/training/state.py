"""What training carries: `TrainState`, its averages, the loop's `Stage` contract."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lDM_jax.core.arrays import Array, Batch, Scalars
from lDM_jax.core.errors import UserError
from lDM_jax.core.sharding import put_whole


@flax.struct.dataclass
class TrainState:
    """step i32 "" (updates done), params, their EMA, and the optimizer's state."""

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any

    @classmethod
    def create(cls, params, optimizer: optax.GradientTransformation) -> "TrainState":
        """Step 0: the EMA starts as a copy of the parameters."""
        ema = jax.tree.map(jnp.array, params)
        return cls(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params))


@flax.struct.dataclass
class ProfiledState(TrainState):
    """`TrainState` with further averages of the parameters, one a profile.

    A class of its own, so that checkpoints of runs without profiles keep their form.
    """

    profiles: tuple = ()


def with_profiles(state: TrainState, count: int) -> TrainState:
    """The state with `count` profiles, all of them the parameters; 0: as it is."""
    if not count:
        return state
    copies = tuple(jax.tree.map(jnp.array, state.params) for _ in range(count))
    return ProfiledState(**vars(state), profiles=copies)


@dataclasses.dataclass(frozen=True)
class Averages:
    """The averages of the parameters that a state carries.

    decay, std: of `ema`, see `averaging`. stds: of the profiles, power functions of
    these widths, from which `training.posthoc_ema` makes others after the run.
    """

    decay: float = 0.9999
    std: float = 0.0
    stds: tuple[float, ...] = ()

    def update(self, state: TrainState, params: Any) -> dict:
        """{"ema": ...} and, where the state has them, {"profiles": ...}."""
        step = state.step + 1
        averages = {"ema": averaging(self.decay, self.std)(state.ema, params, step)}
        if self.stds:
            averages["profiles"] = tuple(
                averaging(0.0, std)(average, params, step)
                for std, average in zip(self.stds, state.profiles, strict=True)
            )
        return averages


def apply_gradients(
    state: TrainState,
    grads: Any,
    optimizer: optax.GradientTransformation,
    averages: Averages,
) -> tuple[TrainState, Scalars]:
    """One update: (the state behind it, `norms`)."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    moved = averages.update(state, params)
    done = dict(step=state.step + 1, params=params, opt_state=opt_state, **moved)
    return state.replace(**done), norms(grads, params, updates)


def norms(grads: Any, params: Any, updates: Any) -> Scalars:
    """Euclidean norms of the gradient (before clipping), the parameters, the update.

    "gnorm", "norm/parameters", "norm/update"; and "gnorm/PART" of each part of the
    gradient where there are several.
    """
    scalars = {
        "gnorm": optax.tree.norm(grads),
        "norm/parameters": optax.tree.norm(params),
        "norm/update": optax.tree.norm(updates),
    }
    parts = {name: part for name, part in grads.items() if jax.tree.leaves(part)}
    if len(parts) > 1:
        for name, part in parts.items():
            scalars[f"gnorm/{name}"] = optax.tree.norm(part)
    return scalars


def start_from(state: Any, initial: dict) -> Any:
    """A new state whose parameters and EMA are those of `initial`, by path "a/b/c".

    Paths that are not in it stay random; every leaf keeps its sharding.
    """

    def replace(path, leaf):
        name = "/".join(str(entry.key) for entry in path if hasattr(entry, "key"))
        if name not in initial:
            return leaf
        return put_whole(leaf.sharding, np.asarray(initial[name]).astype(leaf.dtype))

    names = vars(state).keys() & {"params", "ema", "profiles"}
    begun = {name: jax.tree.map_with_path(replace, vars(state)[name]) for name in names}
    return state.replace(**begun)


class Stage(Protocol):
    """What the loop needs of a stage, and nothing more."""

    def init(self, key: Array) -> TrainState:
        """The state of step 0."""

    def step(self, state, frozen, batch: Batch, key: Array) -> tuple[Any, Scalars]:
        """One update; pure, jitted by the loop."""

    def preview(self, state, frozen, batch: Batch, key: Array) -> dict[str, np.ndarray]:
        """Images uint8 "H W 3" by name; on the host."""

    def evaluate(self, state, frozen, batches: Iterable[Batch]) -> dict[str, float]:
        """Figures of held-out batches; on the host."""


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
