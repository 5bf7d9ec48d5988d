"""Whole second stages of the original program become weights directories.

`tests/reference/released.py` holds the YAMLs, `state_dicts/whole` the lists of names of
the original's own classes at published sizes, `original/ldm_*` small models with their
outputs. Published sizes are only shapes here: broadcast zeros on one side,
`jax.eval_shape` on the other. Tolerance 1e-4 on outputs of scale about 1, as in the
parity tests: f32 sums in another order differ by about 1e-5.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from lDM_jax.core.arrays import Cond
from lDM_jax.diffusion import guidance as guide
from lDM_jax.diffusion import samplers
from lDM_jax.from_config import networks
from lDM_jax.interop import converted as converted_lib
from lDM_jax.interop.original import read as from_original
from lDM_jax.interop.original import settings as original_settings
from lDM_jax.interop.original import write as to_original
from lDM_jax.models.clip_text import ClipText
from lDM_jax.weights import name_maps
from tests.interop.converting import (
    TARGET,
    abstract_model,
    hollow,
    opened,
    recorded,
    released_state,
    run,
    written,
)
from tests.reference import released, rule

TOLERANCE = 1e-4

# The fast suite has one model of each kind of conditioner that is cheap to trace.
FAST = ("bsr_sr", "semantic256")


def sizes(models) -> list:
    """Test cases; the costly ones are marked."""
    slow = pytest.mark.slow
    return [pytest.param(m, marks=() if m in FAST else slow) for m in models]


def as_ours(part: converted_lib.Part) -> converted_lib.Ours:
    return converted_lib.Ours(None, part.arrays)


def params_count(arrays, root: str) -> int:
    return sum(
        int(np.prod(lazy.shape)) for path, lazy in arrays.items() if path[0] == root
    )


@pytest.mark.parametrize(
    "model", sizes(m for m, r in released.MODELS.items() if r.states)
)
def test_every_released_tensor_finds_its_place(model):
    """Exact cover both ways, the counts of the release, and our own model's shapes."""
    state, expected = released_state(model), released.MODELS[model]
    found = from_original.read(TARGET, released.params(model), state)
    whole, first = found.parts[""], found.parts["first_stage"]
    assert params_count(whole.arrays, "unet") / 1e3 == pytest.approx(
        expected.unet, abs=0.5
    )
    cond = params_count(whole.arrays, "conditioner") / 1e3
    # The original counts a word predictor that it never evaluates.
    text = whole.config["text"]
    cond += text["vocab_size"] * (text["width"] + 1) / 1e3 if text else 0
    assert cond == pytest.approx(expected.cond, abs=0.5)
    ema = expected.extra.get("use_ema", True)
    assert any(line.startswith("weights: averaged") for line in found.report) == ema
    if whole.config["task"] != "retrieval":
        shapes = flatten_dict(abstract_model(whole.config, first.config))
        ours = {path: leaf.shape for path, leaf in shapes.items()}
        assert ours == {path: lazy.shape for path, lazy in whole.arrays.items()}
    stage = original_settings.second_stage(released.params(model))
    back = to_original.state_dict(as_ours(whole), as_ours(first), None, stage)
    left = state.keys() - back.keys()
    # What does not come back: averages, what is stored twice, unused or known anyhow.
    other = ("model_ema.", "scale_factor")
    if whole.config["task"] == "inpaint":
        other += ("cond_stage_model.",)
    if whole.config["task"] in ("text", "layout"):
        other += ("cond_stage_model.transformer.to_logits.",)
    assert all(name.startswith(other) for name in left) and back.keys() <= state.keys()
    assert all(back[name].shape == state[name].shape for name in back)


