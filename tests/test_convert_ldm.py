"""Whole second stages of the original program become weights directories.

`tests/reference/released.py` holds the YAMLs, `state_dicts/whole` the lists of names of
the original's own classes at published sizes, `original/ldm_*` small models with their
outputs. Published sizes are only shapes here: broadcast zeros on one side,
`jax.eval_shape` on the other. Tolerance 1e-4 on outputs of scale about 1, as in the
parity tests: f32 sums in another order differ by about 1e-5.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from lDM_jax import (
    architectures_original,
    build,
    conversion,
    convert,
    export_original,
    from_original,
    samplers,
    tasks,
    weights,
)
from lDM_jax import guidance as guide
from lDM_jax.arrays import Cond, UserError
from tests.reference import released, rule
from tests.test_convert import hollow, refusal, run
from tests.test_parity_original import ORIGINAL, arrays

TOLERANCE = 1e-4
TARGET = "ldm.models.diffusion.ddpm.LatentDiffusion"
# The fast suite has one model of each kind of conditioner that is cheap to trace.
FAST = ("bsr_sr", "semantic256")


def sizes(models) -> list:
    """Test cases; the costly ones are marked."""
    slow = pytest.mark.slow
    return [pytest.param(m, marks=() if m in FAST else slow) for m in models]


def released_state(model: str) -> dict:
    """The released names and shapes without memory, but with a schedule of numbers."""
    file = f"{released.MODELS[model].states}.tsv.gz"
    state = hollow(rule.read_shapes(rule.FOLDER / "state_dicts" / "whole" / file))
    process = architectures_original.process(released.params(model))
    for name, values in from_original.schedule(process).items():
        assert state[name].shape == values.shape
        state[name] = values.astype(np.float32)
    if "scale_factor" in state:
        state["scale_factor"] = np.float32(0.37)
    return state


def as_ours(part: conversion.Part) -> conversion.Ours:
    return conversion.Ours(None, part.arrays)


def params_count(arrays, root: str) -> int:
    return sum(
        int(np.prod(lazy.shape)) for path, lazy in arrays.items() if path[0] == root
    )


def abstract_model(config: dict, first: dict | None) -> dict:
    """Shapes of {"unet", "conditioner"} by tracing the model's own init."""
    config = ConfigDict(config)
    if first:
        config.first_stage.path, config.first_stage.network = "", first["autoencoder"]
    codec = build.abstract_codec(config)
    model = build.model(config, codec)
    side = config.data.size_px // codec.factor
    batch = tasks.example_shapes(
        tasks.get_task(config.task),
        build.tokenizer(config),
        rows=1,
        size_px=config.data.size_px,
        factor=codec.factor,
    )
    z0 = jax.ShapeDtypeStruct((1, side, side, codec.channels), jnp.float32)
    batch = {name: jax.ShapeDtypeStruct(s.shape, s.dtype) for name, s in batch.items()}
    return jax.eval_shape(model.init, jax.random.key(0), batch, z0)


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
    stage = architectures_original.second_stage(released.params(model))
    back = export_original.state_dict(as_ours(whole), as_ours(first), None, stage)
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
    stage = architectures_original.second_stage(released.params(model))
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
    stage = architectures_original.second_stage(released.params(model))
    unet = from_original.unet_table(stage)
    table = convert.prefixed(unet, from_original.UNET_PREFIX)
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
    back = export_original.state_dict(*map(as_ours, found.parts.values()), stage)
    used = {name for name, entry in table.items() if entry.path is not None}
    assert back.keys() == used | set(from_original.SCHEDULE)
    # Also where diffusers has left out the block that is not evaluated.
    network = dict(found.parts["text"].config["text"]["network"])
    if model == "stable-2":
        network |= dict(output_layer="last", depth=23)
    tower = conversion.Ours(ConfigDict(dict(text=dict(network=network))), {})
    changed = released.params(model) | dict(
        cond_stage_config=export_original.frozen(tower)
    )
    assert architectures_original.second_stage(changed).text == stage.text


def abstract_tower(config: dict) -> dict:
    network = build.construct(build.ClipText, config["text"]["network"], "text")
    tokens = jax.ShapeDtypeStruct((1, network.max_length), jnp.int32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), tokens)
    return {path: leaf.shape for path, leaf in flatten_dict(shapes).items()}


# Small models whose outputs the original program recorded.
@functools.cache
def recorded(folder: str) -> tuple[str, dict]:
    """(YAML, whole state dict) of a folder of tests/reference/original.

    The schedule is there where it was recorded, and may be absent elsewhere.
    """
    text = (ORIGINAL / folder / "config.yaml").read_text()
    path = ORIGINAL / folder / "keys.tsv.gz"
    state = {}
    for name, shape, kind in rule.read_entries(path):
        if kind == "param":
            state[name] = rule.weight(name, shape)
        elif kind.startswith("ema:"):
            state[name] = rule.ema_weight(kind.removeprefix("ema:"), shape)
    buffers = ORIGINAL / folder / "buffers.npz"
    return text, state | (rule.read_arrays(buffers) if buffers.is_file() else {})


