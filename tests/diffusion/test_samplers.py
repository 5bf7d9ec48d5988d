"""Samplers as numerical methods: orders, exact limits, moments, independence of rows.

The data are Gaussian N(MEAN, DEVIATION^2) in each element, or a mixture of two, so that
the best denoiser is known in closed form, and for the Gaussian so is the whole path:
(z_t - alpha MEAN) / sqrt(alpha^2 DEVIATION^2 + sigma^2) stays constant.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lDM_jax.core import rng
from lDM_jax.core.errors import UserError
from lDM_jax.diffusion import samplers
from lDM_jax.diffusion.process import SPACINGS, Grid, Process

BUFFERS = np.load(pathlib.Path(__file__).parents[1] / "reference" / "schedules.npz")
MEAN, DEVIATION = 0.7, 0.5
WEIGHTS, MEANS, WIDTH = (0.3, 0.7), (-1.0, 0.8), 0.25

EPS = Process.discrete()
FLOW = Process.rectified_flow()
PROCESSES = {
    "eps": EPS,
    "v": Process.discrete(prediction="v", zero_terminal_snr=True),
    "z0": Process.discrete(prediction="z0"),
    "velocity": FLOW,
}
STOCHASTIC = [("ddpm", "v", 0.0), ("dpmpp_sde", "v", 0.0)]
STOCHASTIC += [("ddim", "velocity", 0.5), ("euler_ancestral", "velocity", 0.0)]


def said(process, z0, z, alpha, sigma):
    """The prediction of `process` that means z0 at z."""
    if process.prediction == "z0":
        return z0
    eps = (z - alpha * z0) / sigma
    kinds = {"eps": eps, "v": alpha * eps - sigma * z0, "velocity": eps - z0}
    return kinds[process.prediction]


def denoiser(process, grid, posterior_mean):
    """The exact denoiser at the grid's times, looked up by the time it is told."""
    times = jnp.asarray(grid.times[:-1], jnp.float32)

    def denoise(z, t):
        at = jnp.argmin(jnp.abs(times - t[0].astype(jnp.float32)))
        alpha = jnp.asarray(grid.alphas, z.dtype)[at]
        sigma = jnp.asarray(grid.sigmas, z.dtype)[at]
        z0 = posterior_mean(z, alpha, sigma)
        return said(process, z0, z, alpha, sigma)

    return denoise


def gaussian(z, alpha, sigma):
    gain = alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2)
    return MEAN + gain * (z - alpha * MEAN)


def mixture(z, alpha, sigma):
    variance = alpha**2 * WIDTH**2 + sigma**2
    parts = [
        (
            jnp.log(weight) - (z - alpha * mean) ** 2 / (2 * variance),
            mean + alpha * WIDTH**2 / variance * (z - alpha * mean),
        )
        for weight, mean in zip(WEIGHTS, MEANS, strict=True)
    ]
    share = jax.nn.sigmoid(parts[1][0] - parts[0][0])
    return parts[0][1] + share * (parts[1][1] - parts[0][1])


def gaussian_path(z, grid):
    """Where the exact path from z at the grid's start is at its end."""
    spread = np.sqrt(grid.alphas**2 * DEVIATION**2 + grid.sigmas**2)
    unit = (np.asarray(z) - grid.alphas[0] * MEAN) / spread[0]
    return grid.alphas[-1] * MEAN + spread[-1] * unit


def error(process, grid, name):
    """Largest error of a whole trajectory, in float64."""
    with jax.enable_x64(True):
        z = jnp.asarray([-1.3, 0.4, 2.0], jnp.float64).reshape(1, 1, 1, 3)
        denoise = denoiser(process, grid, gaussian)
        out = jax.jit(
            lambda z: samplers.sample(denoise, z, process, grid=grid, sampler=name)
        )(z)
        assert out.dtype == jnp.float64
        return np.abs(np.asarray(out) - gaussian_path(z, grid)).max()


def without_end(grid):
    """The grid without its last time: the log-SNR stays finite on it."""
    return Grid(grid.times[:-1], grid.alphas[:-1], grid.sigmas[:-1])


ORDERS = {"ddim": 0.9, "euler": 0.9, "dpmpp_1": 0.9, "plms": 1.8, "heun": 1.9}
ORDERS |= {"dpmpp_2m": 1.9, "unipc": 1.9}


@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name):
    errors = [
        error(EPS, without_end(EPS.grid(steps + 1, "karras")), name)
        for steps in (80, 320)
    ]
    assert np.log(errors[0] / errors[1]) / np.log(4) >= ORDERS[name]


