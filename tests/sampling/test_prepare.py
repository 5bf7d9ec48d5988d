"""A request is resolved once: files decoded, pixels encoded and texts read, counted."""

import collections
import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import sample
from lDM_jax.core import image
from lDM_jax.core.errors import UserError
from lDM_jax.diffusion import samplers
from lDM_jax.sampling import bulk
from lDM_jax.sampling.request import Request
from tests.toys import HOLE, PICTURE, drawn, with_config

COMMON = dict(prompt="red heart", seeds=(0, 1), steps=2)


class Zeros:
    """Programs that draw zeros: what is counted here happens before and after them."""

    def whole(self, spec):
        return lambda params, keys, inputs: jnp.zeros((len(keys), *spec.shape))

    def single_step(self, spec):
        def begin(keys, inputs):
            return samplers.start_carry(jnp.zeros((len(keys), *spec.shape)))

        return begin, lambda params, carry, *rest: carry


@pytest.fixture(scope="module")
def pipe():
    made = with_config(drawn("emoji"))  # its own, since it loses its programs
    made._programs = Zeros()
    return made


@pytest.fixture
def decodings(monkeypatch):
    """How often each content was decoded."""
    counts, real = collections.Counter(), image.decode

    def decode(data: bytes, **options):
        counts[data] += 1
        return real(data, **options)

    monkeypatch.setattr(image, "decode", decode)
    return counts


@pytest.fixture
def encodings(pipe, monkeypatch):
    """How often the first stage and the conditioner of `pipe` were called."""
    counts = collections.Counter()

    def count(name: str, function):
        def call(*args):
            counts[name] += 1
            return function(*args)

        monkeypatch.setitem(pipe.trained.__dict__, name, call)

    for name in ("moments", "condition"):
        count(name, getattr(pipe.trained, name))
    return counts


@pytest.fixture
def files(tmp_path):
    """The fields of a request that names four files of different content."""
    pixels = dict(image=PICTURE, mask=HOLE, region=HOLE[::-1], target=PICTURE[:8, :8])
    names = {name: str(tmp_path / f"{name}.png") for name in pixels}
    for name, value in pixels.items():
        image.write_png(names[name], value)
    names["regions"] = [("pizza", names.pop("region"))]
    return names


def once_each(decodings, count: int) -> bool:
    return len(decodings) == count and set(decodings.values()) == {1}


def test_sample_decodes_each_file_once(pipe, files, decodings):
    """For two prompts together, that share them."""
    options = {**COMMON, "prompt": ["red heart", "pizza"]}
    assert pipe.sample(**options, **files).shape == (4, 32, 32, 3)
    assert once_each(decodings, 4)


def test_a_stream_with_edits_decodes_each_file_once(pipe, files, decodings, tmp_path):
    for step in pipe.stream(**COMMON, **files):
        pipe.update(step, prompt="pizza")
    pipe.finish(step)
    assert once_each(decodings, 4)
    # a file that is named in an edit is read anew: somebody may have painted on it
    image.write_png(files["mask"], HOLE[:, ::-1])
    pipe.update(step, mask=files["mask"])
    assert once_each(decodings, 5)
    np.testing.assert_array_equal(step.prepared.pixels.mask[:, :, 0], HOLE[:, ::-1] > 0)


@pytest.mark.parametrize("more", [(), ("--animation=way.gif",), ("--interpolate=1",)])
def test_the_program_decodes_each_file_once(
    pipe, files, decodings, monkeypatch, tmp_path, more
):
    del files["regions"]  # between seeds there are none
    monkeypatch.setattr(sample, "load", lambda model: pipe)
    out, preset = tmp_path / "out", tmp_path / "preset.json"
    named = [f"--{name}={file}" for name, file in files.items()]
    flags = ["--model=m", "--prompt=red heart", "--seeds=0,1", "--steps=2", *named]
    sample.FLAGS.unparse_flags()
    for flag in ("animation", "interpolate"):
        sample.FLAGS[flag].value = None
    sample.FLAGS(
        ["sample.py", *flags, f"--out={out}", f"--save_request={preset}", *more]
    )
    sample.draw(*sample.read_requests())
    assert once_each(decodings, 3) and (out / "grid.png").exists()
    assert "data:image/png" in preset.read_text()
    if not more:
        assert image.read_request(out / "000001.png")["image"] == files["image"]


def test_many_pictures_decode_a_label_map_once(decodings, tmp_path):
    semantic = drawn("emoji_semantic")
    semantic._programs = Zeros()
    image.write_png(tmp_path / "map.png", HOLE // 128)
    request = Request(segmentation=str(tmp_path / "map.png"), steps=1)
    many = bulk.generate(semantic, request, 9, tmp_path / "many.npz", batch_size=8)
    assert sum(many) == 9
    assert once_each(decodings, 1)


def test_an_edit_encodes_what_it_changed(pipe, encodings):
    options = dict(image=PICTURE, mask=HOLE, strength=0.5)
    step = next(pipe.stream(**{**COMMON, "steps": 4}, **options))
    assert encodings == {"moments": 1, "condition": 2}  # the prompt and its null
    pipe.update(step, prompt="pizza", guidance=2.0)
    assert encodings == {"moments": 1, "condition": 4}
    pipe.update(step, mask=HOLE[::-1], guidance=3.0, rescale=0.5)
    assert encodings == {"moments": 1, "condition": 4}
    pipe.update(step, image=255 - PICTURE)
    assert encodings == {"moments": 2, "condition": 4}
    mask, z0 = step.prepared.inputs.keep, pipe.encode(255 - PICTURE[None])
    np.testing.assert_allclose(step.prepared.inputs.z0, z0, atol=1e-5)
    held = np.ones((8, 8), bool)
    held[3:6, 2:5] = False
    np.testing.assert_array_equal(mask[0, :, :, 0], held)


def test_a_refused_edit_leaves_the_step_as_it_was(pipe):
    step = next(pipe.stream(**COMMON))
    before = vars(step).copy()
    with pytest.raises(UserError, match="cannot come, go or change"):
        pipe.update(step, image=PICTURE)
    assert vars(step) == before


def test_each_field_of_a_request_has_a_flag_with_its_default():
    """But for the seeds: one picture for programs, four for people."""
    defaults = {field.name: field.default for field in dataclasses.fields(Request)}
    stated = {field.name: field.default for field in sample.FIELDS}
    assert stated == {**defaults, "seeds": "0-3"}
