"""Recipes of the second stage: preconditioning, flows, losses, as closed forms."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lDM_jax.diffusion import losses, samplers
from lDM_jax.diffusion.process import Process, make_process
from lDM_jax.from_config import networks
from lDM_jax.training import build
from lDM_jax.training.optim import make_optimizer
from lDM_jax.training.state import Averages, TrainState, apply_gradients, norms
from lDM_jax.training.workdir import compare

SIGMA_DATA = 0.5


def noise(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def level_of(t):
    """EDM's noise level of our time, from its c_noise = ln(s) / 4."""
    c_noise = (np.log(0.002) + np.asarray(t, np.float64) / 1000 * np.log(40_000)) / 4
    return np.exp(4 * c_noise)


def test_edm_is_the_published_preconditioning():
    """arXiv 2206.00364, table 1, on data y = 0.5 z0, with some network F."""
    process = Process.edm()
    z0, n = noise(0, 5, 3, 3, 2), noise(1, 5, 3, 3, 2)
    t = jnp.array([1.0, 200.0, 555.5, 800.0, 999.0])
    s = level_of(t).reshape(-1, 1, 1, 1)
    y = SIGMA_DATA * np.asarray(z0, np.float64)
    x = y + s * np.asarray(n)
    c_skip = SIGMA_DATA**2 / (s**2 + SIGMA_DATA**2)
    c_out = s * SIGMA_DATA / np.sqrt(s**2 + SIGMA_DATA**2)
    c_in = 1 / np.sqrt(s**2 + SIGMA_DATA**2)
    z_t = process.q_sample(z0, n, t)
    np.testing.assert_allclose(z_t, c_in * x, atol=1e-5)  # f32 logarithms of levels
    network = jnp.tanh(3 * z_t) + 0.1
    denoised = c_skip * x + c_out * np.asarray(network)
    z0_hat, eps_hat = process.to_z0_eps(network, z_t, *process.scales(t))
    np.testing.assert_allclose(SIGMA_DATA * z0_hat, denoised, atol=2e-5)
    alpha, sigma = (np.reshape(a, s.shape) for a in process.scales(t))
    np.testing.assert_allclose(alpha * z0_hat + sigma * eps_hat, z_t, atol=1e-5)
    weight = (s**2 + SIGMA_DATA**2) / (s * SIGMA_DATA) ** 2
    expected = weight * (denoised - y) ** 2
    result = process.loss_weight(t).reshape(s.shape)
    result = result * (network - process.target(z0, n, t)) ** 2
    # At s = 0.002 the error of D is multiplied by 250,000: rounding of c_skip x.
    np.testing.assert_allclose(result[1:], expected[1:], rtol=1e-3, atol=1e-4)


def test_edm_draws_the_published_noise_levels():
    levels = np.log(level_of(Process.edm().sample_times(jax.random.key(0), 20_000)))
    # standard errors: 1 / sqrt(20000) = 0.007 of the mean, 0.005 of the deviation
    assert abs(levels.mean() + 0.4) < 0.03 and abs(levels.std() - 1) < 0.02
    first = Process.edm(p_mean=-1.2, p_std=1.2)
    levels = np.log(level_of(first.sample_times(jax.random.key(1), 20_000)))
    assert abs(levels.mean() + 1.2) < 0.035 and abs(levels.std() - 1.2) < 0.025


def test_flow_times_can_lean_towards_noise():
    flow = Process.rectified_flow(logit_mean=1.0, logit_std=0.5)
    u = np.asarray(flow.sample_times(jax.random.key(0), 20_000), np.float64) / 1000
    logit = np.log(u / (1 - u))
    assert abs(logit.mean() - 1) < 0.015 and abs(logit.std() - 0.5) < 0.01


