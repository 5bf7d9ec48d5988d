"""The names that other programs give to our parameters: one function a network.

Owns the tables; `convert` owns what is done with them. Each function makes a name map
(`convert.Names`) of one network for one program:

    network      original           diffusers
    Autoencoder  autoencoder_names  diffusers_autoencoder_names: AutoencoderKL, VQModel
    UNet         unet_names         diffusers_unet_names: UNet2DModel, -ConditionModel

Text encoders are in `names_text`. `LOSS_PREFIXES` begin the entries of an
original first stage that are its training loss (discriminator, LPIPS, log-variance),
`EMA_PREFIXES` what LitEma holds besides weights.

Reading order: inputs that make the maps, the original program, diffusers.
"""

import jax
import jax.numpy as jnp

from lDM_jax.core.arrays import Cond
from lDM_jax.models.autoencoder import Autoencoder
from lDM_jax.models.unet import UNet
from lDM_jax.weights.name_maps import Names, Path, make_names, split_qkv


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _autoencoder_inputs(network: Autoencoder) -> tuple:
    return (_floats(1, network.factor, network.factor, network.image_channels),)


def _unet_inputs(unet: UNet, in_channels: int | None) -> tuple:
    side, width = 2**unet.halvings, unet.context_width
    context = None if width is None else _floats(1, 1, width)
    vector = _floats(1, unet.vector_width) if unet.vector_width else None
    z = _floats(1, side, side, in_channels or unet.out_channels)
    return z, _floats(1), Cond(context=context, vector=vector)


# Original program.
LOSS_PREFIXES = ("loss.discriminator.", "loss.perceptual_loss.", "loss.logvar")
EMA_PREFIXES = ("model_ema.decay", "model_ema.num_updates", "model_ema.loss")
RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "emb": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "shortcut": "skip_connection",
}
TIME_AND_OUT = {
    "time_0": "time_embed.0",
    "time_2": "time_embed.2",
    "vector_0": "label_emb.0.0",
    "vector_2": "label_emb.0.2",
    "out_norm": "out.0",
    "out_conv": "out.2",
}
GROUPS = {"input": "input_blocks", "middle": "middle_block", "output": "output_blocks"}


def autoencoder_names(network: Autoencoder) -> Names:
    """`AutoencoderKL` or `VQModel`; up.0 is the highest resolution, as it is here."""

    def translate(modules: Path) -> tuple[str, str]:
        place, *rest = modules
        if place == "quantizer":
            return "quantize.embedding", "same"
        if rest:
            block = rest[0]
            if block.startswith(("down_", "up_")):
                block = block.replace("_", ".")
            block = block.replace("mid_", "mid.", 1)
            block = ".".join([block, *rest[1:]])
            rest = [block.replace("shortcut", "nin_shortcut")]
        return ".".join([place, *rest]), "conv1"

    return make_names(network, _autoencoder_inputs(network), translate)


def unet_names(unet: UNet, in_channels: int | None = None) -> Names:
    """`UNetModel`, names below "model.diffusion_model.".

    in_channels: of z_t and Cond.concat together; None means `unet.out_channels`.
    """
    projection = "linear" if unet.linear_projections else "conv1"
    dense = {"shortcut": "conv1", "proj_in": projection, "qkv": "conv1d"}
    dense["proj_out"] = "conv1d" if unet.context_width is None else projection

    def translate(modules: Path) -> tuple[str, str]:
        place, *rest = modules
        layout = dense.get(modules[-1], "linear")
        if place in TIME_AND_OUT:
            return TIME_AND_OUT[place], layout
        group, *numbers = place.split("_")
        if rest == ["conv"] and group == "input":
            rest = ["op"]
        elif len(rest) == 1:
            rest = [RESIDUAL.get(rest[0], rest[0])]
        else:
            rest = _transformer_block(rest)
        return ".".join([GROUPS[group], *numbers, *rest]), layout

    return make_names(unet, _unet_inputs(unet, in_channels), translate)


