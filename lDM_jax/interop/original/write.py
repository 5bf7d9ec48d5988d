"""Our models -> checkpoints in the original program's names, with their YAML.

Owns the way back of `architectures_original` and `from_original`: the model section of
a YAML, and one state dict, which is also what programs around Stable Diffusion read.
The averaged weights are written as the network's own (use_ema false). What the original
program has no place for is a UserError.

Reading order: `export`, whole models, the YAML's tables.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lDM_jax.core.errors import UserError
from lDM_jax.from_config import networks
from lDM_jax.interop import names
from lDM_jax.interop.converted import Ours, open_model, open_parts
from lDM_jax.interop.first_stage_settings import ORIGINAL_GROUPS
from lDM_jax.interop.original import conditions
from lDM_jax.interop.original import read as from_original
from lDM_jax.interop.original import settings as original_settings
from lDM_jax.weights import name_maps
from lDM_jax.weights.name_maps import Lazy


class Exported(NamedTuple):
    """The YAML's model section, the state dict, and the report's lines."""

    model: dict
    tensors: dict[str, Lazy]
    report: list[str]


def export(model: str) -> Exported:
    """A first stage or a whole model of ours."""
    ours = open_model(model)
    stage = ours.config.get("stage")
    if stage == "autoencoder":
        target, params = first_stage(ours, interface=False)
        network = networks.autoencoder(ours.config.autoencoder)
        table = name_maps.prefixed(names.autoencoder_names(network), "", ("params",))
        tensors = name_maps.lazy_to_original(ours.arrays, table)
        found = dict(target=target, params=params)
        return Exported(found, tensors, [f"{target}, {len(tensors)} entries"])
    if stage != "diffusion":
        raise UserError(f"{model} is neither a first stage nor a whole model")
    return whole(ours)


def whole(ours: Ours) -> Exported:
    """A `LatentDiffusion` with its first stage and conditioner."""
    config = ours.config
    first, tower = open_parts(ours)
    codec = networks.abstract_codec(config)
    channels = codec.channels
    cond, where, extra = conditioner(config, channels, tower)
    scale = config.first_stage.scale or (
        first.config.get("latent_scale", 0.0) if first else 1.0
    )
    if isinstance(scale, list | tuple):
        raise UserError("the original program has one latent scale for all channels")
    unet_params = unet(config, channels + extra, channels)
    target, inner = original_settings.PIXELS, {}
    if first:
        target, inner = first_stage(first, interface=True)
    params = process(config.process.to_dict()) | dict(
        image_size=config.data.size_px // codec.factor,
        channels=channels,
        first_stage_key="image",
        cond_stage_key=KEYS.get(config.task, "image"),
        cond_stage_trainable=False,
        concat_mode=where == "concat",
        loss_type=config.loss.get("loss", "l2"),
        scale_factor=float(scale or 1.0),
        use_ema=False,
        unet_config=dict(target=original_settings.UNET, params=unet_params),
        first_stage_config=dict(target=target, params=inner),
        cond_stage_config=cond,
    )
    if where in ("crossattn", "adm"):
        params["conditioning_key"] = where
    stage = original_settings.second_stage(params)
    tensors = state_dict(ours, first, tower, stage)
    target = f"ldm.models.diffusion.ddpm.{from_original.SECOND_STAGES[0]}"
    report = [f"{target}, {len(tensors)} entries"]
    if config.task == "class" and config.get("null_class", True):
        report.append("the last class is the null class, which the YAML cannot say")
    return Exported(dict(target=target, params=params), tensors, report)


def state_dict(
    ours: Ours,
    first: Ours | None,
    tower: Ours | None,
    stage: original_settings.SecondStage,
) -> dict[str, Lazy]:
    """All entries, by the tables that reading uses; the schedule as its buffers."""
    arrays = {("", *path): lazy for path, lazy in ours.arrays.items()}
    for folder, part in (("first_stage", first), ("text", tower)):
        if part is not None:
            arrays |= {(folder, *path): lazy for path, lazy in part.arrays.items()}
    unet = name_maps.prefixed(
        from_original.unet_table(stage), from_original.UNET_PREFIX
    )
    table = unet | from_original.first_stage_table(stage)
    table |= from_original.CONDITIONERS[stage.route](stage)
    buffers = {
        name: Lazy(value.shape, lambda value=value: value.astype(np.float32))
        for name, value in from_original.schedule(stage.config["process"]).items()
    }
    return buffers | name_maps.lazy_to_original(arrays, table)


# Tables of the YAML.
KEYS = {
    "class": "class_label",
    "text": "caption",
    "layout": "coordinates_bbox",
    "semantic": "segmentation",
    "super_resolution": "LR_image",
    "inpaint": "masked_image",
}


def demand_groups(section: Mapping) -> None:
    """UserError unless the norms are those of the original."""
    if section["num_groups"] != ORIGINAL_GROUPS:
        raise UserError(
            f"the original program's norms have {ORIGINAL_GROUPS} groups, this "
            f"network's {section['num_groups']}: it cannot be written"
        )


def first_stage(ours: Ours, *, interface: bool) -> tuple[str, dict]:
    """(target, params) of a first stage; interface: as a part of a LatentDiffusion."""
    section = ours.config.autoencoder
    demand_groups(section)
    if section.attn_factors and not section.mid_attn:
        raise UserError("the original program attends in the middle or nowhere")
    is_kl = not section.num_codes
    size_px = ours.config.get("data", {}).get("size_px", 256)
    ddconfig = dict(
        double_z=is_kl,
        z_channels=section.z_channels,
        resolution=size_px,
        in_channels=3,
        out_ch=3,
        ch=section.width,
        ch_mult=list(section.width_mults),
        num_res_blocks=section.num_res_blocks,
        attn_resolutions=[size_px // factor for factor in section.attn_factors],
        dropout=section.dropout,
    )
    if not section.mid_attn:
        ddconfig["attn_type"] = "none"
    params: dict[str, Any] = dict(embed_dim=section.latent_channels, ddconfig=ddconfig)
    params["lossconfig"] = dict(target=conditions.IDENTITY)
    if is_kl:
        return "ldm.models.autoencoder.AutoencoderKL", params
    params["n_embed"] = section.num_codes
    kind = "VQModelInterface" if interface else "VQModel"
    return f"ldm.models.autoencoder.{kind}", params


def unet(config, in_channels: int, out_channels: int) -> dict:
    """params of a UNetModel."""
    section = config.unet
    demand_groups(section)
    depth = section.get("transformer_depth", 1)
    if section.get("qk_norm", False):
        raise UserError("the original program has no place for config.unet.qk_norm")
    if not isinstance(depth, int) or section.get("vector_width", 0):
        raise UserError(
            "the original program has one transformer_depth and no vector_width: the "
            "UNet cannot be written"
        )
    params = dict(
        image_size=config.data.size_px,
        in_channels=in_channels,
        out_channels=out_channels,
        model_channels=section.width,
        attention_resolutions=list(section.attn_factors),
        num_res_blocks=section.num_res_blocks,
        channel_mult=list(section.width_mults),
        dropout=section.dropout,
        use_scale_shift_norm=section.scale_shift,
        resblock_updown=section.res_resample,
        use_checkpoint=section.remat,
        legacy=False,
    )
    heads = "num_heads" if section.num_heads else "num_head_channels"
    params[heads] = section.num_heads or section.head_channels
    if section.context_width:
        params |= dict(
            use_spatial_transformer=True,
            transformer_depth=depth,
            context_dim=section.context_width,
        )
    if section.get("linear_projections", False):
        params["use_linear_in_transformer"] = True
    if config.task == "class" and not section.context_width:
        params["num_classes"] = config.num_classes + config.get("null_class", True)
    return params


def conditioner(config, channels: int, tower: Ours | None):
    """(cond_stage_config, where it goes, channels that it adds)."""
    width = config.unet.context_width
    if config.task == "unconditional":
        return "__is_unconditional__", None, 0
    if config.task == "inpaint":
        return "__is_first_stage__", "concat", channels + 1
    if config.task == "super_resolution":
        return dict(target=conditions.IDENTITY), "concat", 3
    if config.task == "retrieval" or (config.task == "class" and not width):
        where = "crossattn" if width else "adm"
        return dict(target=conditions.IDENTITY), where, 0
    if config.task == "semantic":
        stages, mapped = config.rescaler.num_stages, config.rescaler.width
        params = dict(n_stages=stages, in_channels=config.num_classes)
        return encoder("SpatialRescaler", params, out_channels=mapped), "concat", mapped
    if config.task == "class":
        rows = config.num_classes + config.get("null_class", True)
        params = dict(n_classes=rows, embed_dim=width)
        return encoder("ClassEmbedder", params, key="class_label"), "crossattn", 0
    if tower is not None:
        return frozen(tower), "crossattn", 0
    text = config.text
    if (text.num_heads, text.head_width) != (8, 64):
        raise UserError(
            "the original program's text transformer has 8 heads of 64, this one "
            f"{text.num_heads} of {text.head_width}: it cannot be written"
        )
    params = dict(n_embed=text.width, n_layer=text.depth, max_seq_len=text.max_length)
    params["vocab_size"] = text.get("vocab_size", 30_522)
    if config.task == "layout":
        if config.get("layout", {}).get("within_boxes"):
            raise UserError("the original program has no place for layout.within_boxes")
        params["use_tokenizer"] = False
    return encoder("BERTEmbedder", params), "crossattn", 0


def encoder(name: str, params: dict, **more: Any) -> dict:
    """The table of a conditioner."""
    return dict(target=conditions.ENCODERS + name, params=params | more)


def frozen(tower: Ours) -> dict:
    """The tower of Stable Diffusion 1.x or 2.x. UserError for any other."""
    network = tower.config.text.network.to_dict()
    last = network.get("output_layer", "last") == "last"
    width, depth, heads = (network[key] for key in ("width", "depth", "num_heads"))
    length = network.get("max_length", 77)
    known = conditions.CLIP_VERSIONS
    for version, sizes in known.items():
        fits = sizes == dict(width=width, depth=depth, heads=heads) and last
        if fits and network.get("activation", "quick_gelu") == "quick_gelu":
            params = dict(version=version, max_length=length)
            return encoder("FrozenCLIPEmbedder", params)
    for arch, sizes in conditions.OPENCLIP_VERSIONS.items():
        # "last" of a tower that lacks the last block is "penultimate" of the whole.
        fits = sizes == dict(width=width, depth=depth + last, heads=heads)
        whole = last and sizes == dict(width=width, depth=depth, heads=heads)
        if (fits or whole) and network.get("activation") == "gelu":
            layer = "last" if whole else "penultimate"
            params = dict(arch=arch, max_length=length, layer=layer)
            return encoder("FrozenOpenCLIPEmbedder", params)
    raise UserError(
        f"the original program knows no text tower of width {width}, depth {depth} and "
        f"{heads} heads: it cannot be written"
    )


def process(section: Mapping) -> dict:
    """The parameters of the schedule."""
    if section["kind"] != "discrete" or section.get("zero_terminal_snr", False):
        raise UserError(
            "the original program has discrete processes only, and none that ends at "
            "zero signal: the model cannot be written"
        )
    predictions = {
        ours: theirs for theirs, ours in original_settings.PREDICTIONS.items()
    }
    return dict(
        timesteps=section["num_timesteps"],
        beta_schedule=section["schedule"],
        linear_start=section["linear_start"],
        linear_end=section["linear_end"],
        parameterization=predictions[section["prediction"]],
    )
