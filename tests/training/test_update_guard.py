"""The guard around an update: what it skips, counts, remembers and when it halts."""

import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lDM_jax.core import rng
from lDM_jax.core.errors import UserError
from lDM_jax.training.optim import make_optimizer
from lDM_jax.training.state import TrainState
from lDM_jax.training.update_guard import WINDOW, Guard, Limits, guarded

ROOT = jax.random.key(7)


def stage():
    """w <- w + batch["move"]; loss and gradient norm are what the batch says."""

    def init(key):
        optimizer, _ = make_optimizer(learning_rate=1.0)
        return TrainState.create({"w": jnp.zeros(3)}, optimizer)

    def step(state, frozen, batch, key):
        params = {"w": state.params["w"] + batch["move"]}
        noise = jax.random.uniform(key)
        scalars = {"loss": batch["loss"], "gnorm": batch["gnorm"], "noise": noise}
        return TrainState(state.step + 1, params, params, state.opt_state), scalars

    return SimpleNamespace(init=init, step=step)


def drive(losses, limits=None, gnorms=None):
    """State, guard and the list of scalars after one update a loss."""
    update = jax.jit(guarded(stage(), ROOT, limits or Limits()))
    state, guard, seen = stage().init(ROOT), Guard.start(), []
    for loss, gnorm in zip(losses, gnorms or [1.0] * len(losses), strict=True):
        batch = {"move": 1.0, "loss": jnp.float32(loss), "gnorm": jnp.float32(gnorm)}
        state, guard, scalars = update(state, guard, {}, batch)
        seen.append(jax.device_get(scalars))
    return state, guard, seen


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_non_finite_update_is_skipped_and_counted(bad, where):
    values = [1.0, bad, 1.0, bad, bad, 1.0]
    ones = [1.0] * 6
    loss, gnorm = (values, ones) if where == "loss" else (ones, values)
    state, guard, seen = drive(loss, gnorms=gnorm)
    np.testing.assert_array_equal(state.params["w"], 3.0)
    assert int(state.step) == 6  # the step counts on: batches and keys do too
    assert (int(guard.skipped), int(guard.accepted)) == (3, 3)
    assert [int(s["skipped_in_row"]) for s in seen] == [0, 1, 0, 1, 2, 0]


def test_the_key_is_that_of_the_step():
    _, _, seen = drive([1.0, math.nan, 1.0])
    expected = [jax.random.uniform(rng.key(ROOT, "step", k)) for k in range(3)]
    np.testing.assert_array_equal([s["noise"] for s in seen], expected)


def test_too_many_in_a_row_halt_for_good():
    losses = [1.0, math.nan, math.nan, math.nan, 1.0, 1.0]
    state, guard, seen = drive(losses, Limits(max_skipped=3))
    np.testing.assert_array_equal(state.params["w"], 1.0)
    assert [int(s["skipped_in_row"]) for s in seen] == [0, 1, 2, 3, 4, 5]


def test_spikes_beyond_the_window_are_skipped():
    """Losses alternating between 0 and 2 have mean 1 and standard deviation 1."""
    calm = [0.0, 2.0] * (WINDOW // 2)
    limits = Limits(spike_sigmas=3.0)
    _, guard, _ = drive([*calm, 4.1, 3.9], limits)
    assert int(guard.skipped) == 1  # 4.1 > 1 + 3, 3.9 is not
    # A window that is not full judges nothing; without the option nothing is judged.
    assert int(drive([*calm[2:], 100.0], limits)[1].skipped) == 0
    assert int(drive([*calm, 100.0])[1].skipped) == 0
    np.testing.assert_allclose(guard.losses[0], 3.9)  # took the oldest one's place


def test_it_travels_through_json():
    _, guard, _ = drive([0.1, math.nan, 1 / 3])
    back = Guard.from_record(json.loads(json.dumps(guard.record())))
    for name, leaf in vars(guard).items():
        again = getattr(back, name)
        assert again.dtype == leaf.dtype
        np.testing.assert_array_equal(again, leaf)
    _, halted, _ = drive([math.nan] * 4, Limits(max_skipped=2))
    again = Guard.from_record(halted.record())
    assert (int(halted.in_row), int(again.in_row), int(again.skipped)) == (4, 0, 4)


def test_impossible_limits_are_refused():
    for wrong in (dict(max_skipped=0), dict(spike_sigmas=-1.0)):
        with pytest.raises(UserError, match="config.train"):
            Limits(**wrong)
