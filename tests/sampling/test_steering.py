"""What steers a sample beyond its condition, through `Pipeline`, on a toy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lDM_jax.core import image, rng
from lDM_jax.core.errors import UserError
from lDM_jax.core.sharding import batch_sharding, make_mesh
from lDM_jax.data.sources import EmojiSource
from lDM_jax.data.transforms import Composite
from lDM_jax.diffusion.codec import Codec
from lDM_jax.from_config import networks
from lDM_jax.models.latent_classifier import LatentClassifier
from lDM_jax.models.lpips import LPIPS
from lDM_jax.pipeline import Pipeline
from lDM_jax.sampling import preview
from lDM_jax.sampling.request import Request
from tests.toys import PICTURE, difference, drawn

SMALL = np.full((8, 8, 3), 255, np.uint8)


def random_like(abstract) -> dict:
    draw = np.random.default_rng(1).standard_normal
    return jax.tree.map(lambda x: 0.2 * draw(x.shape).astype(np.float32), abstract)


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    """A class-conditional toy that is its own guide, with a toy classifier."""
    plain = drawn("emoji_class")
    network = LatentClassifier(5, 8, (1, 2), 1, (2,), num_heads=2, num_groups=4)
    z, t = jnp.zeros((1, 8, 8, 3)), jnp.zeros(1, jnp.int32)
    params = random_like(jax.eval_shape(network.init, jax.random.key(0), z, t))
    x = jnp.zeros((1, 8, 8, 3))
    tiny = LPIPS(((4,), (4,)))
    lpips = random_like(jax.eval_shape(tiny.init, jax.random.key(0), x, x))
    options = dict(guide=plain.trained, classifier=(network, params), lpips=lpips)
    fields = plain.config, plain.model, plain.params, plain.frozen
    return Pipeline(*fields, **options)


def test_a_target_pulls_the_result_to_it_and_scale_zero_does_not(pipe):
    common = dict(label=3, seeds=[0, 1], steps=4)
    plain = pipe.sample(**common)
    still = pipe.sample(target=SMALL, target_scale=0.0, **common)
    assert difference(plain, still) <= 1

    def distance(pictures) -> float:
        cells = image.to_float(pictures).reshape(2, 8, 4, 8, 4, 3).mean(axis=(2, 4))
        return float(((cells - 1) ** 2).mean())

    # a random decoder cannot draw white; every pull brings it nearer
    pulled = [
        distance(pipe.sample(target=SMALL, target_scale=scale, **common))
        for scale in (0.1, 1.0)
    ]
    assert pulled[1] < pulled[0] < distance(plain)


def test_a_classifier_pulls_to_its_label(pipe):
    common = dict(seeds=[0], steps=4)
    plain = pipe.sample(label=3, **common)
    pulled = pipe.sample(label=3, classifier_scale=5.0, **common)
    assert difference(plain, pulled) > 1
    with pytest.raises(UserError, match=r"label is 7; valid: 0 \.\. 4"):
        pipe.sample(label=7, classifier_scale=5.0, **common)
    with pytest.raises(UserError, match="needs a classifier"):
        Pipeline(pipe.config, pipe.model, pipe.params, pipe.frozen).sample(
            label=3, classifier_scale=5.0
        )


def test_a_model_that_guides_itself_is_not_guided(pipe):
    common = dict(label=3, seeds=[0, 1], steps=4)
    plain = pipe.sample(guidance=1.0, **common)
    assert difference(pipe.sample(autoguidance=4.0, **common), plain) <= 1
    other = pipe.models.guide
    params = jax.tree.map(lambda x: 0.5 * x, other.params)
    guide = type(other)(other.config, other.model, params, other.frozen)
    guided = Pipeline(pipe.config, pipe.model, pipe.params, pipe.frozen, guide=guide)
    assert difference(guided.sample(autoguidance=4.0, **common), plain) > 1
    with pytest.raises(UserError, match="needs a guide"):
        Pipeline(pipe.config, pipe.model, pipe.params, pipe.frozen).sample(
            autoguidance=2.0, **common
        )


def test_an_interval_without_any_step_is_no_guidance(pipe):
    common = dict(label=3, seeds=[0], steps=4)
    plain = pipe.sample(guidance=1.0, **common)
    never = pipe.sample(guidance=9.0, interval=(0.9, 1.0), **common)
    always = pipe.sample(guidance=9.0, interval=(0.0, 1.0), **common)
    assert difference(never, plain) <= 1
    assert difference(always, pipe.sample(guidance=9.0, **common)) <= 1
    assert difference(always, plain) > 1
    rescaled = pipe.sample(guidance=9.0, rescale=1.0, **common)
    assert difference(rescaled, always) > 1


def test_the_way_between_seeds_begins_and_ends_with_their_pictures(pipe):
    common = dict(label=3, steps=4)
    ends = pipe.sample(seeds=[5, 6, 7], **common)
    spec = np.stack(list(pipe.interpolate(2, seeds=[5, 6, 7], **common)))
    assert len(spec) == 5
    for place, expected in zip((0, 2, 4), ends, strict=True):
        assert difference(spec[place], expected) <= 1
    assert difference(spec[1], spec[0]) > 1 and difference(spec[1], spec[2]) > 1
    with pytest.raises(UserError, match="two seeds or more"):
        list(pipe.interpolate(2, seeds=[5], **common))


def test_a_picture_comes_back_from_its_own_noise(pipe):
    """Inversion's error falls with the steps; without it the seed draws another one."""
    common = dict(label=3, seeds=[0], guidance=1.0, image=PICTURE)
    expected = image.to_float(pipe.to_pixels(pipe.encode(PICTURE[None])))

    def error(**options) -> float:
        result = image.to_float(pipe.sample(**common, **options))
        return float(np.sqrt(((result - expected) ** 2).mean()))

    coarse, fine = error(source="same", steps=4), error(source="same", steps=64)
    assert fine < 0.5 * coarse
    assert fine < 0.2 * error(steps=4)