@pytest.mark.parametrize("kind", ["rectified_flow", "edm"])
def test_euler_on_its_own_grid_solves_gaussian_data_to_first_order(kind):
    """For data N(m, d^2) the best prediction and the way of every sample are known."""
    process, mean, width = make_process(kind), 0.7, 0.4

    def denoise(z, t):
        alpha, sigma = process.scales(t)
        alpha, sigma = alpha.reshape(-1, 1, 1, 1), sigma.reshape(-1, 1, 1, 1)
        variance = (alpha * width) ** 2 + sigma**2
        z0 = mean + alpha * width**2 / variance * (z - alpha * mean)
        eps = sigma / variance * (z - alpha * mean)
        return eps - z0 if kind == "rectified_flow" else sigma * z0 - alpha * eps

    z_start = noise(3, 4, 2, 2, 1)
    errors = []
    for steps in (50, 100):
        grid = process.grid(steps)  # "leading" is the kind's own
        if kind == "edm":  # rho = 7
            roots = (grid.sigmas[:-1] / grid.alphas[:-1]) ** (1 / 7)
            np.testing.assert_allclose(np.diff(roots, 2), 0, atol=1e-12)
        else:
            even = np.arange(steps, -1, -1) / steps
            np.testing.assert_allclose(grid.sigmas, even, atol=1e-15)
        z = samplers.sample(denoise, z_start, process, grid=grid, sampler="euler")
        alpha, sigma = grid.alphas[0], grid.sigmas[0]
        deviation = np.hypot(alpha * width, sigma)
        exact = mean + width * (np.asarray(z_start) - alpha * mean) / deviation
        errors.append(np.abs(z - exact).max())
    assert errors[0] < 0.1
    assert errors[1] / errors[0] == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("kind", ["rectified_flow", "edm"])
def test_one_value_of_a_published_config_changes_the_process(kind):
    config = importlib.import_module("configs.celebahq_ldm4").get_config()
    config.process.kind = kind
    process = make_process(**config.process)
    assert process.continuous and process.times_like is not None
    assert process.grid(50, config.sample.spacing).times[0] == pytest.approx(1000)


def test_the_published_recipe_is_the_default():
    """Rombach et al. 2022: eps, linear betas, plain mean of squares, AdamW, EMA."""
    config = importlib.import_module("configs.celebahq_ldm4").get_config()
    process = make_process(**config.process)
    assert (process.prediction, process.continuous) == ("eps", False)
    assert (config.loss.weighting, config.loss.log_variance) == ("uniform", False)
    section = config.optimizer
    assert (section.name, section.schedule, section.clip_norm) == (
        "adamw",
        "constant",
        0.0,
    )
    assert (section.b1, section.b2, section.weight_decay) == (0.9, 0.999, 0.01)
    assert (config.train.ema_decay, config.train.ema_std) == (0.9999, 0.0)
    assert not config.train.ema_stds


def test_the_learned_log_variance_finds_the_logarithm_of_the_error():
    """argmin_u e / exp(u) + u = ln e; and then every time contributes alike."""
    place = jnp.linspace(0, 1, 200)
    truth = -1 + 1.5 * jnp.cos(jnp.pi * place) - 0.4 * jnp.cos(3 * jnp.pi * place)
    target = jnp.zeros((200, 2, 2, 1))
    prediction = target + jnp.exp(truth / 2)[:, None, None, None]
    one = jnp.ones(200)

    def loss(coefficients):
        u = losses.cosine_series(coefficients, place)
        total, error = losses.diffusion_loss(
            prediction, target, weight=one, log_variance=u
        )
        return total, (u, error)

    optimizer = optax.adam(0.03)

    def step(carry, _):
        coefficients, state = carry
        grads, _ = jax.grad(loss, has_aux=True)(coefficients)
        updates, state = optimizer.update(grads, state)
        return (coefficients + updates, state), None

    start = jnp.zeros(8)
    carry = start, optimizer.init(start)
    (result, _), _ = jax.lax.scan(step, carry, None, length=1500)
    total, (u, error) = loss(result)
    np.testing.assert_allclose(error, jnp.exp(truth), rtol=1e-5)  # as it is reported
    np.testing.assert_allclose(u, truth, atol=5e-3)  # what 1,500 steps of Adam reach
    assert float(total) == pytest.approx(1 + float(truth.mean()), abs=1e-3)


def test_a_config_that_learns_the_log_variance_has_a_place_for_it():
    config = importlib.import_module("configs.emoji_unconditional").get_config("smoke")
    for learned in (False, True):
        config.loss.log_variance = learned
        model = networks.model(config, networks.abstract_codec(config))
        shapes = jax.eval_shape(
            model.init, jax.random.key(0), {}, jnp.zeros((1, 8, 8, 3))
        )
        assert ("log_variance" in shapes) == learned


