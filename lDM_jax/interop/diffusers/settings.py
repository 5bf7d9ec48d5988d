"""Second stages of diffusers: UNet, scheduler, text encoders <-> config sections.

Owns what the `config.json` of a component means here, and the way back (first stages:
`first_stage_settings`): plain dicts, no weights, no network. What we cannot follow, or
what diffusers cannot hold, is a UserError that names it.

    UNet2DModel, UNet2DConditionModel   config.unet
    a scheduler                         config.process, and notes about its sampler
    LDMBertModel                        config.text
    CLIPTextModel                       the network of a frozen tower

Reading order: the UNet there and back, the scheduler, text encoders.
"""

from collections.abc import Mapping

from lDM_jax.core.errors import UserError
from lDM_jax.interop import first_stage_settings, validate
from lDM_jax.models.clip_text import ClipText

PLAIN, SPATIAL = "UNet2DModel", "UNet2DConditionModel"
MID = {PLAIN: "UNetMidBlock2D", SPATIAL: "UNetMidBlock2DCrossAttn"}
# A block without attention, with it, and without it but with residual resampling, for
# which the block with attention looks at downsample_type and upsample_type.
DOWN = {
    PLAIN: ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
    SPATIAL: ("DownBlock2D", "CrossAttnDownBlock2D"),
}
UP = {
    PLAIN: ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    SPATIAL: ("UpBlock2D", "CrossAttnUpBlock2D"),
}
RESAMPLE = {"conv": False, "resnet": True}
SCALE_SHIFT = {"default": False, "scale_shift": True}

