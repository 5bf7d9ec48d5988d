"""Guidance as identities: limits of the scale, one evaluation, rescale, interval."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lDM_jax.core.arrays import Cond
from lDM_jax.core.errors import UserError
from lDM_jax.diffusion.guidance import autoguidance, classifier_free, mix
from lDM_jax.diffusion.process import Process


def noise(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


Z = noise(0, 3, 4, 4, 2)
T = jnp.array([5, 500, 900], jnp.int32)
COND = Cond(context=noise(1, 3, 6, 2), vector=noise(2, 3, 2))
NULL = Cond(context=jnp.zeros((3, 6, 2)), vector=jnp.ones((3, 2)))


def network(z, t, cond):
    shift = cond.context.mean(1) + cond.vector + t.astype(jnp.float32)[:, None] / 1000
    return jnp.sin(z) + shift[:, None, None, :] * z


def test_scale_one_is_the_condition_and_zero_the_null():
    for scale, cond in ((1.0, COND), (0.0, NULL)):
        guided = classifier_free(network, COND, NULL, scale)
        np.testing.assert_allclose(guided(Z, T), network(Z, T, cond), atol=1e-6)


def test_the_guided_prediction_is_as_far_beyond_the_condition_as_the_scale_says():
    weak, strong = network(Z, T, NULL), network(Z, T, COND)
    guided = classifier_free(network, COND, NULL, 4.0)(Z, T)
    np.testing.assert_allclose(guided - strong, 3 * (strong - weak), atol=1e-5)


def test_the_network_is_asked_once_with_null_before_cond():
    asked = []

    def spy(z, t, cond):
        asked.append((z, t, cond))
        return network(z, t, cond)

    classifier_free(spy, COND, NULL, 2.0)(Z, T)
    ((z, t, cond),) = asked
    np.testing.assert_array_equal(z, np.concatenate([Z, Z]))
    np.testing.assert_array_equal(t, np.concatenate([T, T]))
    np.testing.assert_array_equal(cond.context[:3], NULL.context)
    np.testing.assert_array_equal(cond.vector[3:], COND.vector)
    assert cond.concat is None


def test_guidance_of_eps_and_of_z0_are_the_same_guidance():
    process = Process.discrete()
    weak, strong = noise(3, 3, 4, 4, 2), noise(4, 3, 4, 4, 2)
    scales = process.scales(jnp.array([5, 300, 500]))
    by_eps = process.to_z0_eps(mix(weak, strong, 3.0, T), Z, *scales)[0]
    ends = (process.to_z0_eps(x, Z, *scales)[0] for x in (weak, strong))
    np.testing.assert_allclose(by_eps, mix(*ends, 3.0, T), rtol=1e-4, atol=1e-4)


def test_a_scale_for_each_row():
    guided = classifier_free(network, COND, NULL, jnp.array([0.0, 1.0, 2.0]))(Z, T)
    for row, scale in enumerate((0.0, 1.0, 2.0)):
        alone = classifier_free(network, COND, NULL, scale)(Z, T)
        np.testing.assert_allclose(guided[row], alone[row], atol=1e-6)


def test_rescale_brings_back_the_deviation_of_the_condition():
    weak, strong = noise(3, 3, 4, 4, 2), noise(4, 3, 4, 4, 2)
    plain, whole, half = (
        mix(weak, strong, 7.5, T, rescale=phi) for phi in (0.0, 1.0, 0.5)
    )
    assert np.all(np.std(plain, axis=(1, 2, 3)) > 2 * np.std(strong, axis=(1, 2, 3)))
    np.testing.assert_allclose(
        np.std(whole, axis=(1, 2, 3)), np.std(strong, axis=(1, 2, 3)), rtol=1e-5
    )
    np.testing.assert_allclose(half, (plain + whole) / 2, atol=1e-5)
    assert np.all(np.isfinite(mix(0 * weak, 0 * strong, 2.0, T, rescale=0.7)))


def test_outside_the_interval_there_is_no_guidance():
    guided = classifier_free(network, COND, NULL, 5.0, interval=(100, 500))(Z, T)
    everywhere = classifier_free(network, COND, NULL, 5.0)(Z, T)
    alone = network(Z, T, COND)
    np.testing.assert_allclose(guided[1], everywhere[1], atol=1e-6)
    np.testing.assert_allclose(guided[0], alone[0], atol=1e-6)
    np.testing.assert_allclose(guided[2], alone[2], atol=1e-6)


def test_autoguidance_with_itself_is_nothing_and_else_leaves_the_guide():
    def main(z, t):
        return network(z, t, COND)

    np.testing.assert_allclose(autoguidance(main, main, 3.0)(Z, T), main(Z, T))
    guided = autoguidance(main, lambda z, t: jnp.zeros_like(z), 3.0)(Z, T)
    np.testing.assert_allclose(guided, 3 * main(Z, T), rtol=1e-6)


def test_changing_scale_rescale_interval_or_condition_never_retraces():
    traces = []

    @jax.jit
    def run(z, cond, null, scale, rescale, low, high):
        traces.append(1)
        denoise = classifier_free(
            network, cond, null, scale, rescale=rescale, interval=(low, high)
        )
        return denoise(z, T)

    first = run(Z, COND, NULL, 2.0, 0.0, 0, 1000)
    second = run(Z, NULL, COND, 5.0, 0.7, 100, 600)
    assert len(traces) == 1
    assert not np.allclose(first, second)


def test_bf16_predictions_are_combined_in_f32():
    weak, strong = (noise(i, 3, 4, 4, 2).astype(jnp.bfloat16) for i in (3, 4))
    guided = mix(weak, strong, 2.0, T)
    assert guided.dtype == jnp.float32
    expected = 2 * np.asarray(strong, np.float32) - np.asarray(weak, np.float32)
    np.testing.assert_allclose(guided, expected, atol=1e-6)


@pytest.mark.parametrize(
    "null", [Cond(vector=NULL.vector), NULL.replace(context=jnp.zeros((3, 5, 2)))]
)
def test_conditions_that_do_not_match_are_refused(null):
    with pytest.raises(UserError, match=r"context has \(3, 6, 2\)"):
        classifier_free(network, COND, null, 2.0)
