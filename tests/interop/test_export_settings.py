"""What the settings of diffusers' networks and schedulers mean here; no weights."""

import pytest

from configs import celebahq_ldm4
from lDM_jax.core.errors import UserError
from lDM_jax.interop.diffusers import settings as diffusers_settings
from lDM_jax.interop.original import write as to_original

PLAIN = dict(_class_name="UNet2DModel", block_out_channels=[32, 64], layers_per_block=1)
PLAIN |= dict(in_channels=3, out_channels=3, attention_head_dim=16)
PLAIN |= dict(down_block_types=["DownBlock2D", "AttnDownBlock2D"])
PLAIN |= dict(up_block_types=["AttnUpBlock2D", "UpBlock2D"])
SPATIAL = PLAIN | dict(
    _class_name="UNet2DConditionModel",
    attention_head_dim=[2, 4],
    cross_attention_dim=48,
    down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
    up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
)
RESIDUAL = dict(
    downsample_type="resnet",
    upsample_type="resnet",
    down_block_types=["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
    up_block_types=["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
)


@pytest.mark.parametrize(
    "config, expected",
    [
        (PLAIN, dict(head_channels=16, num_heads=0, context_width=0)),
        (PLAIN | dict(attention_head_dim=None), dict(head_channels=0, num_heads=1)),
        (PLAIN | RESIDUAL, dict(res_resample=True, attn_factors=[2])),
        (SPATIAL, dict(head_channels=16, num_heads=0, context_width=48)),
        (SPATIAL | dict(attention_head_dim=4), dict(head_channels=0, num_heads=4)),
        (SPATIAL, dict(attn_factors=[1], transformer_depth=1, scale_shift=False)),
        (
            SPATIAL | dict(transformer_layers_per_block=[1, 3]),
            dict(transformer_depth=[1, 3]),
        ),
        (SPATIAL | dict(use_linear_projection=True), dict(linear_projections=True)),
        (SPATIAL | dict(resnet_time_scale_shift="scale_shift"), dict(scale_shift=True)),
        (SPATIAL | dict(a_new_key=None, upcast_attention=True), dict(width=32)),
    ],
)
def test_unet_settings_there_and_back(config, expected):
    section = diffusers_settings.unet(config)
    assert {key: section[key] for key in expected} == expected
    options = dict(in_channels=3, out_channels=3, sample_size=8)
    assert (
        diffusers_settings.unet(diffusers_settings.to_unet(section, **options))
        == section
    )


@pytest.mark.parametrize(
    "config, reason",
    [
        (PLAIN | dict(_class_name="UNet3D"), "_class_name = 'UNet3D' is not supported"),
        (PLAIN | dict(freq_shift=1), "freq_shift = 1 is not supported"),
        (PLAIN | dict(norm_eps=1e-6), "norm_eps = 1e-06 is not supported"),
        (PLAIN | dict(act_fn="mish"), "act_fn = 'mish' is not supported"),
        (PLAIN | dict(num_class_embeds=10), "num_class_embeds = 10 is not supported"),
        (PLAIN | dict(mid_block_type=None), "mid_block_type = None is not supported"),
        (PLAIN | dict(a_new_key=1), "unet/config.json has unknown keys: a_new_key"),
        (PLAIN | dict(block_out_channels=[32, 48]), "no multiples of the first"),
        (PLAIN | dict(layers_per_block=[1, 2]), "different levels are not supported"),
        (PLAIN | dict(down_block_types=["X", "Y"]), "down_block_types should be 2 of"),
        (PLAIN | dict(up_block_types=["UpBlock2D"] * 2), "attend at other levels"),
        (PLAIN | dict(downsample_type="x"), "downsample_type = 'x' is not supported"),
        (PLAIN | RESIDUAL | dict(upsample_type="conv"), "resample in different ways"),
        (
            PLAIN | dict(resnet_time_scale_shift="scale_shift"),
            "attn_norm_num_groups: the middle attention has no norm",
        ),
        (SPATIAL | dict(attention_head_dim=[2, 3]), "neither one number of heads nor"),
        (
            SPATIAL | dict(attention_head_dim=[2]),
            "attention_head_dim = a list should be",
        ),
        (SPATIAL | dict(cross_attention_dim=[48, 64]), "different levels are not"),
        (SPATIAL | dict(only_cross_attention=True), "only_cross_attention = True is"),
        (SPATIAL | dict(addition_embed_type="text"), "addition_embed_type = 'text' is"),
        (SPATIAL | dict(conv_in_kernel=1), "conv_in_kernel = 1 is not supported"),
    ],
)
def test_bad_unet_settings(config, reason):
    with pytest.raises(UserError, match=reason.replace(".", r"\.")):
        diffusers_settings.unet(config)


@pytest.mark.parametrize(
    "changes, reason",
    [
        (dict(vector_width=8), "vector_width cannot be written"),
        (dict(qk_norm=True), "no place for config.unet.qk_norm"),
        (
            dict(head_channels=0, num_heads=2, attn_factors=[1, 2]),
            "have: config.unet.nu",
        ),
        (dict(context_width=8, res_resample=True), "res_resample together with"),
        (dict(context_width=8, transformer_depth=(1, 0)), "a middle without attention"),
    ],
)
def test_what_diffusers_has_no_place_for(changes, reason):
    section = diffusers_settings.unet(PLAIN) | changes
    with pytest.raises(UserError, match=reason):
        diffusers_settings.to_unet(
            section, in_channels=3, out_channels=3, sample_size=8
        )


def test_the_original_has_no_place_for_normed_queries_and_keys():
    config = celebahq_ldm4.get_config().unlock()
    assert to_original.unet(config, 3, 3)["model_channels"] == 224
    config.unet.qk_norm = True
    with pytest.raises(UserError, match="no place for config.unet.qk_norm"):
        to_original.unet(config, 3, 3)


@pytest.mark.parametrize("schedule", ["linear", "sqrt_linear", "cosine"])
@pytest.mark.parametrize("prediction", ["eps", "z0", "v"])
def test_schedulers_there_and_back(schedule, prediction):
    section = dict(kind="discrete", num_timesteps=500, schedule=schedule)
    section |= dict(linear_start=0.001, linear_end=0.02, prediction=prediction)
    section["zero_terminal_snr"] = prediction == "v"
    assert diffusers_settings.process(diffusers_settings.to_scheduler(section)) == (
        section,
        [],
    )


@pytest.mark.parametrize(
    "changes, reason",
    [
        (dict(trained_betas=[0.1]), "trained_betas = a list is not supported"),
        (dict(beta_schedule="sigmoid"), "beta_schedule = 'sigmoid' is not supported"),
        (dict(prediction_type="flow_prediction"), "'flow_prediction' is not supported"),
        (dict(use_flow_sigmas=True), "has no betas"),
        (dict(_class_name="FlowMatchEulerDiscreteScheduler"), "has no betas"),
        (dict(num_train_timesteps=0), "num_train_timesteps = 0 should be"),
        (dict(beta_end="much"), "beta_end = 'much' should be a positive number"),
    ],
)
def test_bad_schedulers(changes, reason):
    config = dict(_class_name="DDIMScheduler", beta_start=0.001) | changes
    with pytest.raises(UserError, match=reason):
        diffusers_settings.process(config)


def test_samplers_that_differ_are_said():
    """diffusers' own defaults clip, start at 0 and end at alpha 1."""
    _, notes = diffusers_settings.process(
        dict(_class_name="DDIMScheduler", beta_start=0.001)
    )
    assert notes == [
        "their DDIM samples with clip_sample = True, steps_offset = 0, "
        "set_alpha_to_one = True; ours does not"
    ]
    assert (
        diffusers_settings.process(dict(_class_name="PNDMScheduler", beta_start=0.001))[
            1
        ]
        == []
    )
    flow = dict(kind="rectified_flow", num_timesteps=1000)
    with pytest.raises(UserError, match="no process of kind 'rectified_flow'"):
        diffusers_settings.to_scheduler(flow)
