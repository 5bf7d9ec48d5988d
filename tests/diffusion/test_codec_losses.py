"""Codec and losses against closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lDM_jax.core.errors import UserError
from lDM_jax.diffusion import losses
from lDM_jax.diffusion.codec import Codec, latent_scale
from lDM_jax.models.autoencoder import Autoencoder, DiagonalGaussian

SHAPE = dict(
    width=8, width_mults=(1, 1), num_res_blocks=1, z_channels=4, latent_channels=2
)


@pytest.fixture(scope="module", params=["kl", "vq"])
def codec(request):
    codes = None if request.param == "kl" else 16
    network = Autoencoder(**SHAPE, num_codes=codes, num_groups=4)
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    return Codec(network, 0.5), params


def test_decode_of_encode_is_the_reconstruction_whatever_the_scale(codec):
    codec, params = codec
    x = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3), minval=-1.0)
    expected = codec.autoencoder.apply(params, x)
    for scale in (0.5, 4.0):  # powers of two: scaling is exact
        scaled = dataclasses.replace(codec, scale=scale)
        z0 = scaled.encode(params, x)
        assert z0.shape == (2, *codec.latent_shape(8, 8))
        np.testing.assert_allclose(scaled.decode(params, z0), expected, atol=1e-5)


def test_posterior_samples_have_the_moments_mean_and_variance():
    mean, logvar = 1.5, np.log(0.25)
    moments = jnp.broadcast_to(jnp.array([mean, logvar]), (1, 200, 200, 2))
    codec = Codec(Autoencoder(**SHAPE, num_groups=4), 3.0)
    z0 = np.asarray(codec.sample(moments, jax.random.key(0)))
    # 40,000 draws: five standard errors of mean and standard deviation
    assert abs(z0.mean() - 3 * mean) < 5 * 1.5 / 200
    assert abs(z0.std() - 3 * 0.5) < 5 * 1.5 / np.sqrt(2 * 40_000)


def test_latent_scale_brings_latents_to_unit_deviation():
    moments = jnp.concatenate(
        [
            7.0 * jax.random.normal(jax.random.key(0), (64, 8, 8, 2)),
            jnp.full((64, 8, 8, 2), -30.0),
        ],
        axis=-1,
    )
    codec = Codec(Autoencoder(**SHAPE, num_groups=4))
    scale = latent_scale(codec, moments, jax.random.key(1))
    assert scale == pytest.approx(1 / 7, rel=0.02)


def test_an_image_that_f_does_not_divide_is_refused(codec):
    with pytest.raises(UserError, match="multiples of the first stage's factor 2"):
        codec[0].latent_shape(9, 8)


def test_kl_of_a_gaussian_against_numerical_integration():
    mean, variance = 0.7, 0.3
    z = np.linspace(-15, 15, 200_001)
    q = np.exp(-((z - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
    log_ratio = -((z - mean) ** 2) / (2 * variance) - 0.5 * np.log(variance) + z**2 / 2
    expected = float((q * log_ratio).sum() * (z[1] - z[0]))
    moments = jnp.array([mean, np.log(variance)]).reshape(1, 1, 1, 2)
    kl = DiagonalGaussian.from_moments(moments).kl()
    assert float(kl[0]) == pytest.approx(expected, rel=1e-5)


def test_reconstruction_sums_for_kl_and_averages_for_vq():
    x = jnp.zeros((2, 4, 4, 3))
    x_hat = x.at[0].add(0.5)
    for reduction, elements in (("sum", 48), ("mean", 1)):
        total, _ = losses.reconstruction_loss(x_hat, x, reduction=reduction)
        assert float(total) == pytest.approx(0.5 * elements / 2)
        # LPIPS stands beside every pixel's error (broadcast in the original)
        total, scalars = losses.reconstruction_loss(
            x_hat,
            x,
            reduction=reduction,
            pixel_loss="l2",
            perceptual=jnp.array([10.0, 30.0]),
            perceptual_weight=0.1,
        )
        assert float(total) == pytest.approx(elements * (0.25 / 2 + 0.1 * 20))
        assert float(scalars["lpips"]) == 20


def test_psnr_of_a_constant_error():
    # error 0.02 on a range of 2 is one part in a hundred: 40 dB
    x = jnp.zeros((1, 4, 4, 3))
    assert float(losses.psnr(x + 0.02, x)[0]) == pytest.approx(40.0, abs=1e-4)


def test_diffusion_loss_weights_rows():
    zero = jnp.zeros((2, 2, 2, 1))
    prediction = zero.at[0].set(1.0).at[1].set(3.0)
    total, error = losses.diffusion_loss(prediction, zero, weight=jnp.array([2.0, 0.5]))
    np.testing.assert_allclose(error, [1.0, 9.0])
    assert float(total) == pytest.approx((2 * 1 + 0.5 * 9) / 2)


def test_unknown_pixel_loss_names_the_valid_ones():
    zero = jnp.zeros((1, 2, 2, 1))
    with pytest.raises(UserError, match="l1, l2"):
        losses.pixel_error("huber", zero, zero)