def _transformer_block(modules: list[str]) -> list[str]:
    """Inside a spatial transformer's block; the same in both programs."""
    if not modules:
        return []
    inner = ".".join(modules[1:])
    inner = {"ff.proj": "ff.net.0.proj", "ff.out": "ff.net.2"}.get(inner, inner)
    inner = inner.replace("to_out", "to_out.0")
    return ["transformer_blocks", modules[0].removeprefix("block_"), inner]


# diffusers.
# What diffusers called the linear layers of attention until its release 0.15.
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value"}
OLD_ATTENTION["to_out.0"] = "proj_attn"


def diffusers_autoencoder_names(network: Autoencoder) -> Names:
    """`AutoencoderKL` or `VQModel`; up_blocks.0 is the lowest resolution."""
    last = len(network.width_mults) - 1
    inner_names = {
        "norm_out": "conv_norm_out",
        "mid_block_1": "mid_block.resnets.0",
        "mid_block_2": "mid_block.resnets.1",
        "mid_attn_1": "mid_block.attentions.0",
        "shortcut": "conv_shortcut",
        "norm": "group_norm",
        "q": "to_q",
        "k": "to_k",
        "v": "to_v",
        "proj_out": "to_out.0",
    }
    kinds = {"block": "resnets", "attn": "attentions"}
    samplers = {"downsample": "downsamplers.0", "upsample": "upsamplers.0"}

    def block_name(name: str) -> str:
        if not name.startswith(("down_", "up_")):
            return inner_names.get(name, name)
        way, level, kind, *number = name.split("_")
        level = int(level) if way == "down" else last - int(level)
        inner = f"{kinds[kind]}.{number[0]}" if number else samplers[kind]
        return f"{way}_blocks.{level}.{inner}"

    def translate(modules: Path) -> tuple[str, str]:
        if modules[0] == "quantizer":
            return "quantize.embedding", "same"
        outer = modules[-1] in ("shortcut", "quant_conv", "post_quant_conv")
        name = ".".join(block_name(module) for module in modules)
        return name, "conv1" if outer else "linear"

    return make_names(network, _autoencoder_inputs(network), translate)


def diffusers_unet_names(unet: UNet, in_channels: int | None = None) -> Names:
    """`UNet2DConditionModel` (with a context width), else `UNet2DModel`."""
    blocks = unet.num_res_blocks + 1
    spatial = unet.context_width is not None
    residual = {"emb": "time_emb_proj", "shortcut": "conv_shortcut"}
    attention = {"norm": "group_norm", "proj_out": "to_out.0"}
    whole = {
        "time_0": "time_embedding.linear_1",
        "time_2": "time_embedding.linear_2",
        "vector_0": "add_embedding.linear_1",
        "vector_2": "add_embedding.linear_2",
        "out_norm": "conv_norm_out",
        "out_conv": "conv_out",
        "input_0_0": "conv_in",
        "middle_0": "mid_block.resnets.0",
        "middle_1": "mid_block.attentions.0",
        "middle_2": "mid_block.resnets.1",
    }
    projection = "conv1" if spatial and not unet.linear_projections else "linear"
    dense = {"shortcut": "conv1", "proj_in": projection, "proj_out": projection}

    def place_name(place: str, rest: list[str]) -> str:
        if place in whole:
            return whole[place]
        way, index, part = place.split("_")
        level, block = divmod(int(index) - (way == "input"), blocks)
        base = f"{'down' if way == 'input' else 'up'}_blocks.{level}"
        if way == "input" and block == unet.num_res_blocks:
            return f"{base}.downsamplers.0"
        if part == "0":
            return f"{base}.resnets.{block}"
        attends = rest[0] in ("norm", "qkv", "proj_in", "proj_out") or len(rest) > 1
        return f"{base}.attentions.{block}" if attends else f"{base}.upsamplers.0"

    def translate(modules: Path) -> tuple[str, str]:
        place, *rest = modules
        outer = place_name(place, rest)
        if len(rest) > 1:
            rest = _transformer_block(rest)
        elif rest and not spatial and "attentions" in outer:
            rest = [attention.get(rest[0], rest[0])]
        else:
            rest = [residual.get(name, name) for name in rest]
        return ".".join([outer, *rest]), dense.get(modules[-1], "linear")

    names = make_names(unet, _unet_inputs(unet, in_channels), translate)
    return split_qkv(names, "to_{}", unet.heads)