@pytest.mark.parametrize(
    "model, expected",
    [
        ("celeba256", dict(task="unconditional", num_classes=0)),
        ("cin256", dict(task="class", num_classes=1000, null_class=False)),
        ("cin256-v2", dict(task="class", num_classes=1000, null_class=True)),
        ("layout2img", dict(task="layout", rescaler=dict(num_stages=2, width=3))),
        ("txt2img-1p4B", dict(task="text")),
        ("bsr_sr", dict(low_res=dict(kind="bicubic", factor=4, fold=1))),
        ("inpainting_big", dict(task="inpaint")),
        ("semantic512", dict(task="semantic", num_classes=182)),
        ("rdm768", dict(task="retrieval")),
        ("stable-2", dict(text=dict(kind="clip", path="./text", network={}))),
    ],
)
def test_what_a_released_yaml_says(model, expected):
    stage = original_settings.second_stage(released.params(model))
    config = stage.config
    assert {key: config[key] for key in expected} == expected
    size = released.MODELS[model].size
    codes = stage.first_stage["autoencoder"]["num_codes"]
    assert config["data"]["size_px"] == size * released.factor(model)
    assert bool(codes) == released.MODELS[model].first_stage.startswith("vq")
    assert config["loss"]["loss"] == released.params(model).get("loss_type", "l2")
    start, end = released.MODELS[model].betas
    process = config["process"]
    assert (process["linear_start"], process["linear_end"]) == (start, end)
    text = config["text"]
    if model == "layout2img":
        assert (text["vocab_size"], text["max_length"], text["depth"]) == (8192, 92, 16)
    if model == "txt2img-1p4B":
        assert (text["vocab_size"], text["max_length"], text["depth"]) == (
            30522,
            77,
            32,
        )


@pytest.mark.parametrize("model", sizes(("stable-1", "stable-2")))
def test_stable_diffusion_has_its_sizes(model):
    """No list of names for these: sizes as published, and a tower in its own part."""
    expected = released.MODELS[model]
    stage = original_settings.second_stage(released.params(model))
    unet = from_original.unet_table(stage)
    table = name_maps.prefixed(unet, from_original.UNET_PREFIX)
    table |= from_original.first_stage_table(stage)
    table |= from_original.CONDITIONERS[stage.route](stage)
    state = hollow({name: entry.shape for name, entry in table.items()})
    found = from_original.read(TARGET, released.params(model), state)
    count = params_count(found.parts[""].arrays, "unet") / 1e3
    assert count == pytest.approx(expected.unet, abs=0.5)
    tower = params_count(found.parts["text"].arrays, "params") / 1e3
    assert tower == pytest.approx(expected.cond, abs=0.5)
    assert not params_count(found.parts[""].arrays, "conditioner")
    config = found.config
    assert config["process"]["prediction"] == ("v" if model == "stable-2" else "eps")
    assert config["unet"]["linear_projections"] == (model == "stable-2")
    assert config["data"]["size_px"] == 512
    assert config["first_stage"] == dict(
        path="./first_stage", scale=0.18215, network={}
    )
    ours = abstract_tower(found.parts["text"].config)
    lazies = found.parts["text"].arrays
    assert ours == {path: lazy.shape for path, lazy in lazies.items()}
    back = to_original.state_dict(*map(as_ours, found.parts.values()), stage)
    used = {name for name, entry in table.items() if entry.path is not None}
    assert back.keys() == used | set(from_original.SCHEDULE)
    # Also where diffusers has left out the block that is not evaluated.
    network = dict(found.parts["text"].config["text"]["network"])
    if model == "stable-2":
        network |= dict(output_layer="last", depth=23)
    tower = converted_lib.Ours(ConfigDict(dict(text=dict(network=network))), {})
    changed = released.params(model) | dict(cond_stage_config=to_original.frozen(tower))
    assert original_settings.second_stage(changed).text == stage.text


def abstract_tower(config: dict) -> dict:
    network = networks.construct(ClipText, config["text"]["network"], "text")
    tokens = jax.ShapeDtypeStruct((1, network.max_length), jnp.int32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), tokens)
    return {path: leaf.shape for path, leaf in flatten_dict(shapes).items()}


# Small models whose outputs the original program recorded.
def converted(folder: str, tmp_path, *flags: str):
    """(model, params, frozen) of the directory that the converter writes."""
    text, state = recorded(folder)
    assert run(*written(tmp_path, text, state), *flags) == 0
    return opened(tmp_path / "out")


def assert_close(ours, theirs, tolerance=TOLERANCE):
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=tolerance)


def condition(model, params, frozen, io) -> Cond:
    """The recorded condition through our conditioner, or as it was recorded."""
    if "segmentation" in io:
        batch = {"segmentation": io["segmentation"].astype(np.int32)}
        cond = model.condition(params, frozen, batch)
        assert_close(cond.concat, io["concat"])
        return cond
    if "tokens" in io:
        cond = model.condition(
            params, frozen, {"tokens": io["tokens"].astype(np.int32)}
        )
        assert_close(cond.context, io["context"])
        return cond
    return Cond(concat=io.get("concat"), context=io.get("context"))