@pytest.mark.parametrize("name", ["ddim", "heun", "plms", "dpmpp_2m", "unipc"])
def test_order_of_convergence_from_pure_noise_to_clean_data(name):
    """The rectified flow's ends have infinite log-SNR.

    Steps that touch an end are of first order. For dpmpp_2m, a method in log-SNR whose
    strides near pure noise do not shrink with the step, that leaves h^2 log(1/h).
    """
    errors = [error(FLOW, FLOW.grid(n, "trailing"), name) for n in (80, 320)]
    expected = 1.7 if name == "dpmpp_2m" else min(ORDERS[name], 1.85)
    assert np.log(errors[0] / errors[1]) / np.log(4) >= expected


def test_adams_bashforth_integrates_polynomials_exactly():
    """With k earlier values, polynomials of degree k over the coming unit interval."""
    past = -np.arange(4.0)
    for degree in range(4):
        for row in samplers.ADAMS_BASHFORTH[degree:]:
            assert row @ past**degree == pytest.approx(1 / (degree + 1), abs=1e-12)


def keys_of(count):
    return rng.seed_keys(range(count))


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("name, eta", [("ddim", 1.0), ("ddpm", 0.0)])
def test_ancestral_steps_on_the_full_grid_are_the_ddpm_posterior(name, eta):
    """Mean and variance of q(z_{t-1} | z_t, z0), from the original's buffers."""
    grid, keys = EPS.grid(1000, "trailing"), keys_of(2)
    z, eps = normal(0, 2, 4, 4, 3), normal(1, 2, 4, 4, 3)
    for t in (999, 600, 50, 1, 0):
        i = 999 - t
        carry = samplers.step(
            lambda z, t: eps,
            samplers.start_carry(z, name),
            i,
            EPS,
            grid=grid,
            sampler=name,
            eta=eta,
            keys=keys,
        )
        buffers = {name[7:]: BUFFERS[name][t] for name in BUFFERS if "celeba" in name}
        z0 = z - buffers["sqrt_one_minus_alphas_cumprod"] * eps
        z0 = z0 / buffers["sqrt_alphas_cumprod"]
        mean = (
            buffers["posterior_mean_coef1"] * z0 + buffers["posterior_mean_coef2"] * z
        )
        noise = rng.normal_per_seed(keys, (4, 4, 3), step=i + 1)
        expected = mean + np.sqrt(buffers["posterior_variance"]) * noise
        # z0 = (z - sigma eps) / alpha carries f32 rounding over alpha (0.04 at t = 999)
        np.testing.assert_allclose(carry.z, expected, atol=2e-5)
        np.testing.assert_allclose(carry.z0_hat, z0, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["ddim", "euler", "dpmpp_1"])
def test_first_order_samplers_are_the_exponential_step_for_a_constant_z0(name):
    """DPM-Solver++(1): z_s = sigma_s / sigma_t z + alpha_s (1 - e^-h) z0_hat."""
    grid = EPS.grid(10, "linspace")
    z = normal(0, 2, 4, 4, 3)
    denoise = denoiser(EPS, grid, gaussian)
    carry = samplers.start_carry(z, name)
    for i in range(9):
        z0 = gaussian(z, grid.alphas[i], grid.sigmas[i])
        h = np.diff(np.log(grid.alphas[i : i + 2] / grid.sigmas[i : i + 2]))[0]
        z = grid.sigmas[i + 1] / grid.sigmas[i] * z
        z = z - grid.alphas[i + 1] * np.expm1(-h) * z0
        carry = samplers.step(denoise, carry, i, EPS, grid=grid, sampler=name)
        np.testing.assert_allclose(carry.z, z, atol=1e-5)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_one_step_to_clean_data_is_the_denoisers_estimate(name):
    """With one step there is no past and, at clean data, no second evaluation."""
    with jax.disable_jit():
        for process in (EPS, FLOW):
            for spacing in SPACINGS:
                grid = process.grid(1, spacing)
                z = normal(0, 2, 2, 2, 1)
                estimate = gaussian(z, grid.alphas[0], grid.sigmas[0])
                asked = []

                def denoise(z, t, process=process, grid=grid, asked=asked):
                    asked.append(t)
                    z0 = gaussian(z, grid.alphas[0], grid.sigmas[0])
                    return said(process, z0, z, grid.alphas[0], grid.sigmas[0])

                out = samplers.sample(
                    denoise, z, process, grid=grid, sampler=name, keys=keys_of(2)
                )
                if grid.sigmas[-1] > 0:
                    assert np.all(np.isfinite(out))
                    continue
                # z0 from eps amplifies f32 rounding by 1 / alpha = 26
                np.testing.assert_allclose(out, estimate, atol=1e-4)
                assert len(asked) == 1
                np.testing.assert_array_equal(asked[0], np.float32(grid.times[0]))


