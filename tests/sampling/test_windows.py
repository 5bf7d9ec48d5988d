"""Windows and regions: large pictures piece by piece, several texts in one picture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import celebahq_ldm4
from configs.common import first_stage_network
from lDM_jax.core.arrays import Cond
from lDM_jax.core.errors import UserError
from lDM_jax.diffusion.codec import Codec
from lDM_jax.diffusion.guidance import by_region
from lDM_jax.diffusion.tiling import spans
from lDM_jax.diffusion.windows import in_windows, ramp
from lDM_jax.from_config import networks
from lDM_jax.models.layers import Attention, region_mask
from lDM_jax.sampling import request as request_lib
from lDM_jax.sampling.request import Request, RequestPixels
from tests.reference import rule
from tests.toys import difference

T = jnp.zeros(2, jnp.int32)


def z(*shape: int) -> jax.Array:
    return jnp.asarray(rule.noise("z", shape))


@pytest.mark.parametrize(
    ("side", "window", "overlap"), [(8, 8, 3), (20, 8, 2), (9, 8, 0)]
)
def test_windows_cover_everything_with_their_overlap(side, window, overlap):
    places = [span.start for span in spans(side, window, overlap)]
    assert places[0] == 0 and places[-1] + window == side
    assert all(
        b - a <= window - overlap for a, b in zip(places, places[1:], strict=False)
    )
    assert len(places) == -(-(side - overlap) // (window - overlap))
    weights = ramp(window, overlap)
    assert weights.min() > 0 and weights.max() == 1
    np.testing.assert_array_equal(weights, weights[::-1])


def test_what_a_network_does_position_by_position_survives_the_windows():
    concat = z(2, 12, 20, 3)
    network = lambda z, t, cond: 2 * z + cond.concat  # noqa: E731
    large = in_windows(network, (12, 20), window=8, overlap=3)
    out = rule.fast_jit(large)(z(2, 12, 20, 3), T, Cond(concat=concat))
    np.testing.assert_allclose(out, 2 * z(2, 12, 20, 3) + concat, atol=1e-5)


def test_a_window_sees_nothing_else_and_neighbours_mix_linearly():
    """A network that answers with its window's mean: ramps between the two means."""
    network = lambda z, t, cond: jnp.broadcast_to(  # noqa: E731
        z.mean(axis=(1, 2), keepdims=True), z.shape
    )
    x = jnp.concatenate([jnp.zeros((1, 4, 6, 1)), jnp.ones((1, 4, 6, 1))], axis=2)
    out = in_windows(network, (4, 12), window=8, overlap=4)(x, T[:1], Cond())
    first, second = 2 / 8, 6 / 8  # windows 0..7 and 4..11
    share = np.array([1, 2, 3, 4]) / 5
    middle = ((1 - share) * first + share * second) / 1.0
    expected = np.concatenate([[first] * 4, middle, [second] * 4])
    np.testing.assert_allclose(out[0, 0, :, 0], expected, atol=1e-6)


def test_a_region_is_drawn_by_the_windows_that_lie_in_it():
    """As above; the first row counts in columns 0..5, the second everywhere."""
    network = lambda z, t, cond: jnp.broadcast_to(  # noqa: E731
        z.mean(axis=(1, 2), keepdims=True), z.shape
    )
    half = jnp.concatenate([jnp.zeros((1, 4, 6, 1)), jnp.ones((1, 4, 6, 1))], axis=2)
    x = jnp.concatenate([half, half])
    regions = jnp.ones((2, 4, 12, 1)).at[0, :, 6:].set(0)
    result = {
        within: in_windows(network, (4, 12), window=8, overlap=4, within=within)(
            x, T, Cond(regions=regions)
        )
        for within in (False, True)
    }
    np.testing.assert_allclose(result[True][1], result[False][1], atol=1e-6)
    first, second = 2 / 8, 6 / 8  # the windows' means
    falling, rising = np.array([4, 3, 2, 1]) / 5, np.array([1, 2, 3, 4]) / 5
    a = falling * (6 / 8) ** 2  # the region fills 6 of 8 columns, and 2 of 8
    b = rising * (2 / 8) ** 2
    middle = (a * first + b * second) / (a + b)
    expected = np.concatenate([[first] * 4, middle, [second] * 4])
    np.testing.assert_allclose(result[True][0, 0, :, 0], expected, atol=1e-6)


def test_a_small_picture_is_one_window():
    calls = []

    def network(z, t, cond):
        calls.append(z.shape)
        return z

    in_windows(network, (4, 6), window=8, overlap=2)(z(2, 4, 6, 3), T, Cond())
    assert set(calls) == {(2, 4, 6, 3)}
    with pytest.raises(UserError, match="cannot overlap by 8"):
        in_windows(network, (4, 6), window=8, overlap=8)


def test_memory_is_that_of_one_window():
    """XLA's own count: a picture of sixteen windows needs little more than one."""

    def network(z, t, cond):
        wide = jnp.tanh(z @ jnp.ones((4, 512)))
        return wide @ jnp.ones((512, 4))

    def temporary(extent):
        large = in_windows(network, extent, window=16, overlap=4)
        shapes = (jax.ShapeDtypeStruct((1, *extent, 4), jnp.float32), T[:1], Cond())
        result = jax.jit(large).lower(*shapes).compile().memory_analysis()
        return result.temp_size_in_bytes

    assert temporary((52, 52)) < 1.3 * temporary((16, 16)) + 16 * 52 * 52 * 4