def written(tmp_path, text: str, state: dict) -> tuple:
    """The flags for a YAML and a state dict, into tmp_path / "out"."""
    (tmp_path / "model.yaml").write_text(text)
    state = {name: np.array(array, order="C") for name, array in state.items()}
    save_file(state, tmp_path / "model.safetensors")
    flags = "--checkpoint", tmp_path / "model.safetensors"
    return *flags, "--config", tmp_path / "model.yaml", "--out", tmp_path / "out"


def converted(folder: str, tmp_path, *flags: str):
    """(model, params, frozen) of the directory that the converter writes."""
    text, state = recorded(folder)
    assert run(*written(tmp_path, text, state), *flags) == 0
    return opened(tmp_path / "out")


def opened(out):
    """(model, params, frozen) of a converted directory, its parameters checked."""
    config, params = build.load_trained(str(out))
    codec, codec_params = build.first_stage(config)
    model = build.model(config, codec)
    shapes = abstract_model(config.to_dict(), weights.read_config(out / "first_stage"))
    weights.check_cover(params, shapes, what=str(out))
    return model, params, build.frozen(config, codec_params)


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
    io = arrays(folder)
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
    io = arrays("ldm_cin_f8_onehead")
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
    io = arrays("ldm_celeba")
    model, params, frozen = converted("ldm_celeba", tmp_path)
    z = ddim(model, params, io["xT"], 50, Cond())
    scale = io["ddim50_ema"].std()  # of 80 under random weights
    assert_close(z / scale, io["ddim50_ema"] / scale)
    decode = rule.fast_jit(model.codec.decode)
    assert_close(decode(frozen["first_stage"], io["ddim50_ema"]), io["decoded"])


@pytest.mark.slow
def test_what_the_original_samples_of_a_text(tmp_path):
    """20 steps with guidance 3 against all-zero tokens, and the pixels."""
    io = arrays("ldm_txt2img")
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


# The scale, the schedule, and what else a file may hold.
def celeba(**changes) -> tuple[dict, dict]:
    """The YAML's model section and the state dict of a small model, changed.

    The last part of a key is looked for anywhere inside the params.
    """
    text, state = recorded("ldm_celeba")
    model = yaml.safe_load(text)
    for key, value in changes.items():
        place(model["model"]["params"], key, value)
    return model, dict(state)


def place(values: dict, key: str, value) -> None:
    """Set (or with ... delete) a key below "unet", "first", "cond" or on top."""
    where, _, name = key.rpartition("__")
    inner = {
        "": lambda v: v,
        "unet": lambda v: v["unet_config"]["params"],
        "first": lambda v: v["first_stage_config"]["params"],
        "dd": lambda v: v["first_stage_config"]["params"]["ddconfig"],
    }[where](values)
    if value is ...:
        del inner[name]
    else:
        inner[name] = value


def only_used(state: dict) -> dict:
    """Without averages and schedule."""
    kept = ("model.", "first_stage_model.")
    return {name: array for name, array in state.items() if name.startswith(kept)}


def report(capsys, tmp_path, model: dict, state: dict, *flags: str) -> list[str]:
    capsys.readouterr()
    assert run(*written(tmp_path, yaml.safe_dump(model), state), *flags) == 0
    return capsys.readouterr().out.splitlines()


def test_what_may_lie_beside_the_weights(tmp_path, capsys):
    """Sampler tables, a log variance, a first stage's loss; other averages, no EMA."""
    model, state = celeba()
    state = only_used(state)
    for name in ("sigmas", "alphas", "alphas_prev", "sqrt_one_minus_alphas"):
        state[f"ddim_{name}"] = np.zeros(100, np.float32)
    state["logvar"] = np.zeros(1000, np.float32)
    state["first_stage_model.loss.discriminator.main.0.bias"] = np.zeros(64, np.float32)
    state["first_stage_model.model_ema.decay"] = np.float32(0.5)
    lines = report(capsys, tmp_path, model, state)
    assert "weights: as trained (raw)" in lines
    said = "schedule: as the YAML says; the checkpoint has no tables to check it by"
    assert said in lines
    assert "not used: 1 entries of ddim_sigmas.*" in lines
    assert "latent scale: 1 (the YAML and the checkpoint say nothing)" in lines
    config = weights.read_config(tmp_path / "out")
    assert config["converted_from"] == TARGET and config["task"] == "unconditional"
    assert config["process"]["linear_end"] == 0.0195
    assert config["data"]["size_px"] == 64


