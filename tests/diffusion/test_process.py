"""Schedules against the original's buffers; conversions, weights, grids as theorems.

tests/reference/schedules.npz: schedule buffers (f32) of the original program with
linear_start 0.0015, linear_end 0.0195 (celeba) and 0.00085, 0.012 (txt2img).
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lDM_jax.core.errors import UserError
from lDM_jax.diffusion.process import PREDICTIONS, Process, make_process
from lDM_jax.diffusion.schedules import SCHEDULES, SPACINGS, make_betas

REFERENCE = np.load(pathlib.Path(__file__).parents[1] / "reference" / "schedules.npz")
F32 = 6e-8  # half a unit in the last place: the original rounds float64 tables once

PROCESSES = {
    "eps": Process.discrete(),
    "v": Process.discrete(prediction="v", zero_terminal_snr=True),
    "z0": Process.discrete(prediction="z0", schedule="cosine"),
    "velocity": Process.rectified_flow(),
    "F": Process.edm(),
}


def some_times(process):
    t = np.array([1, 17, 400, 998])
    return jnp.asarray(t, jnp.float32 if process.continuous else jnp.int32)


def noise(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_linear_schedule_is_the_originals():
    process = Process.discrete()
    pairs = {
        "betas": make_betas(1000, "linear"),
        "alphas_cumprod": process.alphas**2,
        "sqrt_alphas_cumprod": process.alphas,
        "sqrt_one_minus_alphas_cumprod": process.sigmas,
    }
    for name, ours in pairs.items():
        np.testing.assert_allclose(ours, REFERENCE[f"celeba/{name}"], rtol=F32)
    process = Process.discrete(linear_start=0.00085, linear_end=0.012)
    np.testing.assert_allclose(
        process.alphas**2, REFERENCE["txt2img/alphas_cumprod"], rtol=F32
    )


def test_cosine_schedule_follows_its_signal_until_the_clip():
    u = (np.arange(1, 951) / 1000 + 8e-3) / (1 + 8e-3)
    signal = np.cos(u * np.pi / 2) ** 2 / np.cos(8e-3 / (1 + 8e-3) * np.pi / 2) ** 2
    alphas = Process.discrete(schedule="cosine").alphas
    np.testing.assert_allclose(alphas[:950] ** 2, signal, rtol=1e-10)
    assert make_betas(1000, "cosine").max() == 0.999


def test_sqrt_schedules_are_linear_in_beta_and_in_its_square():
    for schedule, power in (("sqrt_linear", 1), ("sqrt", 2)):
        betas = make_betas(100, schedule, linear_start=1e-4, linear_end=2e-2) ** power
        np.testing.assert_allclose(betas[[0, -1]], [1e-4, 2e-2], rtol=1e-12)
        np.testing.assert_allclose(np.diff(betas, 2), 0, atol=1e-16)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_discrete_scales_preserve_variance_and_decrease(schedule):
    for terminal in (False, True):
        process = Process.discrete(
            schedule=schedule, prediction="v", zero_terminal_snr=terminal
        )
        np.testing.assert_allclose(process.alphas**2 + process.sigmas**2, 1, rtol=1e-14)
        assert np.all(np.diff(process.alphas) < 0)
        assert (process.alphas[-1] == 0) == terminal


def test_zero_terminal_snr_keeps_the_first_scale_and_ends_in_noise():
    plain = Process.discrete(prediction="v")
    process = Process.discrete(prediction="v", zero_terminal_snr=True)
    assert process.alphas[0] == pytest.approx(plain.alphas[0], rel=1e-14)
    assert (process.alphas[-1], process.sigmas[-1]) == (0, 1)
    assert process.scales(jnp.array([999]))[0] == 0
    stretch = np.diff(process.alphas) / np.diff(plain.alphas)
    np.testing.assert_allclose(stretch, stretch[0], rtol=1e-9)


def test_q_sample_has_the_scales_of_its_time():
    z0, eps = noise(0, 4, 3, 3, 2), noise(1, 4, 3, 3, 2)
    for process in PROCESSES.values():
        t = some_times(process)
        z_t = np.asarray(process.q_sample(z0, eps, t), np.float64)
        index = np.asarray(t, int)
        if process.prediction == "F":
            level = 0.002 * 40_000 ** (index / 1000)
            alpha, sigma = (a / np.hypot(level, 0.5) for a in (0.5, level))
        elif process.continuous:
            alpha, sigma = 1 - index / 1000, index / 1000
        else:
            alpha, sigma = process.alphas[index], process.sigmas[index]
        for row in range(4):
            expected = alpha[row] * z0[row] + sigma[row] * eps[row]
            np.testing.assert_allclose(z_t[row], expected, atol=1e-6)


@pytest.mark.parametrize("kind", PROCESSES)
def test_targets_convert_back_to_the_pair_they_came_from(kind):
    process = PROCESSES[kind]
    z0, eps, t = noise(0, 4, 3, 3, 2), noise(1, 4, 3, 3, 2), some_times(process)
    z_t = process.q_sample(z0, eps, t)
    alpha, sigma = process.scales(t)
    pair = process.to_z0_eps(process.target(z0, eps, t), z_t, alpha, sigma)
    # z0 from eps divides by alpha = 0.008 at t = 998; eps from z0 by sigma_1.
    np.testing.assert_allclose(pair[0], z0, atol=1e-4)
    np.testing.assert_allclose(pair[1], eps, atol=1e-4)
    one = process.to_z0_eps(process.target(z0, eps, t)[:1], z_t[:1], alpha[0], sigma[0])
    np.testing.assert_allclose(one[0], pair[0][:1], rtol=1e-6)


def test_velocity_is_the_slope_of_the_line():
    process = PROCESSES["velocity"]
    z0, eps = noise(0, 2, 3, 3, 2), noise(1, 2, 3, 3, 2)
    at = [process.q_sample(z0, eps, jnp.full(2, t)) for t in (250.0, 750.0)]
    slope = (at[1] - at[0]) / 0.5
    np.testing.assert_allclose(process.target(z0, eps, jnp.zeros(2)), slope, atol=1e-6)


def test_min_snr_weights_are_the_papers():
    alphas, sigmas = PROCESSES["eps"].alphas, PROCESSES["eps"].sigmas
    snr = alphas**2 / sigmas**2
    clipped = np.minimum(snr, 5)
    expected = {"eps": clipped / snr, "z0": clipped, "v": clipped / (snr + 1)}
    for prediction in PREDICTIONS:
        process = Process.discrete(prediction=prediction)
        weight = process.loss_weight(jnp.arange(1000), kind="min_snr")
        np.testing.assert_allclose(weight, expected[prediction], rtol=2e-5)
        assert np.all(np.asarray(process.loss_weight(jnp.arange(3))) == 1)


@pytest.mark.parametrize("kind", PROCESSES)
def test_min_snr_weighs_every_prediction_as_the_same_error_of_z0(kind):
    process = PROCESSES[kind]
    t = some_times(process)[1:3]
    alpha, sigma = process.scales(t)
    z_t, prediction = noise(0, 2, 3), noise(1, 2, 3)
    z0 = [process.to_z0_eps(prediction + d, z_t, alpha, sigma)[0] for d in (0, 1)]
    weight = process.loss_weight(t, kind="min_snr", gamma=3.0)
    expected = jnp.minimum((alpha / sigma) ** 2, 3.0)[:, None] * (z0[1] - z0[0]) ** 2
    np.testing.assert_allclose(weight[:, None] * jnp.ones((2, 3)), expected, rtol=1e-3)


def test_weights_are_finite_where_the_snr_is_not():
    flow = PROCESSES["velocity"].loss_weight(jnp.array([0.0, 1000.0]), kind="min_snr")
    np.testing.assert_array_equal(flow, [0, 0])
    last = PROCESSES["v"].loss_weight(jnp.array([999]), kind="min_snr")
    np.testing.assert_array_equal(last, [0])


def test_training_times_have_the_named_distribution():
    key = jax.random.key(0)
    t = np.asarray(PROCESSES["eps"].sample_times(key, 20000))
    assert t.dtype == np.int32
    assert (t.min(), t.max()) == (0, 999)
    # standard error of the mean of a uniform on 0 .. 999: 289 / sqrt(20000) = 2
    assert abs(t.mean() - 499.5) < 8
    t = np.asarray(PROCESSES["velocity"].sample_times(key, 20000))
    assert t.dtype == np.float32
    assert t.min() > 0 and t.max() <= 1000
    assert abs(t.mean() - 500) < 8
    flow = Process.rectified_flow(time_distribution="logit_normal")
    u = np.asarray(flow.sample_times(key, 20000), np.float64) / 1000
    logit = np.log(u / (1 - u))
    assert abs(logit.mean()) < 0.03 and abs(logit.std() - 1) < 0.03


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 10, 20, 50, 100, 200, 250, 500])
def test_leading_grid_is_the_originals_where_that_runs(steps):
    original = np.asarray(list(range(0, 1000, 1000 // steps))) + 1
    process = Process.discrete()
    grid = process.grid(steps)
    np.testing.assert_array_equal(grid.times, [*original[::-1], 0])
    np.testing.assert_array_equal(grid.alphas[:-1], process.alphas[original[::-1]])
    assert grid.alphas[-1] == process.alphas[0]
    assert grid.sigmas[-1] == process.sigmas[0]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", PROCESSES)
def test_grids_take_the_asked_steps_within_range_toward_clean(kind, spacing):
    process = PROCESSES[kind]
    for steps in (1, 2, 3, 7, 27, 101, 333, 350, 400, 999, 1000):
        grid = process.grid(steps, spacing)
        times, ratio = grid.times, grid.sigmas[1:] * grid.alphas[:-1]
        assert grid.steps == steps
        assert np.all(np.diff(times[:-1]) < 0)
        last = 1000 if process.continuous else 999
        assert times.min() >= 0 and times.max() <= last
        assert np.all(ratio < grid.alphas[1:] * grid.sigmas[:-1])
        if not process.continuous and spacing != "karras":
            assert np.issubdtype(times.dtype, np.integer)
            np.testing.assert_array_equal(grid.alphas[:-1], process.alphas[times[:-1]])
        if spacing != "leading":
            assert (grid.alphas[-1], grid.sigmas[-1]) == (1, 0)
            assert times[0] == pytest.approx(last, rel=1e-12)


@pytest.mark.parametrize("kind", ["leading", "trailing"])
def test_the_full_grid_visits_every_time_and_ends_clean(kind):
    grid = Process.discrete().grid(1000, kind)
    np.testing.assert_array_equal(grid.times[:-1], np.arange(1000)[::-1])
    assert (grid.alphas[-1], grid.sigmas[-1]) == (1, 0)


def test_flow_grid_is_uniform_from_noise_to_data():
    grid = PROCESSES["velocity"].grid(8, "trailing")
    np.testing.assert_allclose(grid.sigmas, np.arange(8, -1, -1) / 8, atol=1e-15)
    np.testing.assert_allclose(grid.times, 1000 * grid.sigmas, atol=1e-12)


@pytest.mark.parametrize("kind", ["eps", "z0", "velocity", "F"])
def test_karras_grid_is_even_in_the_seventh_root_and_in_step_with_time(kind):
    process = PROCESSES[kind]
    grid = process.grid(30, "karras")
    ratio = grid.sigmas[:-1] / np.maximum(grid.alphas[:-1], 1e-300)
    inner = slice(1, None) if kind == "velocity" else slice(None)
    root = ratio[inner] ** (1 / 7)
    np.testing.assert_allclose(np.diff(root, 2), 0, atol=1e-12)
    if kind == "velocity":
        np.testing.assert_allclose(grid.times, 1000 * grid.sigmas, atol=1e-9)
        return
    if kind == "F":
        share = np.log(ratio * 0.5 / 0.002) / np.log(40_000)
        np.testing.assert_allclose(grid.times[:-1], 1000 * share, atol=1e-9)
        np.testing.assert_allclose(ratio[[0, -1]] * 0.5, [80, 0.002], rtol=1e-9)
        return
    below = np.floor(grid.times[:-1] + 1e-9).astype(int)
    above = np.ceil(grid.times[:-1] - 1e-9).astype(int)
    assert np.all(ratio >= process.sigmas[below] / process.alphas[below] * (1 - 1e-9))
    assert np.all(ratio <= process.sigmas[above] / process.alphas[above] * (1 + 1e-9))


def test_a_section_of_a_config_makes_a_process():
    process = make_process(kind="discrete", num_timesteps=10, prediction="v")
    assert process.alphas.shape == (10,) and process.prediction == "v"
    flow = make_process(kind="rectified_flow", time_distribution="logit_normal")
    assert flow.continuous and flow.prediction == "velocity"


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: make_process(kind="vp"), "rectified_flow"),
        (lambda: make_process(beta=1), "linear_start"),
        (lambda: make_process(kind="edm", sigma_max=1e-3), "above sigma_min"),
        (lambda: make_process(kind="rectified_flow", logit_std=0.0), "above 0"),
        (lambda: make_process(schedule="quadratic"), "cosine"),
        (lambda: make_process(prediction="velocity"), "eps, v, z0"),
        (lambda: make_process(zero_terminal_snr=True), '"v" or "z0"'),
        (lambda: Process.rectified_flow(time_distribution="beta"), "logit_normal"),
        (lambda: PROCESSES["eps"].grid(0), r"1 \.\. 1000"),
        (lambda: PROCESSES["eps"].grid(1001), r"1 \.\. 1000"),
        (lambda: PROCESSES["eps"].grid(2.5), "integer"),
        (lambda: PROCESSES["eps"].grid(10, "log"), "karras"),
        (lambda: PROCESSES["eps"].loss_weight(jnp.arange(2), kind="p2"), "min_snr"),
    ],
)
def test_mistakes_are_answered_with_what_is_valid(call, said):
    with pytest.raises(UserError, match=said):
        call()
