"""A second stage's YAML of the original program -> sections of our config.

Owns what the `params` of a `LatentDiffusion` mean here (its first stage's are in
`first_stage_settings`, the way back in `original.write`): plain dicts, no weights, no
network. A value that would change what is computed in a way we cannot follow is a
UserError that names it.

    unet_config         UNetModel
    first_stage_config  AutoencoderKL, VQModel, VQModelInterface, IdentityFirstStage
    cond_stage_config   see `original.conditions`

Reading order: SecondStage and `second_stage`, the UNet, the process.
"""

from collections.abc import Mapping
from typing import NamedTuple

from lDM_jax.core.errors import UserError
from lDM_jax.interop import first_stage_settings, validate
from lDM_jax.interop.original.conditions import Condition, conditioner, sample

UNET = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
FIRST_STAGES = {
    "ldm.models.autoencoder.AutoencoderKL": True,
    "ldm.models.autoencoder.VQModel": False,
    "ldm.models.autoencoder.VQModelInterface": False,
}
PIXELS = "ldm.models.autoencoder.IdentityFirstStage"
HEADS = ("auto", "release", "head")

UNET_FIXED = {
    "conv_resample": (True,),
    "dims": (2,),
    "num_heads_upsample": (-1, None),
    "use_new_attention_order": (False,),
    "n_embed": (None,),
    "adm_in_channels": (None,),
    "disable_self_attentions": (None,),
    "disable_middle_self_attn": (False,),
    "num_attention_blocks": (None,),
}
UNET_READ = {"in_channels", "out_channels", "model_channels", "attention_resolutions"}
UNET_READ |= {"num_res_blocks", "channel_mult", "num_heads", "num_head_channels"}
UNET_READ |= {"use_spatial_transformer", "context_dim", "transformer_depth", "dropout"}
UNET_READ |= {"use_scale_shift_norm", "resblock_updown", "use_linear_in_transformer"}
UNET_READ |= {"legacy", "num_classes", "use_checkpoint"}
UNET_HARMLESS = {"image_size", "use_fp16", "use_bf16", "spatial_transformer_attn_type"}

FIXED = {
    "num_timesteps_cond": (1, None),
    "given_betas": (None,),
    "cosine_s": (8e-3,),
    "use_positional_encodings": (False,),
    "cond_stage_forward": (None,),
}
READ = {"unet_config", "first_stage_config", "cond_stage_config", "timesteps"}
READ |= {"beta_schedule", "linear_start", "linear_end", "parameterization", "channels"}
READ |= {"image_size", "scale_factor", "scale_by_std", "loss_type", "cond_stage_key"}
READ |= {"conditioning_key", "concat_mode", "use_ema", "first_stage_key"}
HARMLESS = {"log_every_t", "monitor", "ckpt_path", "ignore_keys", "load_only_unet"}
HARMLESS |= {"scheduler_config", "cond_stage_trainable", "clip_denoised", "v_posterior"}
HARMLESS |= {"base_learning_rate", "num_timesteps", "logvar_init", "learn_logvar"}
HARMLESS |= {"original_elbo_weight", "l_simple_weight"}
PREDICTIONS = {"eps": "eps", "x0": "z0", "v": "v"}
SCHEDULES = ("linear", "cosine", "sqrt_linear", "sqrt")


class SecondStage(NamedTuple):
    """A `LatentDiffusion` in our terms.

    config: of the second stage, its first_stage.scale still open. first_stage: config
    of that directory, None for pixels. text: that of a frozen tower's, or None. route:
    as in `Condition`. scale: of the YAML, None if it says nothing; by_std: it is in the
    checkpoint. notes: lines of the report.
    """

    config: dict
    first_stage: dict | None
    text: dict | None
    route: str
    scale: float | None
    by_std: bool
    in_channels: int
    out_channels: int
    notes: list[str]


def second_stage(params: Mapping, *, heads: str = "auto") -> SecondStage:
    """The `params` of a LatentDiffusion; heads as in `unet`."""
    validate.demand(params, FIXED, "params.")
    kind, unet_params = validate.target(params, "unet_config")
    if kind != UNET:
        raise UserError(
            f"unet_config.target = {kind!r} is not supported; valid: {UNET}"
        )
    first, factor, channels = first_stage(params)
    condition = conditioner(params, unet_params, channels)
    untrained = condition.route == "given"
    section, note = unet(unet_params, heads=heads, given_context=untrained)
    check_fit(unet_params, section, condition, channels, factor)
    size_px = validate.integer(params, "image_size") * factor
    text = condition.sections.pop("tower", None)
    loss = validate.choice(params, "loss_type", ("l1", "l2"), "l2")
    scale = (
        validate.number(params, "scale_factor") if "scale_factor" in params else None
    )
    config = second_stage_config(size_px=size_px, factor=factor) | dict(
        unet=section,
        process=process(params),
        loss=dict(loss=loss, weighting="uniform", drop_rate=0.0),
        **condition.sections,
    )
    config["first_stage"]["path"] = "./first_stage" if first else "identity"
    unread = sorted(map(str, params.keys() - READ - HARMLESS - set(FIXED)))
    notes = [note, *condition.notes]
    notes += [f"not read in model.params: {', '.join(unread)}"] if unread else []
    return SecondStage(
        config=config,
        first_stage=first,
        text=text,
        route=condition.route,
        scale=scale,
        by_std=validate.switch(params, "scale_by_std"),
        in_channels=validate.integer(unet_params, "in_channels"),
        out_channels=channels,
        notes=notes,
    )