@pytest.mark.parametrize(
    "yaml_scale, by_std, stored, flags, scale, source",
    [
        (0.5, False, None, (), 0.5, "scale_factor of the YAML"),
        (None, True, 0.25, (), 0.25, "scale_factor of the checkpoint"),
        (None, False, 0.25, (), 0.25, "scale_factor of the checkpoint"),
        (1.0, True, 0.25, (), 0.25, "scale_factor of the checkpoint"),
        (0.5, False, 0.25, ("--scale", "2"), 2.0, "--scale"),
        (0.5, False, 0.25, (), None, "scale_factor is 0.25 in the checkpoint and 0.5"),
        (None, True, None, (), None, "scale_by_std: the latent scale belongs to"),
        (None, True, 0.0, (), None, "the checkpoint's scale_factor is 0.0: give"),
    ],
)
def test_latent_scale(yaml_scale, by_std, stored, flags, scale, source):
    changes = {"scale_by_std": by_std}
    changes |= {} if yaml_scale is None else {"scale_factor": yaml_scale}
    model, _ = celeba(**changes)
    stage = architectures_original.second_stage(model["model"]["params"])
    state = {} if stored is None else {"scale_factor": np.float32(stored)}
    given = float(flags[1]) if flags else None
    if scale is None:
        with pytest.raises(UserError, match=source):
            from_original.latent_scale(stage, state, given)
    else:
        assert from_original.latent_scale(stage, state, given) == (scale, source)


