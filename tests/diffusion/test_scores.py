"""Guidance by a score: exact posteriors, the paper's image guidance, a classifier."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lDM_jax.core import rng
from lDM_jax.core.errors import UserError
from lDM_jax.diffusion import guidance
from lDM_jax.diffusion.codec import Codec
from lDM_jax.diffusion.guidance import by_score
from lDM_jax.diffusion.process import Process
from lDM_jax.models.autoencoder import Identity

T = jnp.array([1, 400, 900], jnp.int32)
KINDS = [
    Process.discrete(),
    Process.discrete(prediction="v"),
    Process.discrete(prediction="z0"),
    Process.rectified_flow(),
]


def noise(name: str, *shape: int) -> jax.Array:
    return jax.random.normal(rng.stream(jax.random.key(0), name), shape)


def denoiser(process: Process, mean, variance):
    """The exact one of data N(mean, variance), position by position."""

    def denoise(z, t):
        alpha, sigma = (s[:, None, None, None] for s in process.scales(t))
        total = alpha**2 * variance + sigma**2
        eps = sigma * (z - alpha * mean) / total
        z0 = mean + alpha * variance * (z - alpha * mean) / total
        return {
            "eps": eps,
            "z0": z0,
            "v": alpha * eps - sigma * z0,
            "velocity": eps - z0,
        }[process.prediction]

    return denoise


@pytest.mark.parametrize("process", KINDS, ids=lambda p: p.prediction)
def test_a_gaussian_prior_and_its_likelihood_make_the_exact_posterior(process):
    """y = z0 + r noise: the guided prior is the denoiser of p(z0 | y), in any units."""
    r2, y, z = 0.5, noise("y", 3, 4, 4, 2), noise("z", 3, 4, 4, 2)

    def log_prob(z0, z, t):
        alpha, sigma = (s[:, None, None, None] for s in process.scales(t))
        total = alpha**2 + sigma**2  # of the prior N(0, 1)
        mean, variance = alpha * z / total, sigma**2 / total
        return (-((y - mean) ** 2) / (2 * (variance + r2))).sum(axis=(1, 2, 3))

    guided = by_score(denoiser(process, 0.0, 1.0), log_prob, process, 1.0)
    exact = denoiser(process, y / (1 + r2), r2 / (1 + r2))
    # f32; at t = 900 of 1000 the units of "v" and "velocity" are 1 / alpha large
    np.testing.assert_allclose(guided(z, T), exact(z, T), rtol=2e-4, atol=2e-4)


def test_what_is_said_of_clean_latents_is_differentiated_through_the_network():
    process, y, z = Process.discrete(), noise("y", 3, 4, 4, 3), noise("z", 3, 4, 4, 3)
    prior = denoiser(process, 0.0, 1.0)  # z0_hat = alpha z
    log_prob = guidance.toward_target(Codec(Identity()), {}, y)
    alpha, sigma = (s[:, None, None, None] for s in process.scales(T))
    pull = alpha * (y - alpha * z)
    for scale in (0.0, 2.5):
        result = by_score(prior, log_prob, process, scale)(z, T)
        np.testing.assert_allclose(
            result, prior(z, T) - scale * sigma * pull, atol=2e-5
        )


def test_pure_noise_is_left_alone():
    process = Process.discrete(prediction="v", zero_terminal_snr=True)
    prior, z = denoiser(process, 0.0, 1.0), noise("z", 1, 4, 4, 3)
    log_prob = guidance.toward_target(Codec(Identity()), {}, jnp.zeros((1, 4, 4, 3)))
    last = jnp.array([999], jnp.int32)
    result = by_score(prior, log_prob, process, 3.0)(z, last)
    np.testing.assert_array_equal(result, prior(z, last))


def test_times_between_the_whole_ones_have_scales_between():
    process = Process.discrete()
    whole = process.scales(jnp.array([0, 10, 999], jnp.int32))
    real = process.scales(jnp.array([0.0, 10.0, 999.0]))
    for a, b in zip(whole, real, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    grid = process.grid(7, "karras")
    alpha, sigma = process.scales(jnp.asarray(grid.times[:-1], jnp.float32))
    np.testing.assert_allclose(alpha, grid.alphas[:-1], rtol=2e-4)
    np.testing.assert_allclose(sigma, grid.sigmas[:-1], rtol=2e-4)
    zero = Process.discrete(zero_terminal_snr=True, prediction="v")
    np.testing.assert_array_equal(zero.scales(jnp.array([999.0])), [[0.0], [1.0]])


def test_a_target_is_compared_at_its_own_size():
    """Against torch's antialiased bicubic, which others wrote."""
    torch = pytest.importorskip("torch", reason="needs requirements-dev.txt")
    x, y = noise("x", 2, 16, 24, 3), noise("y", 1, 4, 6, 3)
    small = torch.nn.functional.interpolate(
        torch.tensor(np.asarray(x)).permute(0, 3, 1, 2),
        (4, 6),
        mode="bicubic",
        antialias=True,
    )
    error = small.permute(0, 2, 3, 1).numpy() - np.asarray(y)
    result = guidance.toward_target(Codec(Identity()), {}, y)(x, None, None)
    np.testing.assert_allclose(result, -0.5 * (error**2).sum(axis=(1, 2, 3)), rtol=1e-4)
    with pytest.raises(UserError, match="larger than the picture"):
        guidance.toward_target(Codec(Identity()), {}, jnp.zeros((1, 32, 6, 3)))(
            x, None, None
        )


def test_a_class_is_its_log_probability():
    logits = noise("logits", 3, 5)
    log_prob = guidance.toward_class(lambda z, t: logits, 2)
    result = np.exp(log_prob(None, None, T))
    exp = np.exp(np.asarray(logits))
    np.testing.assert_allclose(result, exp[:, 2] / exp.sum(axis=1), rtol=1e-5)
