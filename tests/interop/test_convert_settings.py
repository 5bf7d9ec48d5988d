"""What a YAML and a checkpoint of the original program may say, and may not.

The latent scale, the schedule, the heads of attention, class vectors, what lies beside
the weights; settings that are refused. The model is a small one whose outputs the
original program recorded, with changes.
"""

import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from lDM_jax.core.errors import UserError
from lDM_jax.interop.original import read as from_original
from lDM_jax.interop.original import settings as original_settings
from lDM_jax.weights import directory as weights_directory
from tests.interop.converting import (
    TARGET,
    celeba,
    only_used,
    opened,
    recorded,
    refusal,
    run,
    written,
)
from tests.reference import rule


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
    config = weights_directory.read_config(tmp_path / "out")
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
    stage = original_settings.second_stage(model["model"]["params"])
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
    process = original_settings.process(params)
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
    count, width, note = original_settings.head_counts(
        given, spatial=True, heads=heads, given_context=False
    )
    assert (count, width) == expected and note.startswith("heads: ")
    plain = original_settings.head_counts(
        given, spatial=False, heads=heads, given_context=False
    )
    key = "num_head_channels"
    assert plain[:2] == ((0, given[key]) if key in given else (given["num_heads"], 0))
    retrieval = original_settings.head_counts(
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