@pytest.mark.parametrize("name, kind, eta", STOCHASTIC)
def test_stochastic_samplers_give_the_moments_of_a_mixture(name, kind, eta):
    process, keys = PROCESSES[kind], keys_of(4)
    grid = process.grid(1000 if kind == "v" else 500, "trailing")
    denoise = denoiser(process, grid, mixture)
    out = jax.jit(
        lambda z: samplers.sample(
            denoise, z, process, grid=grid, sampler=name, eta=eta, keys=keys
        )
    )(normal(0, 4, 64, 64, 1))
    x = np.asarray(out, np.float64).ravel()
    mean = np.dot(WEIGHTS, MEANS)
    second = np.dot(WEIGHTS, np.square(MEANS)) + WIDTH**2
    # 16384 samples: standard errors 0.007 (moments, shares) and 0.002 (width); the
    # first-order samplers' bias at these steps is 0.004. The modes meet at -0.1.
    assert abs(x.mean() - mean) < 0.025
    assert abs(np.mean(x**2) - second) < 0.025
    assert abs(np.mean(x < -0.1) - WEIGHTS[0]) < 0.015
    assert abs(x[x < -0.1].std() - WIDTH) < 0.012
    assert abs(x[x > -0.1].std() - WIDTH) < 0.012


@pytest.mark.parametrize("name", ["plms", "dpmpp_sde", "unipc"])
def test_stepping_is_sampling_and_a_later_start_is_a_shorter_run(name):
    grid, keys = EPS.grid(6, "trailing"), keys_of(2)
    denoise = denoiser(EPS, grid, mixture)
    options = dict(sampler=name, keys=keys)
    z = normal(0, 2, 4, 4, 1)
    step = jax.jit(lambda c, i: samplers.step(denoise, c, i, EPS, grid=grid, **options))
    run = jax.jit(
        lambda z, s: samplers.sample(denoise, z, EPS, start=s, grid=grid, **options)
    )
    for start in (0, 2):
        carry = samplers.start_carry(z, name)
        for i in range(start, 6):
            carry = step(carry, jnp.int32(i))
        np.testing.assert_allclose(carry.z, run(z, start), atol=2e-5)
    assert step._cache_size() == run._cache_size() == 1
    if name != "dpmpp_sde":  # whose noise goes by the index
        later = Grid(grid.times[2:], grid.alphas[2:], grid.sigmas[2:])
        short = samplers.sample(denoise, z, EPS, grid=later, **options)
        np.testing.assert_allclose(carry.z, short, atol=2e-5)


def test_a_row_depends_on_its_own_key_alone():
    grid = EPS.grid(5, "trailing")
    denoise = denoiser(EPS, grid, mixture)
    z, keys = normal(0, 4, 4, 4, 1), keys_of(4)

    @jax.jit
    def run(z, keys):
        return samplers.sample(
            denoise, z, EPS, grid=grid, sampler="dpmpp_sde", keys=keys
        )

    together = run(z, keys)
    np.testing.assert_allclose(run(z[2:3], keys[2:3])[0], together[2], atol=1e-6)
    np.testing.assert_allclose(run(z[::-1], keys[::-1])[::-1], together, atol=1e-6)
    assert not np.allclose(run(z[:1], keys[1:2])[0], together[0], atol=0.1)


def test_every_step_draws_its_own_noise():
    grid = EPS.grid(4, "trailing")
    z, keys = jnp.zeros((1, 8, 8, 1)), keys_of(1)
    draws = []
    carry = samplers.start_carry(z)
    for i in range(3):
        carry = samplers.step(
            lambda z, t: jnp.zeros_like(z),
            carry._replace(z=z),
            i,
            EPS,
            grid=grid,
            eta=1.0,
            keys=keys,
        )
        draws.append(np.asarray(carry.z).ravel())
    correlation = np.corrcoef(draws) - np.eye(3)
    assert np.abs(correlation).max() < 0.5


def test_changing_eta_or_seed_never_retraces():
    grid, traces = EPS.grid(5, "trailing"), []
    denoise = denoiser(EPS, grid, mixture)

    @jax.jit
    def run(z, eta, keys):
        traces.append(1)
        return samplers.sample(denoise, z, EPS, grid=grid, eta=eta, keys=keys)

    z = normal(0, 2, 4, 4, 1)
    still = run(z, 0.0, keys_of(2))
    noisy = run(z, 1.0, rng.seed_keys([7, 8]))
    assert len(traces) == 1
    plain = samplers.sample(denoise, z, EPS, grid=grid)
    np.testing.assert_allclose(still, plain, atol=1e-5)
    assert not np.allclose(still, noisy, atol=0.1)