def second_stage_config(*, size_px: int, factor: int) -> dict:
    """What every converted second stage has, however it is conditioned.

    factor: of the first stage. A small picture to be enlarged is as large as latents.
    """
    return dict(
        stage="diffusion",
        seed=0,
        task="unconditional",
        num_classes=0,
        null_class=True,
        first_stage=dict(path="./first_stage", scale=1.0, network={}),
        text={},
        rescaler=dict(num_stages=2, width=3),
        low_res=dict(kind="bicubic", factor=factor, fold=1),
        data=first_stage_settings.data_section(size_px),
        sample=sample(guidance=1.0),
    )


def first_stage(params: Mapping) -> tuple[dict | None, int, int]:
    """(config of the first stage or None, its factor, latent channels)."""
    kind, inner = validate.target(params, "first_stage_config")
    if kind == PIXELS:
        return None, 1, 3
    if kind not in FIRST_STAGES:
        valid = ", ".join([*FIRST_STAGES, PIXELS])
        raise UserError(
            f"first_stage_config.target = {kind!r} is not supported; valid: {valid}"
        )
    section = first_stage_settings.original_first_stage(inner, is_kl=FIRST_STAGES[kind])
    config = first_stage_settings.first_stage_config(
        section, size_px=inner["ddconfig"]["resolution"], scale=0.0
    )
    factor = 2 ** (len(section["width_mults"]) - 1)
    return config | {"converted_from": kind}, factor, section["latent_channels"]


def check_fit(
    unet_params: Mapping,
    section: dict,
    condition: Condition,
    channels: int,
    factor: int,
) -> None:
    """UserError unless the UNet takes what first stage and conditioner give."""
    takes = validate.integer(unet_params, "in_channels")
    makes = validate.integer(unet_params, "out_channels")
    if (takes, makes) != (channels + condition.extra, channels):
        raise UserError(
            f"unet_config has {takes} channels in and {makes} out, but the first stage "
            f"has {channels} and the condition adds {condition.extra}"
        )
    if condition.context != section["context_width"]:
        raise UserError(
            f"context_dim is {section['context_width']} (0: no cross-attention), but "
            f"the conditioner gives {condition.context}"
        )
    if condition.factor not in (0, factor):
        raise UserError(
            f"the conditioner reduces {condition.factor} times, the first stage "
            f"{factor} times"
        )


def unet(params: Mapping, *, heads: str, given_context: bool) -> tuple[dict, str]:
    """(config.unet, a line about its heads) of the `params` of a UNetModel.

    Where spatial transformers meet num_head_channels, and legacy is not False, the
    program has changed: heads = "release" is one head (or num_heads), as in December
    2021; "head" is channels / num_head_channels, since April 2022, with equal shapes.
    "auto" takes the latter for models without a trained conditioner (retrieval).
    """
    known = {*UNET_FIXED, *UNET_READ, *UNET_HARMLESS}
    validate.demand_known(params, known, "unet_config.params")
    validate.demand(params, UNET_FIXED, "unet_config.params.")
    spatial = validate.switch(params, "use_spatial_transformer")
    if spatial != (params.get("context_dim") is not None):
        raise UserError("use_spatial_transformer and context_dim go together")
    num_heads, head_channels, note = head_counts(
        params, spatial=spatial, heads=heads, given_context=given_context
    )
    section = first_stage_settings.section(
        width=validate.integer(params, "model_channels"),
        width_mults=validate.integers(params, "channel_mult"),
        num_res_blocks=validate.integer(params, "num_res_blocks"),
        attn_factors=validate.integers(params, "attention_resolutions", empty=True),
        num_heads=num_heads,
        head_channels=head_channels,
        context_width=validate.integer(params, "context_dim") if spatial else 0,
        transformer_depth=validate.integer(params, "transformer_depth", 1),
        linear_projections=validate.switch(params, "use_linear_in_transformer"),
        vector_width=0,
        qk_norm=False,
        scale_shift=validate.switch(params, "use_scale_shift_norm"),
        res_resample=validate.switch(params, "resblock_updown"),
        dropout=validate.rate(params, "dropout"),
        num_groups=first_stage_settings.ORIGINAL_GROUPS,
        remat=validate.switch(params, "use_checkpoint"),
    )
    return section, note


def head_counts(
    params: Mapping, *, spatial: bool, heads: str, given_context: bool
) -> tuple[int, int, str]:
    """(num_heads, head_channels, note), one of the first two being 0."""

    def count_of(key: str) -> int:
        absent = params.get(key, -1) in (-1, None)
        return 0 if absent else validate.integer(params, key)

    count, width = count_of("num_heads"), count_of("num_head_channels")
    if not count and not width:
        raise UserError(
            "unet_config.params has neither num_heads nor num_head_channels"
        )
    if not width:
        return count, 0, f"heads: {count} (num_heads)"
    one, many = f"{count or 1}", f"channels / {width}"
    if not spatial or not validate.switch(params, "legacy", True):
        return 0, width, f"heads: {many} (num_head_channels)"
    chosen, why = heads, "as --heads says"
    if heads == "auto":
        chosen = "head" if given_context else "release"
        other = f"head for {many}" if chosen == "release" else f"release for {one}"
        why = f"as in the released model of this kind; else --heads {other}"
    if chosen == "head":
        return 0, width, f"heads: {many} ({why})"
    return count or 1, 0, f"heads: {one} ({why})"


def process(params: Mapping) -> dict:
    """config.process of the `params` of a DDPM."""
    return dict(
        kind="discrete",
        num_timesteps=validate.integer(params, "timesteps", 1000),
        schedule=validate.choice(params, "beta_schedule", SCHEDULES, "linear"),
        linear_start=validate.number(params, "linear_start", 1e-4),
        linear_end=validate.number(params, "linear_end", 2e-2),
        prediction=validate.choice(params, "parameterization", PREDICTIONS, "eps"),
        zero_terminal_snr=False,
    )
