"""Latent scales, the identity first stage, and what a weights directory stores."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import emoji, emoji_autoencoder
from lDM_jax.core.errors import UserError
from lDM_jax.diffusion.codec import (
    Codec,
    channel_statistics,
    latent_scale,
    pooled_variances,
)
from lDM_jax.from_config import networks
from lDM_jax.models.autoencoder import Autoencoder, Identity
from lDM_jax.tools import export
from lDM_jax.training import experiment
from lDM_jax.training.summary import summary
from lDM_jax.weights import directory as weights_directory
from tests.reference import rule

SHAPE = dict(width=8, width_mults=(1, 1), num_res_blocks=1, num_groups=4)
VQ = Autoencoder(**SHAPE, z_channels=4, latent_channels=2, num_codes=16)
DEVIATIONS = np.array([7.0, 0.5], np.float32)


def test_scales_per_channel_bring_every_channel_to_unit_deviation():
    moments = DEVIATIONS * rule.noise("z", (64, 8, 8, 2)) + 3
    key = jax.random.key(0)
    scales = latent_scale(Codec(VQ), moments, key, per_channel=True)
    # a deviation over 4096 draws errs by 1 in 90
    np.testing.assert_allclose(scales, 1 / DEVIATIONS, rtol=0.05)
    z0 = Codec(VQ, scales).mode(jnp.asarray(moments))
    np.testing.assert_allclose(np.asarray(z0).std(axis=(0, 1, 2)), 1, rtol=1e-5)
    scale = latent_scale(Codec(VQ), moments, key)
    assert np.asarray(Codec(VQ, scale).mode(moments)).std() == pytest.approx(1, 1e-5)


def test_statistics_of_several_hosts_are_those_of_all_latents():
    z = DEVIATIONS * rule.noise("z", (8, 4, 4, 2)) + np.arange(8.0).reshape(8, 1, 1, 1)
    hosts = np.stack([channel_statistics(part) for part in np.split(z, [1, 3, 6])])
    np.testing.assert_allclose(
        pooled_variances(hosts, per_channel=True), z.var(axis=(0, 1, 2)), rtol=1e-5
    )
    np.testing.assert_allclose(
        pooled_variances(hosts, per_channel=False), z.var(), rtol=1e-5
    )


def test_scales_per_channel_cancel_in_a_reconstruction():
    params = rule.fast_jit(VQ.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    x = rule.noise("x", (2, 8, 8, 3))
    codec = Codec(VQ, (0.5, 4.0))  # powers of two: scaling is exact
    moments = rule.fast_jit(codec.moments)(params, x)
    z0 = np.asarray(codec.mode(moments))
    np.testing.assert_array_equal(z0, np.asarray(moments) * np.float32([0.5, 4]))
    expected = rule.fast_jit(VQ.apply)(params, x)
    decoded = rule.fast_jit(codec.decode)(params, z0)
    np.testing.assert_allclose(decoded, expected, atol=1e-5)


@pytest.mark.parametrize(
    "scale", [0.0, -1.0, float("nan"), (1.0,), (1.0, 2.0, 3.0), (1.0, 0.0)]
)
def test_other_scales_are_refused(scale):
    with pytest.raises(UserError, match="positive number, or one for each of the 2"):
        Codec(VQ, scale)


def test_constant_latents_have_no_scale():
    moments = np.ones((2, 4, 4, 2), np.float32)
    with pytest.raises(UserError, match="no scale"):
        latent_scale(Codec(VQ), moments, jax.random.key(0))


def test_the_identity_stage_gives_back_pixels():
    codec, x = Codec(Identity(), 0.5), rule.noise("x", (2, 5, 7, 3))
    assert codec.latent_shape(5, 7) == (5, 7, 3)
    z0 = codec.encode({}, x)
    np.testing.assert_array_equal(z0, 0.5 * x)
    np.testing.assert_array_equal(codec.decode({}, z0), x)
    network = Identity()
    variables = network.init(jax.random.key(0), x)
    assert not variables
    np.testing.assert_array_equal(network.apply(variables, x), x)
    quantized = network.apply(variables, x, method="quantize")
    np.testing.assert_array_equal(quantized.z, x)
    assert float(quantized.loss) == float(quantized.commitment) == 0


def test_a_diffusion_over_pixels_builds_and_steps():
    config = emoji.get_config("smoke").unlock()
    config.first_stage.path = "identity"
    assert "latents (4, 32, 32, 3)" in summary(config)
    made = experiment.make(config)
    assert config.first_stage.scale == 0
    assert made.frozen == {"first_stage": {}}
    key = jax.random.key(0)
    state = jax.eval_shape(made.stage.init, key)
    step = made.stage.step
    _, scalars = jax.eval_shape(step, state, {}, next(made.iterator), key)
    assert scalars["loss"].shape == ()


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory):
    """A weights directory of a toy first stage, without a latent scale."""
    config = emoji_autoencoder.get_config("smoke")
    network = networks.autoencoder(config.autoencoder)
    params = rule.fast_jit(network.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    path = tmp_path_factory.mktemp("first_stage") / "toy"
    weights_directory.save(path, config.to_dict(), params)
    return path


def loaded(path) -> Codec:
    config = emoji.get_config("smoke").unlock()
    config.first_stage.path = str(path)
    return networks.first_stage(config)[0]


def test_export_stores_a_scale_that_build_reads(first_stage, tmp_path):
    channels = loaded(first_stage).channels
    kinds = ([], float), (["--per_channel_scale"], list)
    for flags, kind in kinds:
        out = tmp_path / kind.__name__
        flags = ["--workdir", str(first_stage), "--out", str(out), *flags]
        assert export.main(flags) == 0
        stored = json.loads((out / weights_directory.CONFIG).read_text())[
            "latent_scale"
        ]
        assert type(stored) is kind
        scale = loaded(out).scale
        assert scale == (stored if kind is float else tuple(stored))
    assert len(scale) == channels and len(set(scale)) > 1


def test_a_stored_scale_of_other_channels_is_refused(first_stage, tmp_path):
    config, params = weights_directory.load(first_stage)
    weights_directory.save(
        tmp_path / "bad", {**config, "latent_scale": [1.0, 2.0]}, params
    )
    with pytest.raises(UserError, match=r"latent scale \(1.0, 2.0\)"):
        loaded(tmp_path / "bad")