@pytest.mark.parametrize(
    "folder, flags",
    [
        ("ldm_celeba", ()),
        pytest.param("ldm_churches", (), marks=pytest.mark.slow),
        pytest.param("ldm_cin_f8_head", ("--heads", "head"), marks=pytest.mark.slow),
        pytest.param("ldm_cin_f8_onehead", (), marks=pytest.mark.slow),
        pytest.param("ldm_txt2img", (), marks=pytest.mark.slow),
        pytest.param("ldm_sr", (), marks=pytest.mark.slow),
        ("ldm_semantic", ()),
    ],
)
def test_what_the_original_predicts(folder, flags, tmp_path, capsys):
    """The file -> the converter's directory -> the recorded predictions."""
    io = rule.original_arrays(folder)
    kinds = ["eps_ema", "eps"] if "eps_ema" in io else ["eps"]
    for name in kinds:
        out = tmp_path / name
        out.mkdir()
        raw = ("--weights", "raw") if name == "eps" else ()
        model, params, frozen = converted(folder, out, *flags, *raw)
        said = capsys.readouterr().out
        assert f"weights: {'averaged' if name == 'eps_ema' else 'as trained'}" in said
        cond = condition(model, params, frozen, io)
        t = io["t"].astype(np.int32)
        eps = rule.fast_jit(model.denoise)(params, io["z"], t, cond)
        assert_close(eps, io[name])
    if folder == "ldm_churches":
        assert model.codec.scale == pytest.approx(0.37)


def test_the_table_of_heads(tmp_path, capsys):
    """`auto` takes one head for the ImageNet model of 2021: another recorded file."""
    io = rule.original_arrays("ldm_cin_f8_onehead")
    text, state = recorded("ldm_cin_f8_head")  # equal shapes: this is the hazard
    assert run(*written(tmp_path, text, state), "--weights", "raw") == 0
    assert "heads: 1 (as in the released model" in capsys.readouterr().out
    model, params, _ = opened(tmp_path / "out")
    eps = rule.fast_jit(model.denoise)(
        params, io["z"], io["t"].astype(np.int32), Cond(context=io["context"])
    )
    assert_close(eps, io["eps"])


def ddim(model, params, z, steps: int, cond, null=None, guidance: float = 1.0):
    """Our sampler over a converted model; Python's loop around one compiled step."""
    network = rule.fast_jit(model.denoise)

    def call(z, t, cond):
        with jax.disable_jit(False):
            return network(params, z, t, cond)

    denoise = guide.classifier_free(call, cond, null or cond, guidance)
    grid = model.process.grid(steps)
    with jax.disable_jit():
        return samplers.sample(
            denoise, jnp.asarray(z), model.process, grid=grid, sampler="ddim"
        )


@pytest.mark.slow
def test_what_the_original_samples(tmp_path):
    """50 steps of DDIM on averaged weights, and the pixels of what it recorded."""
    io = rule.original_arrays("ldm_celeba")
    model, params, frozen = converted("ldm_celeba", tmp_path)
    z = ddim(model, params, io["xT"], 50, Cond())
    scale = io["ddim50_ema"].std()  # of 80 under random weights
    assert_close(z / scale, io["ddim50_ema"] / scale)
    decode = rule.fast_jit(model.codec.decode)
    assert_close(decode(frozen["first_stage"], io["ddim50_ema"]), io["decoded"])


@pytest.mark.slow
def test_what_the_original_samples_of_a_text(tmp_path):
    """20 steps with guidance 3 against all-zero tokens, and the pixels."""
    io = rule.original_arrays("ldm_txt2img")
    model, params, frozen = converted("ldm_txt2img", tmp_path)
    cond = condition(model, params, frozen, io)
    null = {"tokens": np.zeros_like(io["tokens"], np.int32)}
    null = model.condition(params, frozen, null)
    z = ddim(model, params, io["xT"], 20, cond, null, 3.0)
    scale = io["ddim20_cfg3"].std()
    assert_close(z / scale, io["ddim20_cfg3"] / scale)
    rows = len(io["decoded"])
    decode = rule.fast_jit(model.codec.decode)
    assert_close(decode(frozen["first_stage"], z[:rows]), io["decoded"])
