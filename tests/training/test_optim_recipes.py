"""Optimisers, schedules and averages that recipes choose: each against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lDM_jax.core.errors import UserError
from lDM_jax.training.optim import make_optimizer, make_schedule
from lDM_jax.training.state import averaging, power_exponent


def test_inverse_sqrt_is_flat_and_then_falls():
    rate = make_schedule(
        learning_rate=2.0,
        schedule="inverse_sqrt",
        warmup_steps=10,
        num_steps=None,
        decay_from_steps=100,
    )
    assert [float(rate(n)) for n in (0, 5, 10, 100)] == [0.0, 1.0, 2.0, 2.0]
    for n in (400, 10_000):
        assert float(rate(n)) == pytest.approx(2.0 * (100 / n) ** 0.5, rel=1e-6)
    with pytest.raises(UserError, match="decay_from_steps"):
        make_schedule(
            learning_rate=1.0, schedule="inverse_sqrt", warmup_steps=0, num_steps=9
        )


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (3, 3, 4, 16)])
def test_muon_moves_kernels_by_orthogonal_matrices(shape):
    """Singular values of the first update: 0.2 sqrt(longer side) times about 1.

    Five Newton-Schulz steps bring them to [0.7, 1.2] (Jordan et al. 2024), not to 1.
    """
    kernel = jax.random.normal(jax.random.key(0), shape)
    params = {"x": {"kernel": kernel, "bias": jnp.ones(5)}, "embedding": kernel}
    optimizer, _ = make_optimizer(name="muon", learning_rate=0.5)
    adam, _ = make_optimizer(name="adamw", learning_rate=0.5)
    (updates, _), (as_adam, _) = (
        kind.update(params, kind.init(params), params) for kind in (optimizer, adam)
    )
    matrix = np.asarray(updates["x"]["kernel"]).reshape(-1, shape[-1])
    values = np.linalg.svd(matrix, compute_uv=False)
    size = 0.5 * 0.2 * max(matrix.shape) ** 0.5
    assert 0.6 * size < values.min() and values.max() < 1.25 * size
    # The root mean square is then about 0.2 x rate, as Adam's usually is.
    assert np.sqrt((matrix**2).mean()) == pytest.approx(0.5 * 0.2, rel=0.25)
    for moved, expected in (
        (updates["x"]["bias"], as_adam["x"]["bias"]),
        (updates["embedding"], as_adam["embedding"]),
    ):
        np.testing.assert_array_equal(moved, expected)


def test_muon_decays_like_adamw_and_runs_jitted():
    params = {"kernel": jnp.ones((4, 6))}
    zeros = jax.tree.map(jnp.zeros_like, params)
    optimizer, _ = make_optimizer(name="muon", learning_rate=0.1, weight_decay=0.2)
    state = optimizer.init(params)
    updates, _ = jax.jit(optimizer.update)(zeros, state, params)
    np.testing.assert_allclose(updates["kernel"], -0.02, rtol=1e-6)


@pytest.mark.parametrize("std", [0.05, 0.10, 0.2])
def test_power_average_has_the_width_it_was_asked_for(std):
    """Averaging the unit vectors e_1 .. e_N gives the weights themselves.

    They follow t^gamma on 0 .. 1, whose relative width is `std` up to 1 / N.
    """
    steps = 400
    update = averaging(0.0, std)

    def one(ema, n):
        return update(ema, jax.nn.one_hot(n - 1, steps), n), None

    weights, _ = jax.lax.scan(one, jnp.full(steps, 7.0), jnp.arange(1, steps + 1))
    weights = np.asarray(weights, np.float64)
    assert weights.sum() == pytest.approx(1, abs=1e-4)  # the start is forgotten
    t = np.arange(1, steps + 1) / steps
    mean = weights @ t
    assert np.sqrt(weights @ (t - mean) ** 2) == pytest.approx(std, rel=0.02)
    gamma = power_exponent(std)
    late = weights[steps // 2 :]
    slope = np.polyfit(np.log(t[steps // 2 :]), np.log(late), 1)[0]
    assert slope == pytest.approx(gamma, rel=0.02)


def test_published_exponents():
    """arXiv 2312.02696, section 3.1: 5 % is gamma = 16.97, 10 % is 6.94."""
    assert power_exponent(0.05) == pytest.approx(16.97, abs=0.005)
    assert power_exponent(0.10) == pytest.approx(6.94, abs=0.005)
    for wrong in (0.0, -0.1, 0.3):
        with pytest.raises(UserError, match="ema_std"):
            power_exponent(wrong)


def test_without_a_width_it_is_the_originals_average():
    ema = {"w": jnp.zeros(())}
    for n in (1, 1000):
        found = averaging(0.9)(ema, {"w": jnp.ones(())}, n)["w"]
        assert float(found) == pytest.approx(1 - min(0.9, (1 + n) / (10 + n)))
