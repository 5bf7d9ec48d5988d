"""The pipeline on a toy model with random weights: what a user is promised."""

import numpy as np
import pytest

from lDM_jax.core.errors import UserError
from lDM_jax.pipeline import Pipeline
from lDM_jax.sampling.pipeline import BATCH
from lDM_jax.sampling.programs import SamplingSpec
from lDM_jax.sampling.request import Request
from lDM_jax.weights import directory as weights_directory
from tests.toys import difference


def test_an_image_depends_on_its_seed_and_request_only(pipe):
    many = pipe.sample(prompt="red heart", seeds=range(BATCH + 3))
    assert many.shape == (BATCH + 3, 32, 32, 3) and many.dtype == np.uint8
    alone = pipe.sample(prompt="red heart", seeds=[BATCH + 1])
    # the same program runs on the same row: one grey level for a fused reordering
    assert difference(alone[0], many[BATCH + 1]) <= 1
    assert difference(many[0], many[1]) > 1
    both = pipe.sample(prompt=["dog face", "red heart"], seeds=[2])
    assert difference(both[1], many[2]) <= 1
    assert difference(both[0], both[1]) > 1


def test_stream_ends_where_sample_ends(pipe):
    steps = list(pipe.stream(prompt="red heart", seeds=[0, 5]))
    assert [step.step for step in steps] == list(range(1, steps[0].total + 1))
    expected = pipe.sample(prompt="red heart", seeds=[0, 5])
    assert difference(pipe.to_pixels(steps[-1].z), expected) <= 1


def test_prompt_guidance_and_seed_do_not_retrace(pipe):
    pipe.sample(prompt="red heart", seeds=[0], guidance=2.0)
    program = pipe._programs.whole(SamplingSpec("ddim", 4, "leading", (8, 8, 3), True))
    before = program._cache_size()
    pipe.sample(prompt="pizza", negative="red", seeds=[9], guidance=7.5, eta=0.3)
    assert program._cache_size() == before


def test_guidance_one_is_the_conditional_model_and_ignores_the_negative(pipe):
    plain = pipe.sample(prompt="red heart", seeds=[0], guidance=1.0)
    other = pipe.sample(prompt="red heart", negative="dog", seeds=[0], guidance=1.0)
    assert difference(plain, other) <= 1
    guided = pipe.sample(prompt="red heart", negative="dog", seeds=[0], guidance=6.0)
    assert difference(plain, guided) > 1


def test_encode_then_decode_is_the_autoencoder(pipe):
    x = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    codec = pipe.model.codec
    expected = codec.autoencoder.apply(
        pipe.frozen["first_stage"], x / np.float32(127.5) - 1
    )
    z0 = pipe.encode(x)
    np.testing.assert_allclose(pipe.decode(z0), expected, atol=1e-4)
    # a picture smaller than a tile is one tile
    tiled = pipe.encode(x, tile_px=64)
    np.testing.assert_allclose(tiled, z0, atol=1e-4)
    np.testing.assert_allclose(pipe.decode(z0, tile_px=64), expected, atol=1e-4)
    with pytest.raises(UserError, match="factor 4"):
        pipe.decode(z0, tile_px=30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "x", "steps": 1001}, "1000"),
        ({"prompt": "x", "steps": 0}, "1000"),
        ({"prompt": "x", "sampler": "dimm"}, "ddim"),
        ({"prompt": "x", "seeds": [-1]}, "seeds"),
        ({"prompt": "x", "seeds": []}, "seeds"),
        ({"prompt": "  "}, "empty"),
        ({"prompt": []}, "empty"),
        ({"prompt": None}, "prompt"),
    ],
)
def test_bad_requests_are_refused_with_what_would_be_valid(pipe, options, message):
    with pytest.raises(UserError, match=message):
        pipe.sample(**options)


def test_one_step_works(pipe):
    assert pipe.sample(prompt="x", seeds=[0], steps=1).shape == (1, 32, 32, 3)


def test_resolved_request_names_every_default(pipe):
    request = pipe.resolve(Request(prompt="x"))
    assert (request.sampler, request.steps, request.guidance) == ("ddim", 4, 3.0)


def test_weights_that_do_not_fit_are_refused_with_three_lists(directory, tmp_path):
    config, params = weights_directory.load(directory)
    unet = params["unet"]["params"]
    del unet["time_0"]
    unet["surplus"] = {"kernel": np.zeros(3, np.float32)}
    unet["out_conv"]["bias"] = np.zeros(9, np.float32)
    weights_directory.save(tmp_path / "bad", config, params)
    with pytest.raises(UserError) as error:
        Pipeline.load(str(tmp_path / "bad"))
    text = str(error.value)
    assert text.index("time_0") < text.index("surplus") < text.index("out_conv/bias")


def test_truncated_weights_are_refused_in_one_line(directory, tmp_path):
    config, params = weights_directory.load(directory)
    weights_directory.save(tmp_path / "cut", config, params)
    file = tmp_path / "cut" / weights_directory.WEIGHTS
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged"):
        Pipeline.load(str(tmp_path / "cut"))


def test_an_unknown_model_lists_the_shipped_ones():
    with pytest.raises(UserError, match="no weights at 'nothing'"):
        Pipeline.load("nothing")