@pytest.mark.parametrize("folder", ["ldm_celeba", "ldm_churches"])
def test_schedule_is_the_recorded_one(folder):
    """All twelve tables, in f32 and rounded as half precision checkpoints have them."""
    text, state = recorded(folder)
    params = yaml.safe_load(text)["model"]["params"]
    process = architectures_original.process(params)
    tables = {name: state[name] for name in from_original.SCHEDULE}
    said = "schedule: as the YAML says; 12 tables of the checkpoint agree"
    assert from_original.check_schedule(process, tables) == said
    halves = {name: value.astype(np.float16) for name, value in tables.items()}
    assert from_original.check_schedule(process, halves) == said
    brain = {
        name: (value.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        for name, value in tables.items()
    }
    assert from_original.check_schedule(process, brain) == said
    # One part in 1e4 is told apart in f32.
    for wrong in ({"linear_end": 0.0195 * 1.0001}, {"schedule": "cosine"}):
        other = {**process, "linear_end": params["linear_end"] * 1.0001, **wrong}
        with pytest.raises(UserError, match=r"the checkpoint's .*\[\d+\] is .* YAML's"):
            from_original.check_schedule(other, tables)


@pytest.mark.parametrize(
    "changes, reason",
    [
        (dict(timesteps=500), "mismatched alphas_cumprod (1000,) instead of (500,)"),
        (dict(linear_start=0.002), "the checkpoint's betas[0] is 0.0015, but the YAML"),
        (dict(parameterization="x"), "parameterization = 'x' is not supported; valid"),
        (dict(linear_end="a"), "linear_end = 'a' should be a positive number"),
        (
            dict(beta_schedule="x"),
            "beta_schedule = 'x' is not supported; valid: linear",
        ),
        (dict(given_betas=[0.1]), "given_betas = a list is not supported"),
        (dict(num_timesteps_cond=2), "num_timesteps_cond = 2 is not supported"),
        (
            dict(loss_type="huber"),
            "loss_type = 'huber' is not supported; valid: l1, l2",
        ),
        (dict(image_size=[16, 16]), "image_size = a list should be a positive integer"),
        (dict(unet_config=1), "unet_config = 1 should be a table of values"),
        (
            dict(unet_config=dict(target="x")),
            "unet_config.target = 'x' is not supported",
        ),
        (dict(unet__n_embed=8), "unet_config.params.n_embed = 8 is not supported"),
        (dict(unet__dims=3), "unet_config.params.dims = 3 is not supported"),
        (dict(unet__other=1), "unet_config.params has unknown keys: other"),
        (
            dict(unet__num_head_channels=...),
            "has neither num_heads nor num_head_channels",
        ),
        (
            dict(unet__num_head_channels=48),
            "64 channels do not divide into heads of 48",
        ),
        (dict(unet__model_channels=40), "40 channels do not divide into 32 groups"),
        (dict(unet__num_heads_upsample=2), "num_heads_upsample = 2 is not supported"),
        (dict(unet__use_spatial_transformer=True), "and context_dim go together"),
        (dict(unet__resblock_updown=1), "resblock_updown = 1 should be true or false"),
        (dict(unet__in_channels=4), "has 4 channels in and 3 out, but the first stage"),
        (dict(unet__num_classes=4), "num_classes and conditioning_key adm: both"),
        (
            dict(unet__num_res_blocks=2),
            "missing model_ema.diffusion_modelinput_blocks100",
        ),
        (dict(unet__resblock_updown=True), "unexpected model.diffusion_model.input_b"),
        (dict(first__embed_dim=4), "has 3 channels in and 3 out, but the first stage"),
        (dict(first__n_embed=65), "mismatched first_stage_model.quantize.embedding"),
        (dict(dd__resolution="x"), "resolution = 'x' should be a positive integer"),
        (
            dict(first_stage_config=dict(target="x")),
            "first_stage_config.target = 'x' is",
        ),
        (dict(cond_stage_config=dict(target="x")), "cond_stage_config 'x' (concat) is"),
        (dict(cond_stage_config=[]), "cond_stage_config = a list should be a table"),
        (
            dict(cond_stage_config=dict(target="torch.nn.Identity")),
            "cond_stage_key = 'image' is not supported; supported: LR_image",
        ),
        (
            dict(cond_stage_config="__is_first_stage__", cond_stage_key="masked_image"),
            "has 3 channels in and 3 out, but the first stage has 3 and the condition",
        ),
        (
            dict(cond_stage_config=dict(target="x"), conditioning_key="hybrid"),
            "conditioning_key = 'hybrid' is not supported; supported: concat",
        ),
    ],
)
def test_bad_second_stages(changes, reason, tmp_path, capsys):
    model, state = celeba(**changes)
    late = ("missing", "unexpected", "mismatched", "betas[")
    if not any(word in reason for word in late):
        state = {"x": np.zeros(1, np.float32)}  # the YAML alone is refused
    flags = written(tmp_path, yaml.safe_dump(model), state)
    assert reason in refusal(capsys, *flags)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_misfits_and_other_targets(tmp_path, capsys):
    """Three lists over the whole file; targets and averages that are not there."""
    model, state = celeba()
    del state["first_stage_model.decoder.conv_in.bias"]
    del state["model_ema.diffusion_modelout0weight"]
    state["cond_stage_model.x"] = np.zeros(1, np.float32)
    state["model.diffusion_model.out.2.bias"] = np.zeros(4, np.float32)
    flags = written(tmp_path, yaml.safe_dump(model), state)
    assert refusal(capsys, *flags) == (
        "weights do not fit the network: missing "
        "first_stage_model.decoder.conv_in.bias, model_ema.diffusion_modelout0weight; "
        "unexpected cond_stage_model.x; mismatched model.diffusion_model.out.2.bias "
        "(4,) instead of (3,)"
    )
    model, state = celeba()
    flags = written(tmp_path, yaml.safe_dump(model), only_used(state))
    assert "averaged weights are asked for" in refusal(
        capsys, *flags, "--weights", "ema"
    )
    model["model"]["target"] = "ldm.models.diffusion.ddpm.LatentUpscaleDiffusion"
    flags = written(tmp_path, yaml.safe_dump(model), state)
    assert "LatentUpscaleDiffusion' is not supported; valid" in refusal(capsys, *flags)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "given, heads, expected",
    [
        (dict(num_head_channels=32), "auto", (1, 0)),
        (dict(num_head_channels=32), "head", (0, 32)),
        (dict(num_head_channels=32, legacy=False), "auto", (0, 32)),
        (dict(num_head_channels=32, legacy=False), "release", (0, 32)),
        (dict(num_head_channels=32, num_heads=4), "auto", (4, 0)),
        (dict(num_heads=8), "head", (8, 0)),
    ],
)
def test_heads_of_spatial_transformers(given, heads, expected):
    count, width, note = architectures_original.head_counts(
        given, spatial=True, heads=heads, given_context=False
    )
    assert (count, width) == expected and note.startswith("heads: ")
    plain = architectures_original.head_counts(
        given, spatial=False, heads=heads, given_context=False
    )
    key = "num_head_channels"
    assert plain[:2] == ((0, given[key]) if key in given else (given["num_heads"], 0))
    retrieval = architectures_original.head_counts(
        dict(num_head_channels=32), spatial=True, heads="auto", given_context=True
    )
    assert retrieval[:2] == (0, 32)


def test_class_vectors(tmp_path):
    """conditioning_key adm: the UNet's own label_emb becomes the class conditioner."""
    model, state = celeba(
        unet__num_classes=5,
        conditioning_key="adm",
        cond_stage_config=dict(target="torch.nn.Identity"),
    )
    rows = rule.noise("label_emb", (5, 128))
    state["model.diffusion_model.label_emb.weight"] = rows
    state["model_ema.diffusion_modellabel_embweight"] = 2 * rows
    assert run(*written(tmp_path, yaml.safe_dump(model), state)) == 0
    model, params, frozen = opened(tmp_path / "out")
    cond = model.condition(params, frozen, {"label": jnp.array([3, 0])})
    np.testing.assert_array_equal(cond.vector, 2 * rows[[3, 0]])
    assert cond.context is None and cond.concat is None