@pytest.mark.slow
def test_a_wide_picture_of_the_paper_takes_the_memory_of_its_windows():
    """1024 x 384 px by the network of CelebA-HQ, trained at 256 px: XLA's own count."""
    config = celebahq_ldm4.get_config()
    codec = Codec(networks.autoencoder(first_stage_network(num_codes=8192)))
    model = networks.model(config, codec)
    floats = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    rows = {"rows": jax.ShapeDtypeStruct((1,), jnp.int32)}
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(model.init, key, rows, floats(1, 64, 64, 3))

    def temporary(extent):
        def predict(params, z, t):
            network = lambda z, t, cond: model.denoise(params, z, t, cond)  # noqa: E731
            return in_windows(network, extent, window=64, overlap=16)(z, t, Cond())

        shapes = params, floats(1, *extent, 3), jax.ShapeDtypeStruct((1,), jnp.int32)
        result = jax.jit(predict).lower(*shapes).compile().memory_analysis()
        return result.temp_size_in_bytes

    small, wide = temporary((64, 64)), temporary((96, 256))
    print(f"temporary memory: {small / 1e6:.1f} MB, in windows {wide / 1e6:.1f} MB")
    # the rest are sums and weights of the size of the latents
    assert wide < 1.1 * small + 8 * 4 * 96 * 256 * 3


def test_regions_mix_the_predictions_of_their_texts():
    regions = jnp.zeros((2, 4, 6, 2)).at[:, :, :3, 0].set(1).at[:, :, 2:5, 1].set(1)
    context = z(2, 6, 8)  # two texts of three tokens
    network = lambda z, t, cond: jnp.broadcast_to(  # noqa: E731
        cond.context.mean(axis=(1, 2))[:, None, None, None], z.shape
    )
    out = by_region(network)(z(2, 4, 6, 3), T, Cond(context=context, regions=regions))
    a, b = np.asarray(context).reshape(2, 2, 3, 8).mean(axis=(2, 3)).T
    # the last column is in no region: the first text
    expected = np.stack([a, a, (a + b) / 2, b, b, a], axis=1)
    np.testing.assert_allclose(out[:, 1, :, 2], expected, atol=1e-6)
    # each text is told where it counts: a network that answers with that
    where = by_region(lambda z, t, cond: cond.regions)(
        z(2, 4, 6, 1), T, Cond(context=context, regions=regions)
    )
    np.testing.assert_allclose(where[1, 2, :, 0], [1, 1, 0.5, 1, 1, 1], atol=1e-6)


def test_a_position_attends_to_the_texts_of_its_regions():
    regions = jnp.zeros((1, 4, 4, 2)).at[:, :, :2, 0].set(1).at[:, 2:, :, 1].set(1)
    mask = region_mask(regions, (2, 2), 6)
    by_text = np.asarray(mask).reshape(2, 2, 6)
    assert (by_text[:, :, :3] == np.array([[1, 0], [1, 0]])[..., None])[1].all()
    np.testing.assert_array_equal(by_text[0, 0], [1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(by_text[0, 1], np.ones(6))  # none: all texts
    np.testing.assert_array_equal(by_text[1, 0], np.ones(6))
    np.testing.assert_array_equal(by_text[1, 1], [0, 0, 0, 1, 1, 1])
    x, context = z(1, 4, 8), jnp.asarray(rule.noise("context", (1, 6, 8)))
    network = Attention(2, 4)
    variables = network.init(jax.random.key(0), x, context)
    out = network.apply(variables, x, context, mask)
    alone = network.apply(variables, x, context[:, :3])
    np.testing.assert_allclose(out[0, 0], alone[0, 0], atol=1e-6)
    other = network.apply(variables, x, context[:, 3:])
    np.testing.assert_allclose(out[0, 3], other[0, 3], atol=1e-6)


@pytest.mark.parametrize("regional", ["attention", "latent"])
def test_one_full_mask_is_the_plain_prompt(pipe, regional):  # noqa: F811
    plain = pipe.sample(prompt="red heart", seeds=[0, 1])
    full = np.ones((32, 32), np.uint8)
    common = dict(prompt="dog", seeds=[0, 1], regional=regional)
    result = pipe.sample(regions=[("red heart", full)], **common)
    assert difference(result, plain) <= 1
    half = pipe.sample(regions=[("red heart", (0.0, 0.0, 0.5, 1.0))], **common)
    assert difference(half, plain) > 1


def test_one_full_mask_in_windows_is_the_plain_prompt_in_windows(pipe):  # noqa: F811
    wide = dict(seeds=[0], size_px=(32, 56), window_px=32)
    plain = pipe.sample(prompt="red heart", **wide)
    wide |= dict(prompt="dog", regional="latent")
    result = pipe.sample(regions=[("red heart", (0, 0, 1, 1))], **wide)
    assert difference(result, plain) <= 1
    half = pipe.sample(regions=[("red heart", (0, 0, 0.5, 1))], **wide)
    assert difference(half, plain) > 1


def test_region_maps():
    pixels = RequestPixels(4, 8)
    request = Request(
        "x", regions=[("a", (0.0, 0.0, 0.5, 1.0)), ("b", (0.5, 0, 0.25, 1))]
    )
    maps = request_lib.region_maps(request, pixels)
    np.testing.assert_array_equal(maps.sum(axis=-1), 1)
    np.testing.assert_array_equal(maps.argmax(axis=-1)[0], [1, 1, 1, 1, 2, 2, 0, 0])
    wrong = Request("x", regions=[("a", np.ones((2, 2), np.uint8))])
    with pytest.raises(UserError, match=r"region of \(2, 2\) on a picture of \(4, 8\)"):
        request_lib.region_maps(wrong, pixels)