def test_a_preview_is_a_small_picture_of_the_colours(pipe):
    """With the shipped first stage, on emoji that the matrix was not fitted to."""
    config, params = networks.load_trained("emoji_kl_f8")
    codec = Codec(networks.autoencoder(config.autoencoder), config.latent_scale)
    matrix = np.asarray(config.latent_rgb)
    source, lay = EmojiSource(split="validation"), Composite()
    x = np.stack([lay(source[i], None)["image"] for i in range(16)])
    small = preview.to_rgb(codec, np.asarray(codec.encode(params, x)), matrix)
    assert small.shape == (16, 8, 8, 3) and small.dtype == np.uint8
    cells = x.reshape(16, 8, 8, 8, 8, 3).mean(axis=(2, 4))
    error = np.sqrt(((image.to_float(small) - cells) ** 2).mean())
    assert error < 0.5 * cells.std()  # explains three quarters of the variance
    assert pipe.preview(np.zeros((1, 8, 8, 3))).shape == (1, 8, 8, 3)


def test_noise_is_bit_equal_alone_in_a_batch_and_on_eight_devices():
    shape = (8, 8, 3)
    keys = rng.seed_keys(range(16))
    draw = jax.jit(rng.normal_per_seed, static_argnums=1)
    many = draw(keys, shape)
    sharded = draw(jax.device_put(keys, batch_sharding(make_mesh())), shape)
    assert len(sharded.sharding.device_set) == 8
    np.testing.assert_array_equal(sharded, many)
    for row in (0, 7, 15):
        alone = draw(rng.seed_keys([row]), shape)
        np.testing.assert_array_equal(alone[0], many[row])


def test_a_window_must_fit_the_network(pipe):
    with pytest.raises(UserError, match="multiples"):
        pipe.resolve(Request(label=3, size_px=(64, 64), window_px=36))
