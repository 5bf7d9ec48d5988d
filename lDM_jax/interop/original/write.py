"""Our models -> checkpoints in the original program's names, with their YAML.

Owns the way back of `original.settings` and `original.read`: the model section of
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
from lDM_jax.from_config.task_settings import task_of, task_settings
from lDM_jax.interop import names
from lDM_jax.interop.converted import Ours, open_model, open_parts
from lDM_jax.interop.first_stage_settings import ORIGINAL_GROUPS
from lDM_jax.interop.original import conditions
from lDM_jax.interop.original import read as from_original
from lDM_jax.interop.original import settings as original_settings
from lDM_jax.interop.original.settings import SecondStage
from lDM_jax.models.clip_text import ClipText
from lDM_jax.tasks.task import Original
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
        section = dict(target=target, params=params)
        return Exported(section, tensors, [f"{target}, {len(tensors)} entries"])
    if stage != "diffusion":
        raise UserError(f"{model} is neither a first stage nor a whole model")
    return whole(ours)


def whole(ours: Ours) -> Exported:
    """A `LatentDiffusion` with its first stage and conditioner."""
    config = ours.config
    first, tower, scale = open_parts(ours)
    codec = networks.abstract_codec(config)
    channels = codec.channels
    cond = task_of(config).original(task_settings(config), channels)
    if isinstance(scale, list | tuple):
        raise UserError("the original program has one latent scale for all channels")
    unet_params = unet(config, channels + cond.channels, channels)
    if cond.num_classes:
        unet_params["num_classes"] = cond.num_classes
    target, inner = original_settings.PIXELS, {}
    if first:
        target, inner = first_stage(first, interface=True)
    params = process(config.process.to_dict()) | dict(
        image_size=config.data.size_px // codec.factor,
        channels=channels,
        first_stage_key="image",
        cond_stage_key=cond.key,
        cond_stage_trainable=False,
        concat_mode=cond.where == "concat",
        loss_type=config.loss.loss,
        scale_factor=float(scale or 1.0),
        use_ema=False,
        unet_config=dict(target=original_settings.UNET, params=unet_params),
        first_stage_config=dict(target=target, params=inner),
        cond_stage_config=conditioner(cond, tower),
    )
    if cond.where in ("crossattn", "adm"):
        params["conditioning_key"] = cond.where
    stage = original_settings.second_stage(params)
    tensors = state_dict(ours, first, tower, stage)
    target = f"ldm.models.diffusion.ddpm.{from_original.SECOND_STAGES[0]}"
    report = [f"{target}, {len(tensors)} entries", *filter(None, [cond.note])]
    return Exported(dict(target=target, params=params), tensors, report)


def state_dict(
    ours: Ours, first: Ours | None, tower: Ours | None, stage: SecondStage
) -> dict[str, Lazy]:
    """All entries, by the tables that reading uses; the schedule as its buffers."""
    arrays = {("", *path): lazy for path, lazy in ours.arrays.items()}
    for folder, part in (("first_stage", first), ("text", tower)):
        if part is not None:
            arrays |= {(folder, *path): lazy for path, lazy in part.arrays.items()}
    unet = from_original.unet_table(stage)
    table = name_maps.prefixed(unet, from_original.UNET_PREFIX)
    table |= from_original.first_stage_table(stage)
    table |= from_original.CONDITIONERS[stage.route](stage)
    buffers = {
        name: Lazy(value.shape, lambda value=value: value.astype(np.float32))
        for name, value in from_original.schedule(stage.config["process"]).items()
    }
    return buffers | name_maps.lazy_to_original(arrays, table)


# Tables of the YAML.
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
    size_px = ours.config.data.size_px
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
    depth = section.transformer_depth
    if section.qk_norm:
        raise UserError("the original program has no place for config.unet.qk_norm")
    if not isinstance(depth, int) or section.vector_width:
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
        params |= dict(use_spatial_transformer=True, transformer_depth=depth)
        params["context_dim"] = section.context_width
    if section.linear_projections:
        params["use_linear_in_transformer"] = True
    return params


def conditioner(cond: Original, tower: Ours | None) -> str | dict:
    """cond_stage_config."""
    if tower is not None:
        return frozen(tower)
    if cond.target.startswith("__"):
        return cond.target
    own = "." in cond.target
    return dict(target=cond.target) if own else encoder(cond.target, cond.params)


def encoder(name: str, params: Mapping) -> dict:
    """The table of a conditioner."""
    return dict(target=conditions.ENCODERS + name, params=dict(params))


def frozen(tower: Ours) -> dict:
    """The tower of Stable Diffusion 1.x or 2.x. UserError for any other."""
    section = tower.config.text.network.to_dict()
    network = networks.construct(ClipText, section, "text.network")
    last, length = network.output_layer == "last", network.max_length
    own = {key: getattr(network, key) for key in ("width", "depth", "num_heads")}
    for version, sizes in conditions.CLIP_VERSIONS.items():
        if sizes == own and last and network.activation == "quick_gelu":
            params = dict(version=version, max_length=length)
            return encoder("FrozenCLIPEmbedder", params)
    for arch, sizes in conditions.OPENCLIP_VERSIONS.items():
        # "last" of a tower that lacks the last block is "penultimate" of the whole.
        fits, whole = (
            sizes == own | {"depth": network.depth + last},
            last and sizes == own,
        )
        if (fits or whole) and network.activation == "gelu":
            layer = "last" if whole else "penultimate"
            params = dict(arch=arch, max_length=length, layer=layer)
            return encoder("FrozenOpenCLIPEmbedder", params)
    raise UserError(
        f"the original program knows no text tower of width {network.width}, depth "
        f"{network.depth} and {network.num_heads} heads: it cannot be written"
    )


def process(section: Mapping) -> dict:
    """The parameters of the schedule."""
    if section["kind"] != "discrete" or section["zero_terminal_snr"]:
        raise UserError(
            "the original program has discrete processes only, and none that ends at "
            "zero signal: the model cannot be written"
        )
    known = original_settings.PREDICTIONS.items()
    predictions = {ours: theirs for theirs, ours in known}
    return dict(
        timesteps=section["num_timesteps"],
        beta_schedule=section["schedule"],
        linear_start=section["linear_start"],
        linear_end=section["linear_end"],
        parameterization=predictions[section["prediction"]],
    )
