"""Every sampler beside diffusers' scheduler of the same name, on a nonlinear denoiser.

Where the two differ on purpose a test says so; there we compare after undoing the one
difference, so that everything else is still checked.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="needs requirements-dev.txt")
    diffusers = pytest.importorskip("diffusers", reason="needs requirements-dev.txt")
    from diffusers.schedulers import (
        scheduling_ddpm,
        scheduling_euler_ancestral_discrete,
    )

from lDM_jax.core import rng
from lDM_jax.diffusion import samplers
from lDM_jax.diffusion.process import SPACINGS, Process, make_betas

pytestmark = [
    pytest.mark.live,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

EPS = Process.discrete()
BETAS = dict(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear")
SCALED_BY_VARIANCE = ("EulerDiscrete", "HeunDiscrete", "EulerAncestralDiscrete")
Z = np.random.default_rng(0).standard_normal((2, 3, 4, 2)).astype(np.float32)
KEYS = rng.seed_keys([3, 4])
TOLERANCE = 1e-4  # on latents of size 20: f32 tables there, float64 tables here


def network(xp, z, u):
    """Any smooth function will do: not linear in z, u = t / 1000."""
    return (0.6 + 0.4 * u) * xp.tanh(1.3 * z + 0.2) + 0.3 * z


def ours(grid, sampler, *, time=True, eta=0.0):
    def denoise(z, t):
        u = t.astype(jnp.float32)[:, None, None, None] / 1000
        return network(jnp, z, u if time else 0.5)

    run = jax.jit(
        lambda z: samplers.sample(
            denoise, z, EPS, grid=grid, sampler=sampler, eta=eta, keys=KEYS
        )
    )
    return np.asarray(run(Z))


def scheduler(name, **options):
    return getattr(diffusers, f"{name}Scheduler")(**BETAS, **options)


def theirs(other, steps, *, time=True, times=None, last=None, **options):
    """diffusers' loop from Z, with other times or another last sigma if given."""
    if times is None:
        other.set_timesteps(steps)
    else:
        other.set_timesteps(timesteps=[int(t) for t in times])
    if last is not None:
        other.sigmas[-1] = last
    z = torch.from_numpy(Z)
    ratios = [0.0, 0.0]
    if type(other).__name__.removesuffix("Scheduler") in SCALED_BY_VARIANCE:
        # Their latents are z_t / alpha_t. Their own init_noise_sigma drops alpha_T for
        # these spacings, half a percent off; the start is not what is compared.
        ratios = [float(other.sigmas[0]), float(other.sigmas[-1])]
    z = z * (1 + ratios[0] ** 2) ** 0.5
    for i, t in enumerate(other.timesteps):
        prediction = network(
            torch, other.scale_model_input(z, t), float(t) / 1000 if time else 0.5
        )
        values = {name: value(i) for name, value in options.items()}
        z = other.step(prediction, t, z, **values).prev_sample
    return z.numpy() / (1 + ratios[1] ** 2) ** 0.5


def noise(i):
    """The noise of our step i, for their scheduler."""
    return torch.from_numpy(
        np.array(rng.normal_per_seed(KEYS, Z.shape[1:], step=i + 1))
    )


def agree(left, right):
    np.testing.assert_allclose(left, right, atol=TOLERANCE, rtol=0)


LEADING = dict(timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False)
DDIM = dict(clip_sample=False)


@pytest.mark.parametrize("steps", [1, 20, 50])
def test_ddim_and_plms_on_the_originals_grid(steps):
    grid = EPS.grid(steps, "leading")
    agree(ours(grid, "ddim"), theirs(scheduler("DDIM", **DDIM, **LEADING), steps))
    plms = scheduler("PNDM", skip_prk_steps=True, **LEADING)
    if steps > 1:
        agree(ours(grid, "plms"), theirs(plms, steps))


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_stochastic_ddim(spacing):
    options = LEADING if spacing == "leading" else dict(timestep_spacing=spacing)
    other = theirs(
        scheduler("DDIM", **DDIM, **options),
        20,
        eta=lambda i: 0.7,
        variance_noise=noise,
    )
    agree(ours(EPS.grid(20, spacing), "ddim", eta=0.7), other)


def test_ddpm(monkeypatch):
    step = iter(range(1000))
    monkeypatch.setattr(
        scheduling_ddpm, "randn_tensor", lambda *args, **kwargs: noise(next(step))
    )
    other = theirs(
        scheduler("DDPM", clip_sample=False, timestep_spacing="trailing"), 50
    )
    agree(ours(EPS.grid(50, "trailing"), "ddpm"), other)


