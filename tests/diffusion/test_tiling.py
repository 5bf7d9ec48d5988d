"""Tiled encoding and decoding against the untiled programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lDM_jax.core.errors import UserError
from lDM_jax.diffusion import tiling
from lDM_jax.diffusion.codec import Codec
from lDM_jax.models.autoencoder import Autoencoder, Identity
from tests.reference import rule

SHAPE = dict(z_channels=3, latent_channels=3, mid_attn=False, num_groups=4)


def random_params(network: Autoencoder) -> dict:
    """Parameters by the rule: every layer, bias and code counts."""
    x = jnp.zeros((1, 16, 16, 3))
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        values = rule.noise(name, leaf.shape)
        if path[-1].key == "kernel":
            return values / np.sqrt(np.prod(leaf.shape[:-1]), dtype=np.float32)
        return values if path[-1].key == "codebook" else 1 + 0.2 * values

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def local():
    """(codec, params) of a VQ stage without attention: f = 4, width 16."""
    network = Autoencoder(16, (1, 2, 4), 1, num_codes=32, **SHAPE)
    return Codec(network, (0.5, 1.0, 2.0)), random_params(network)


def inputs(codec: Codec, method: str, height: int, width: int) -> np.ndarray:
    """An image or latents, their deviation rising to the right: tiles differ."""
    shape = (
        (height, width, 3) if method == "moments" else codec.latent_shape(height, width)
    )
    ramp = np.linspace(0.2, 1.5, shape[1], dtype=np.float32)[:, None]
    return rule.noise(method, (1, *shape)) * ramp


def run(codec, params, method, source, **options):
    tiled = {"moments": tiling.encode_tiled, "decode": tiling.decode_tiled}[method]
    return tiled(codec, params, source, **options)


@pytest.mark.parametrize(
    ("method", "width_px"), [("moments", 136), ("decode", 112)]
)  # two by two tiles, and two by one
def test_exact_mode_is_the_untiled_program_and_traces_once(local, method, width_px):
    codec, params = local
    source = inputs(codec, method, 148, width_px)
    programs = tiling._tile._cache_size()
    out = run(codec, params, method, source, tile_px=112, exact=True)
    assert tiling._tile._cache_size() == programs + 1
    expected = np.asarray(jax.jit(getattr(codec, method))(params, source))
    assert out.shape == expected.shape and expected.std() > 0.2
    # f32 through two dozen layers, summed in another order, borders and seams included
    np.testing.assert_allclose(out, expected, atol=1e-4)
    fast = run(codec, params, method, source, tile_px=112)
    assert tiling._tile._cache_size() == programs + 1
    assert np.abs(fast - expected).max() > 1e-2  # tiles have statistics of their own


@pytest.mark.parametrize("method", ["moments", "decode"])
@pytest.mark.parametrize(("mults", "blocks"), [((1, 1, 1), 1), ((1, 2), 2)])
def test_halo_is_how_far_convolutions_reach(mults, blocks, method):
    """The gradient of one position ends at the halo, and not a position earlier."""
    network = Autoencoder(4, mults, blocks, **SHAPE)
    codec, params = Codec(network), random_params(network)
    f, halo = codec.factor, tiling.halo(network, method)
    side = 2 * halo + 5
    middle = halo + 2
    unit_in, unit_out = (f, 1) if method == "moments" else (1, f)
    source = rule.noise("x", (1, side * unit_in, side * unit_in, 3))
    ones = np.ones(side, np.float32)
    call = tiling._tile.__wrapped__
    shapes = jax.eval_shape(
        lambda: call(codec, method, params, source, None, False, ones, ones)[1]
    )
    fixed = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    place = slice(middle * unit_out, (middle + 1) * unit_out)

    @rule.fast_jit
    @jax.grad
    def gradient(source):
        out, _ = call(codec, method, params, source, fixed, True, ones, ones)
        return jnp.sin(out[:, place, place]).sum()

    touched = np.asarray(gradient(jnp.asarray(source)))[0] != 0
    for axis in (0, 1):
        others = tuple({0, 1, 2} - {axis})
        reached = np.flatnonzero(touched.any(axis=others)) // unit_in
        assert middle - halo <= reached.min() and reached.max() <= middle + halo
        assert max(middle - reached.min(), reached.max() - middle) == halo


@pytest.mark.parametrize(
    ("tile_px", "overlap_px"), [(16, 4), (16, 12), (16, 0), (7, 2)]
)
def test_blending_and_cutting_keep_what_is_local(tile_px, overlap_px):
    """Through the identity a picture comes back, whatever the tiles."""
    x = rule.noise("x", (2, 37, 50, 3))
    for exact in (False, True):
        options = dict(tile_px=tile_px, overlap_px=overlap_px, exact=exact)
        for tiled in (tiling.encode_tiled, tiling.decode_tiled):
            out = tiled(Codec(Identity()), {}, x, **options)
            # weights of overlapping tiles add up to one within f32
            np.testing.assert_allclose(out, x, atol=1e-6)


def test_every_position_belongs_to_one_tile_far_from_its_ends():
    for extent, tile, overlap in [(37, 16, 4), (40, 10, 9), (16, 16, 5), (17, 16, 0)]:
        spans = tiling.spans(extent, tile, overlap)
        owned = [p for span in spans for p in range(span.first, span.last)]
        assert owned == list(range(extent))
        for span in spans:
            assert 0 <= span.start <= span.first < span.last <= span.start + tile
            assert span.start == 0 or span.first - span.start >= overlap // 2
            after = span.start + tile - span.last
            assert span.last == extent or after >= overlap // 2


@pytest.mark.parametrize(("method", "exact"), [("moments", False), ("decode", True)])
def test_a_picture_smaller_than_a_tile_is_one_tile(local, method, exact):
    codec, params = local
    source = inputs(codec, method, 24, 36)
    out = run(codec, params, method, source, tile_px=128, exact=exact)
    expected = jax.jit(getattr(codec, method))(params, source)
    np.testing.assert_allclose(out, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile_px": 30}, "multiple of the first stage's factor 4"),
        ({"tile_px": 0}, "for example 8"),
        ({"tile_px": 64, "overlap_px": 64}, "for example 128"),
        ({"tile_px": 64, "overlap_px": -4}, "at least 0"),
        ({"tile_px": 64, "exact": True}, "overlap of 104 px.*for example 208"),
    ],
)
def test_impossible_tiles_are_refused_with_what_would_be_valid(local, options, message):
    codec, params = local
    z0 = np.zeros((1, 4, 4, 3), np.float32)
    with pytest.raises(UserError, match=message):
        tiling.decode_tiled(codec, params, z0, **options)


def test_an_image_that_f_does_not_divide_is_refused(local):
    codec, params = local
    with pytest.raises(UserError, match="multiples of the first stage's factor 4"):
        x = np.zeros((1, 30, 32, 3), np.float32)
        tiling.encode_tiled(codec, params, x, tile_px=16)