def test_errors_are_sorted_by_time():
    error = jnp.array([1.0, 2.0, 4.0, 8.0, 16.0])
    place = jnp.array([0.0, 0.24, 0.5, 0.74, 1.0])
    sums, counts = losses.by_time(error, place, 4)
    np.testing.assert_array_equal(sums, [3, 0, 12, 16])
    np.testing.assert_array_equal(counts, [2, 0, 2, 1])


def test_adamw_uses_both_betas():
    """Two steps by hand: m and v are averages, with the bias of the start removed."""
    b1, b2, rate = 0.8, 0.7, 0.1
    optimizer, _ = make_optimizer(learning_rate=rate, b1=b1, b2=b2, weight_decay=0.0)
    params = {"w": jnp.array([1.0])}
    state, m, v = optimizer.init(params), 0.0, 0.0
    for number, gradient in enumerate((0.5, -2.0), start=1):
        updates, state = optimizer.update({"w": jnp.array([gradient])}, state, params)
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
        expected = -rate * (m / (1 - b1**number)) / (v / (1 - b2**number)) ** 0.5
        np.testing.assert_allclose(updates["w"], expected, rtol=1e-5)


@pytest.mark.parametrize(("mask", "bias_moves"), [("all", True), ("matrices", False)])
def test_the_decay_mask_spares_vectors(mask, bias_moves):
    config = importlib.import_module("configs.emoji").get_config().unlock()
    config.optimizer.update(
        dict(decay_mask=mask, weight_decay=0.5, learning_rate=0.1, clip_norm=0.0)
    )
    config.optimizer.update(dict(schedule="constant", warmup_steps=0))
    optimizer = build.optimizer(config)
    params = {"kernel": jnp.full((2, 3), 4.0), "bias": jnp.full(3, 4.0)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5 * 4, rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], -0.2 * bias_moves, rtol=1e-6)


def test_norms_are_euclidean_over_all_arrays():
    grads = {
        "unet": {"a": jnp.array([3.0]), "b": jnp.array([[4.0]])},
        "conditioner": {},
    }
    params, updates = {"w": jnp.array([6.0, 8.0])}, {"w": jnp.array([5.0, 12.0])}
    result = norms(grads, params, updates)
    assert {name: float(value) for name, value in result.items()} == {
        "gnorm": 5.0,
        "norm/parameters": 10.0,
        "norm/update": 13.0,
    }
    grads["conditioner"] = {"c": jnp.array([12.0])}
    result = norms(grads, params, updates)
    assert float(result["gnorm"]) == 13.0
    assert float(result["gnorm/unet"]) == 5.0
    assert float(result["gnorm/conditioner"]) == 12.0


def test_an_update_applies_the_optimizer_and_averages_behind_it():
    params = {"w": jnp.array([1.0, 2.0])}
    state = TrainState.create(params, optax.sgd(0.5))
    grads = {"w": jnp.array([2.0, -2.0])}
    state, scalars = apply_gradients(state, grads, optax.sgd(0.5), Averages(0.9999))
    np.testing.assert_allclose(state.params["w"], [0.0, 3.0])
    # LitEma's first decay is 2 / 11
    np.testing.assert_allclose(state.ema["w"], [2 / 11, 3 - 2 / 11], rtol=1e-6)
    assert int(state.step) == 1
    assert float(scalars["norm/update"]) == pytest.approx(2**0.5)


def test_a_run_from_before_a_process_kind_goes_on():
    """Keys that its kind does not read may be missing or differ; those it reads not."""
    config = importlib.import_module("configs.celebahq_ldm4").get_config().unlock()
    now = json.loads(config.to_json())
    before = {**now, "process": {**now["process"]}}
    for name in ("sigma_data", "p_mean", "logit_std", "time_distribution"):
        before["process"].pop(name)
    assert compare(before, now) == []
    now["process"]["p_std"] = 1.2
    assert compare(before, now) == []
    now["process"]["kind"] = "edm"
    assert any("process.p_std" in text for text in compare(before, now))
    now["process"].update(kind="discrete", linear_end=0.02)
    assert compare(before, now) == ["process.linear_end: 0.0195 -> 0.02"]