@pytest.mark.parametrize(
    "name, sampler, options",
    [
        ("EulerDiscrete", "euler", {}),
        ("EulerDiscrete", "ddim", {}),
        ("HeunDiscrete", "heun", {}),
        ("DPMSolverMultistep", "dpmpp_1", dict(solver_order=1)),
        ("DPMSolverMultistep", "dpmpp_2m", dict(lower_order_final=False)),
    ],
)
@pytest.mark.parametrize("spacing", SPACINGS[:4])
def test_ode_samplers_at_the_same_times(name, sampler, options, spacing):
    """Times given, since diffusers' own rounding of a spacing differs by scheduler.

    Theirs end clean unless told otherwise; our leading grid ends at index 0, as the
    original's does. HeunDiscrete has no second evaluation in its last step even if that
    ends in noise, where ours has: there is nothing to compare.
    """
    last = None
    if spacing == "leading":
        if sampler == "heun":
            pytest.skip("HeunDiscrete's last step is Euler's")
        if name == "DPMSolverMultistep":
            options = dict(options, final_sigmas_type="sigma_min")
        last = EPS.sigmas[0] / EPS.alphas[0]
    for steps in (1, 7, 20):
        grid = EPS.grid(steps, spacing)
        other = scheduler(name, **options)
        expected = theirs(other, steps, times=grid.times[:-1], last=last)
        agree(ours(grid, sampler), expected)


@pytest.mark.parametrize("steps", [1, 20, 40])
def test_unipc(steps):
    other = theirs(scheduler("UniPCMultistep", timestep_spacing="trailing"), steps)
    agree(ours(EPS.grid(steps, "trailing"), "unipc"), other)


@pytest.mark.parametrize(
    "name, sampler, options",
    [
        ("EulerDiscrete", "euler", {}),
        ("HeunDiscrete", "heun", {}),
        ("DPMSolverMultistep", "dpmpp_2m", dict(lower_order_final=False)),
        ("UniPCMultistep", "unipc", {}),
    ],
)
def test_karras_grid(name, sampler, options):
    """The denoiser ignores time: two of theirs round it, away from the sigma they use.

    Not compared at one step: there their grid is the smallest sigma, not the largest.
    """
    other = theirs(scheduler(name, use_karras_sigmas=True, **options), 20, time=False)
    agree(ours(EPS.grid(20, "karras"), sampler, time=False), other)


def test_sde_dpm_solver():
    options = dict(algorithm_type="sde-dpmsolver++", lower_order_final=False)
    other = scheduler("DPMSolverMultistep", timestep_spacing="trailing", **options)
    agree(
        ours(EPS.grid(20, "trailing"), "dpmpp_sde"),
        theirs(other, 20, variance_noise=noise),
    )


def test_euler_ancestral(monkeypatch):
    step = iter(range(20))
    monkeypatch.setattr(
        scheduling_euler_ancestral_discrete,
        "randn_tensor",
        lambda *args, **kwargs: noise(next(step)),
    )
    other = scheduler("EulerAncestralDiscrete", timestep_spacing="trailing")
    agree(ours(EPS.grid(20, "trailing"), "euler_ancestral"), theirs(other, 20))


@pytest.mark.parametrize("spacing, steps", [("linspace", 20), ("trailing", 7)])
def test_their_ddim_leaves_its_own_grid_where_ours_does_not(spacing, steps):
    """DDIMScheduler steps to t - T // steps, which is not the next time it will visit.

    Our DDIM on these times is their Euler's (`test_ode_samplers_at_the_same_times`).
    """
    other = scheduler("DDIM", **DDIM, timestep_spacing=spacing)
    difference = theirs(other, steps) - ours(EPS.grid(steps, spacing), "ddim")
    assert np.abs(difference).max() > 0.01
    visited = other.timesteps.numpy()
    assert np.any(visited[:-1] - 1000 // steps != visited[1:])


def test_cosine_and_terminal_schedules():
    other = diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    # theirs are f32 differences from 1: half a unit of 1 over the smallest beta, 4e-5
    np.testing.assert_allclose(make_betas(1000, "cosine"), other.betas, rtol=2e-3)
    other = scheduler("DDIM", rescale_betas_zero_snr=True)
    ended = Process.discrete(prediction="v", zero_terminal_snr=True)
    np.testing.assert_allclose(ended.alphas**2, other.alphas_cumprod, atol=1e-6)


def test_inversion_is_diffusers_inverse_scheduler():
    """DDIMInverseScheduler asks at the times that its steps go to, as `invert` does."""
    steps = 20
    theirs = scheduler(
        "DDIMInverse", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    theirs.set_timesteps(steps)
    z = torch.from_numpy(Z.transpose(0, 3, 1, 2).copy())
    for t in theirs.timesteps:
        prediction = network(torch, z, float(t) / 1000)
        z = theirs.step(prediction, t, z).prev_sample
    grid = EPS.grid(steps)
    times = np.asarray(theirs.timesteps)[::-1]

    def denoise(z, t):
        u = t.astype(jnp.float32)[:, None, None, None] / 1000
        return network(jnp, z, u)

    result = jax.jit(lambda z: samplers.invert(denoise, z, EPS, grid=grid))(Z)
    np.testing.assert_array_equal(times, grid.times[:-1])
    expected = z.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(result, expected, atol=TOLERANCE)