def test_the_network_is_told_whole_times_for_each_row_and_answers_in_any_dtype():
    told = []

    def denoise(z, t):
        told.append(t)
        return jnp.zeros(z.shape, jnp.bfloat16)

    with jax.disable_jit():
        out = samplers.sample(
            denoise, jnp.ones((3, 2, 2, 1), jnp.bfloat16), EPS, grid=EPS.grid(4)
        )
    assert out.dtype == jnp.float32
    assert all(t.shape == (3,) and t.dtype == jnp.int32 for t in told)
    assert [int(t[0]) for t in told] == [751, 501, 251, 1]


@pytest.mark.parametrize("name, calls", [("plms", 5), ("heun", 7), ("unipc", 4)])
def test_evaluations_of_the_network(name, calls):
    told = []

    def denoise(z, t):
        told.append(int(t[0]))
        return 0.1 * z

    grid = EPS.grid(4, "trailing")
    with jax.disable_jit():
        samplers.sample(denoise, jnp.ones((1, 2, 2, 1)), EPS, grid=grid, sampler=name)
    assert len(told) == calls
    assert told[-1] == 249


def test_forgetting_makes_the_next_step_a_first_step():
    """As `Pipeline.update` has it after a change of what the denoiser predicts."""
    grid = EPS.grid(8, "trailing")
    denoise = denoiser(EPS, grid, mixture)
    for name in ("plms", "dpmpp_2m", "unipc"):

        @jax.jit
        def step(carry, i, name=name):
            return samplers.step(denoise, carry, i, EPS, grid=grid, sampler=name)

        carry = samplers.start_carry(normal(0, 1, 4, 4, 1), name)
        for i in range(4):
            carry = step(carry, i)
        forgot = samplers.forget(carry)
        fresh = samplers.start_carry(carry.z, name)
        expected = step(fresh, 4).z
        np.testing.assert_allclose(step(forgot, 4).z, expected, atol=1e-6)
        assert not np.allclose(step(carry, 4).z, expected, atol=1e-3)


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(sampler="ddim2"), "ddpm, ddim, plms, euler, euler_ancestral, heun"),
        (dict(sampler="ddpm"), "keys"),
        (dict(sampler="ddim", eta=0.5), "keys"),
        (dict(sampler="plms", eta=0.5), "valid: eta 0"),
        (dict(start=3), r"0 \.\. 2"),
    ],
)
def test_mistakes_are_answered_with_what_is_valid(options, said):
    with pytest.raises(UserError, match=said):
        samplers.sample(
            lambda z, t: z, jnp.ones((1, 2, 2, 1)), EPS, grid=EPS.grid(2), **options
        )


def inverted(steps: int) -> float:
    """Largest error of the inversion from clean data to the noise on the exact path."""
    grid = EPS.grid(steps + 1, "karras")
    grid = without_end(grid)
    start = np.asarray([-1.3, 0.4, 2.0]).reshape(1, 1, 1, 3)
    z0 = jnp.asarray(gaussian_path(start, grid), jnp.float32)
    denoise = denoiser(EPS, grid_with_end(grid), gaussian)
    out = jax.jit(lambda z: samplers.invert(denoise, z, EPS, grid=grid))(z0)
    return np.abs(np.asarray(out) - start).max()


def grid_with_end(grid):
    """A grid whose last time the exact denoiser may be asked about."""
    parts = (grid.times, grid.alphas, grid.sigmas)
    return Grid(*(np.append(part, 0.0) for part in parts))


def test_inversion_walks_the_path_backwards_at_first_order():
    coarse, fine = inverted(80), inverted(320)
    assert np.log(coarse / fine) / np.log(4) >= 0.9 and fine < 0.05


def test_slerp_stays_on_the_sphere_and_meets_its_ends():
    a, b = np.random.default_rng(0).standard_normal((2, 3, 4, 4, 2)).astype(np.float32)
    norms = lambda x: np.sqrt((np.asarray(x) ** 2).sum(axis=(1, 2, 3)))  # noqa: E731
    b *= (norms(a) / norms(b))[:, None, None, None]
    for u in (0.0, 0.25, 1.0):
        np.testing.assert_allclose(norms(samplers.slerp(a, b, u)), norms(a), rtol=1e-5)
    np.testing.assert_allclose(samplers.slerp(a, b, 0.0), a, atol=1e-6)
    np.testing.assert_allclose(samplers.slerp(a, b, 1.0), b, atol=1e-6)
    third = samplers.slerp(a, b, 1 / 3)

    def angle(x, y):
        return np.arccos((np.asarray(x) * y).sum((1, 2, 3)) / norms(x) / norms(y))

    np.testing.assert_allclose(angle(third, a), angle(b, a) / 3, rtol=1e-4)
    np.testing.assert_allclose(samplers.slerp(a, 2 * a, 0.5), 1.5 * a, rtol=1e-5)