# Keys that are fine at these values and no other.
FIXED = {
    "act_fn": ("silu",),
    "time_embedding_type": ("positional",),
    "freq_shift": (0,),
    "flip_sin_to_cos": (True,),
    "norm_eps": (1e-5,),
    "add_attention": (True,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    "mid_block_only_cross_attention": (None, False),
}
ABSENT = {"time_embedding_dim", "class_embed_type", "num_class_embeds"}
ABSENT |= {"time_embedding_act_fn", "timestep_post_act", "time_cond_proj_dim"}
ABSENT |= {"cross_attention_norm", "addition_embed_type", "encoder_hid_dim"}
ABSENT |= {"encoder_hid_dim_type", "reverse_transformer_layers_per_block"}
OFF = {"center_input_sample", "only_cross_attention", "dual_cross_attention"}
OFF |= {"resnet_skip_time_act", "class_embeddings_concat"}
ONE = {"mid_block_scale_factor", "downsample_padding", "resnet_out_scale_factor"}
FIXED |= dict.fromkeys(sorted(ABSENT | {"num_attention_heads"}), (None,))
FIXED |= dict.fromkeys(sorted(OFF), (False,)) | dict.fromkeys(sorted(ONE), (1,))
READ = {"in_channels", "out_channels", "block_out_channels", "layers_per_block"}
READ |= {"down_block_types", "up_block_types", "mid_block_type", "attention_head_dim"}
READ |= {"norm_num_groups", "attn_norm_num_groups", "resnet_time_scale_shift"}
READ |= {"downsample_type", "upsample_type", "cross_attention_dim", "dropout"}
READ |= {"transformer_layers_per_block", "use_linear_projection", "sample_size"}
HARMLESS = {"upcast_attention", "num_train_timesteps", "addition_embed_type_num_heads"}


def unet(config: Mapping) -> dict:
    """config.unet of a UNet's config.json; `_class_name` tells the two kinds apart."""
    kind = validate.choice(config, "_class_name", (PLAIN, SPATIAL), "")
    known = {*FIXED, *READ, *HARMLESS}
    validate.demand_known(config, known, "unet/config.json", newer=True)
    fixed = FIXED | {"mid_block_type": (MID[kind],)}
    validate.demand(config, fixed, "unet/config.json: ")
    spatial = kind == SPATIAL
    widths = validate.integers(config, "block_out_channels")
    levels = len(widths)
    if any(width % widths[0] for width in widths):
        raise UserError(f"block_out_channels = {widths} are no multiples of the first")
    attends, res_resample = block_levels(config, kind, levels)
    groups = validate.integer(config, "norm_num_groups", 32)
    scale_shift = validate.choice(
        config, "resnet_time_scale_shift", SCALE_SHIFT, "default"
    )
    if not spatial and config.get("attn_norm_num_groups") not in (
        (groups,) if scale_shift else (None, groups)
    ):
        raise UserError(
            "attn_norm_num_groups: the middle attention has no norm, or another one"
        )
    depths = validate.a_level(config, "transformer_layers_per_block", levels, 1)
    return first_stage_settings.section(
        width=widths[0],
        width_mults=[width // widths[0] for width in widths],
        num_res_blocks=equal(config, "layers_per_block", levels, 2),
        attn_factors=[2**level for level, on in enumerate(attends) if on],
        **(spatial_heads if spatial else plain_heads)(config, widths, attends),
        context_width=equal(config, "cross_attention_dim", levels, 1280) * spatial,
        transformer_depth=depths[0] if len(set(depths)) == 1 else depths,
        linear_projections=validate.switch(config, "use_linear_projection"),
        vector_width=0,
        qk_norm=False,
        scale_shift=scale_shift,
        res_resample=res_resample,
        dropout=validate.rate(config, "dropout"),
        num_groups=groups,
        remat=False,
    )


def block_levels(config: Mapping, kind: str, levels: int) -> tuple[list[bool], bool]:
    """(whether each level attends, whether resampling is residual), of the blocks.

    Nothing is resampled behind the last block of either way.
    """
    plain, attention, residual = (*DOWN[kind], "")[:3]
    ups = dict(zip(UP[kind], DOWN[kind], strict=True))
    down = validate.names(config, "down_block_types", DOWN[kind], levels)
    up = validate.names(config, "up_block_types", UP[kind], levels)
    up = [ups[name] for name in reversed(up)]
    attends = [name == attention for name in down]
    if attends != [name == attention for name in up]:
        raise UserError("down_block_types and up_block_types attend at other levels")
    residual_blocks = set()
    for key, names in (("downsample_type", down[:-1]), ("upsample_type", up[1:])):
        by_type = validate.choice(config, key, RESAMPLE, "conv")
        meaning = {plain: False, attention: by_type, residual: True}
        residual_blocks |= {meaning[name] for name in names}
    if len(residual_blocks) > 1:
        raise UserError("the blocks resample in different ways: that is not supported")
    return attends, residual_blocks == {True}


def equal(config: Mapping, key: str, levels: int, default: int) -> int:
    """One number, said once or for every level."""
    values = validate.a_level(config, key, levels, default)
    if len(set(values)) > 1:
        raise UserError(f"{key} = {values}: different levels are not supported")
    return values[0]


def plain_heads(config: Mapping, widths: list[int], attends: list[bool]) -> dict:
    """`attention_head_dim` of a UNet2DModel is a width; None makes one head."""
    if config.get("attention_head_dim", 8) is None:
        return dict(num_heads=1, head_channels=0)
    return dict(
        num_heads=0, head_channels=validate.integer(config, "attention_head_dim", 8)
    )


def spatial_heads(config: Mapping, widths: list[int], attends: list[bool]) -> dict:
    """`attention_head_dim` of a UNet2DConditionModel is a number of heads.

    One for all levels, or one a level; the last is also the middle's.
    """
    counts = validate.a_level(config, "attention_head_dim", len(widths), 8)
    used = [pair for *pair, on in zip(widths, counts, attends, strict=True) if on]
    used.append([widths[-1], counts[-1]])
    if len({count for _, count in used}) == 1:
        return dict(num_heads=used[0][1], head_channels=0)
    sizes = {width / count for width, count in used}
    if len(sizes) > 1:
        raise UserError(
            f"attention_head_dim = {counts} is neither one number of heads nor one "
            f"width of heads for {widths} channels"
        )
    return dict(num_heads=0, head_channels=int(sizes.pop()))


def to_unet(
    section: Mapping, *, in_channels: int, out_channels: int, sample_size: int
) -> dict:
    """config.json of config.unet. UserError for what diffusers has no place for."""
    if section["vector_width"]:
        raise UserError("config.unet.vector_width cannot be written for diffusers")
    kind = SPATIAL if section["context_width"] else PLAIN
    widths = [section["width"] * mult for mult in section["width_mults"]]
    depth = section["transformer_depth"]
    depths = list(depth) if isinstance(depth, list | tuple) else [depth] * len(widths)
    attends = [
        2**level in section["attn_factors"] and depths[level] > 0
        for level in range(len(widths))
    ]
    residual = section["res_resample"]

    def blocks(kinds: tuple[str, ...]) -> list[str]:
        return [kinds[1] if on else kinds[2 if residual else 0] for on in attends]

    if section["qk_norm"]:
        raise UserError("diffusers' UNets have no place for config.unet.qk_norm")
    if kind == SPATIAL and residual:
        raise UserError(
            "diffusers has no place for config.unet.res_resample together with "
            "cross-attention"
        )
    config = dict(
        _class_name=kind,
        act_fn="silu",
        block_out_channels=widths,
        center_input_sample=False,
        down_block_types=blocks(DOWN[kind]),
        downsample_padding=1,
        dropout=section["dropout"],
        flip_sin_to_cos=True,
        freq_shift=0,
        in_channels=in_channels,
        layers_per_block=section["num_res_blocks"],
        mid_block_scale_factor=1,
        mid_block_type=MID[kind],
        norm_eps=1e-5,
        norm_num_groups=section["num_groups"],
        out_channels=out_channels,
        resnet_time_scale_shift="scale_shift" if section["scale_shift"] else "default",
        sample_size=sample_size,
        up_block_types=blocks(UP[kind])[::-1],
    )
    if kind == SPATIAL:
        return config | _to_spatial(section, widths, depths)
    sample = "resnet" if residual else "conv"
    used = {width for width, on in zip(widths, attends, strict=True) if on}
    head = _head_width(section, used | {widths[-1]})
    return config | dict(
        attention_head_dim=head,
        attn_norm_num_groups=section["num_groups"],
        downsample_type=sample,
        upsample_type=sample,
    )


def _to_spatial(section: Mapping, widths: list[int], depths: list[int]) -> dict:
    """What a UNet2DConditionModel has besides."""
    if not depths[-1]:
        raise UserError("diffusers has no place for a middle without attention")
    unit, count = section["head_channels"], section["num_heads"]
    heads = [max(width // unit, 1) if unit else count for width in widths]
    return dict(
        attention_head_dim=heads,
        cross_attention_dim=section["context_width"],
        transformer_layers_per_block=[depth or 1 for depth in depths],
        use_linear_projection=bool(section["linear_projections"]),
    )


def _head_width(section: Mapping, widths: set[int]) -> int | None:
    """The width of heads of a UNet2DModel, the same at all widths; None: one head."""
    if section["head_channels"]:
        return section["head_channels"]
    if section["num_heads"] == 1:
        return None
    if len(widths) > 1:
        raise UserError(
            "diffusers' UNet2DModel has one width of heads, which "
            f"{section['num_heads']} heads of {sorted(widths)} channels do not have: "
            "config.unet.num_heads cannot be written"
        )
    return widths.pop() // section["num_heads"]


# Schedulers.
BETAS = dict(scaled_linear="linear", linear="sqrt_linear")
BETAS["squaredcos_cap_v2"] = "cosine"
PREDICTIONS = {"epsilon": "eps", "sample": "z0", "v_prediction": "v"}
# A sampler's settings as our default sampler has them, and as DDIM has them by default.
OURS = dict(clip_sample=False, thresholding=False, steps_offset=1)
OURS |= dict(set_alpha_to_one=False, timestep_spacing="leading")
THEIRS = dict(clip_sample=True, thresholding=False, steps_offset=0)
THEIRS |= dict(set_alpha_to_one=True, timestep_spacing="leading")


def process(config: Mapping) -> tuple[dict, list[str]]:
    """(config.process, notes) of a scheduler_config.json, whatever its sampler.

    The notes name settings of a DDIM scheduler that our sampler does not have.
    """
    kind = validate.text(config, "_class_name")
    flow = "Flow" in kind or validate.switch(config, "use_flow_sigmas")
    if flow or ("beta_schedule" not in config and "beta_start" not in config):
        raise UserError(f"the scheduler {kind} has no betas: it is not supported")
    validate.demand(config, {"trained_betas": (None,)}, "scheduler: ")
    section = dict(
        kind="discrete",
        num_timesteps=validate.integer(config, "num_train_timesteps", 1000),
        schedule=validate.choice(config, "beta_schedule", BETAS, "linear"),
        linear_start=validate.number(config, "beta_start", 1e-4),
        linear_end=validate.number(config, "beta_end", 2e-2),
        prediction=validate.choice(config, "prediction_type", PREDICTIONS, "epsilon"),
        zero_terminal_snr=validate.switch(config, "rescale_betas_zero_snr"),
    )
    if kind != "DDIMScheduler":
        return section, []
    theirs = {key: config.get(key, default) for key, default in THEIRS.items()}
    other = [f"{k} = {v!r}" for k, v in theirs.items() if v != OURS[k]]
    note = f"their DDIM samples with {', '.join(other)}; ours does not"
    return section, [note] if other else []


def to_scheduler(section: Mapping) -> dict:
    """DDIM with the time grid of our default sampler, wherever steps divide T.

    Theirs strides by T // steps, ours by T / steps, rounded down.
    """
    if section["kind"] != "discrete":
        raise UserError(
            f"diffusers' DDIM has no process of kind {section['kind']!r}: only "
            "discrete ones can be written"
        )
    schedules = {ours: theirs for theirs, ours in BETAS.items()}
    predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    if section["schedule"] not in schedules:
        raise UserError(f"diffusers has no schedule {section['schedule']!r}")
    return dict(
        _class_name="DDIMScheduler",
        beta_end=section["linear_end"],
        beta_schedule=schedules[section["schedule"]],
        beta_start=section["linear_start"],
        num_train_timesteps=section["num_timesteps"],
        prediction_type=predictions[section["prediction"]],
        rescale_betas_zero_snr=section["zero_terminal_snr"],
        trained_betas=None,
        **OURS,
    )


# Text encoders.
BERT_FIXED = {"activation_function": ("gelu",), "scale_embedding": (False,)}
CLIP_ACTIVATIONS = ("quick_gelu", "gelu")


def bert(config: Mapping) -> dict:
    """config.text of an LDMBertModel's config.json."""
    validate.demand(config, BERT_FIXED, "bert/config.json: ")
    width = validate.integer(config, "d_model", 1280)
    inner = validate.integer(config, "encoder_ffn_dim", 5120)
    if inner != 4 * width:
        raise UserError(f"encoder_ffn_dim = {inner} is not 4 x d_model = {4 * width}")
    return dict(
        kind="bert",
        width=width,
        depth=validate.integer(config, "encoder_layers", 32),
        num_heads=validate.integer(config, "encoder_attention_heads", 8),
        head_width=validate.integer(config, "head_dim", 64),
        max_length=validate.integer(config, "max_position_embeddings", 77),
        token_std=0.02,
        position_std=0.02,
        vocab_size=validate.integer(config, "vocab_size", 30_522),
    )


def to_bert(section: Mapping) -> dict:
    """config.json of config.text (an LDMBertModel)."""
    return dict(
        activation_function="gelu",
        architectures=["LDMBertModel"],
        d_model=section["width"],
        dropout=0.0,
        encoder_attention_heads=section["num_heads"],
        encoder_ffn_dim=4 * section["width"],
        encoder_layers=section["depth"],
        head_dim=section["head_width"],
        max_position_embeddings=section["max_length"],
        model_type="ldmbert",
        pad_token_id=0,
        scale_embedding=False,
        vocab_size=section["vocab_size"],
    )


def clip(config: Mapping) -> dict:
    """`ClipText`'s arguments of a CLIPTextModel's config.json."""
    validate.demand(config, {"layer_norm_eps": (1e-5,)}, "text_encoder/config.json: ")
    width = validate.integer(config, "hidden_size", 512)
    inner = validate.integer(config, "intermediate_size", 2048)
    if inner != 4 * width:
        raise UserError(
            f"intermediate_size = {inner} is not 4 x hidden_size = {4 * width}"
        )
    return dict(
        width=width,
        depth=validate.integer(config, "num_hidden_layers", 12),
        num_heads=validate.integer(config, "num_attention_heads", 8),
        activation=validate.choice(
            config, "hidden_act", CLIP_ACTIVATIONS, "quick_gelu"
        ),
        max_length=validate.integer(config, "max_position_embeddings", 77),
        vocab_size=validate.integer(config, "vocab_size", 49_408),
    )


def to_clip(network: ClipText) -> dict:
    """config.json of a tower; "penultimate" is the last layer of one layer less."""
    if network.projection or not network.output_norm:
        raise UserError("a tower with a projection cannot be written as CLIPTextModel")
    last = network.output_layer == "last"
    return dict(
        architectures=["CLIPTextModel"],
        bos_token_id=49_406,
        eos_token_id=49_407,
        hidden_act=network.activation,
        hidden_size=network.width,
        intermediate_size=4 * network.width,
        layer_norm_eps=1e-5,
        max_position_embeddings=network.max_length,
        model_type="clip_text_model",
        num_attention_heads=network.num_heads,
        num_hidden_layers=network.depth - (not last),
        pad_token_id=1,
        projection_dim=network.width,
        vocab_size=network.vocab_size,
    )
