"""Weights of other programs <-> our parameter trees, by exact cover.

Owns the names and axis orders of the original latent-diffusion program and of
diffusers. Reads no file and needs no torch: a state dict is `dict[str, np.ndarray]`.

A *name map* (`Names`) says for every entry of a foreign state dict which parameter it
is, how its axes are ordered and what shape it has. It is made from our own parameters
(shapes only, nothing is allocated): the tables below translate each parameter's path. A
map thus misses no parameter, and `from_original` refuses what it does not cover.

    network      original           diffusers
    Autoencoder  autoencoder_names  diffusers_autoencoder_names: AutoencoderKL, VQModel
    UNet         unet_names         diffusers_unet_names: UNet2DModel, -ConditionModel
    text         text_names         diffusers_text_names: LDMBertModel

`prefixed` places a map inside a larger checkpoint; `ema_names` gives LitEma's names.

Layouts, foreign <- ours (O outputs, I inputs, H W kernel extent):

    same    as it is            conv   OIHW <- HWIO
    linear  OI <- IO            conv1  OI11 <- IO           conv1d  OI1 <- IO

Reading order: layouts, entries, conversion, the maker of maps, original, diffusers.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from lDM_jax.arrays import Cond, UserError
from lDM_jax.models.autoencoder import Autoencoder
from lDM_jax.models.text import TextTransformer
from lDM_jax.models.unet import UNet

Path = tuple[str, ...]
StateDict = Mapping[str, np.ndarray]


class Part(NamedTuple):
    """Block `index` of a parameter whose outputs are ordered heads x [0 | 1 | ..]."""

    index: int
    count: int
    heads: int


class Entry(NamedTuple):
    """Where a foreign entry of `shape` goes: our path under "params", and its layout.

    path None: the entry has no use here and may be absent. `ours` is the shape of
    the parameter; with `part` the entry is one block of it.
    """

    path: Path | None
    layout: str
    shape: tuple[int, ...]
    ours: tuple[int, ...] = ()
    part: Part | None = None


Names = dict[str, Entry]


def to_layout(array: np.ndarray, layout: str) -> np.ndarray:
    """Our axis order -> the foreign one."""
    if layout == "conv":
        return array.transpose(3, 2, 0, 1)
    if layout == "same":
        return array
    ones = {"linear": 0, "conv1d": 1, "conv1": 2}[layout]
    return array.T.reshape(array.T.shape + (1,) * ones)


def from_layout(array: np.ndarray, layout: str) -> np.ndarray:
    """The foreign axis order -> ours; the inverse of `to_layout`."""
    if layout == "conv":
        return array.transpose(2, 3, 1, 0)
    return array if layout == "same" else array.reshape(array.shape[:2]).T


def take_part(array: np.ndarray, part: Part) -> np.ndarray:
    """One block "... heads*width" of a parameter "... heads*count*width"."""
    split = array.reshape(*array.shape[:-1], part.heads, part.count, -1)
    return split[..., part.index, :].reshape(*array.shape[:-1], -1)


def join_parts(blocks: list[np.ndarray], heads: int) -> np.ndarray:
    """Blocks "... heads*width" in order -> the parameter "... heads*count*width"."""
    split = [block.reshape(*block.shape[:-1], heads, -1) for block in blocks]
    return np.stack(split, axis=-2).reshape(*blocks[0].shape[:-1], -1)


def from_original(state_dict: StateDict, names: Names) -> dict:
    """A foreign state dict -> variables {"params": ...}, f32 numpy.

    Every entry is used once and every parameter filled once. Otherwise UserError with
    three lists of entries: missing, unexpected, mismatched (in shape).
    """
    wanted = {name for name, entry in names.items() if entry.path is not None}
    shapes = {name: np.shape(array) for name, array in state_dict.items()}
    mismatched = [
        f"{name} {shapes[name]} instead of {entry.shape}"
        for name, entry in names.items()
        if shapes.get(name, entry.shape) != entry.shape
    ]
    _report(wanted - state_dict.keys(), state_dict.keys() - names.keys(), mismatched)
    params, blocks = {}, {}
    for name in names.keys() & wanted:
        entry = names[name]
        array = from_layout(np.asarray(state_dict[name], np.float32), entry.layout)
        if entry.part is None:
            params[entry.path] = array
        else:
            blocks.setdefault(entry.path, {})[entry.part] = array
    for path, parts in blocks.items():
        order = sorted(parts)
        params[path] = join_parts([parts[part] for part in order], order[0].heads)
    return {"params": unflatten_dict(params)}


def to_original(variables: Mapping, names: Names) -> dict[str, np.ndarray]:
    """Variables {"params": ...} -> the foreign state dict, without entries of no use.

    UserError with the three lists when these are not exactly the map's parameters.
    """
    params = flatten_dict(variables["params"])
    wanted = {entry.path for entry in names.values() if entry.path is not None}
    state_dict, mismatched = {}, []
    for name, entry in names.items():
        if entry.path not in params:
            continue
        array = np.asarray(params[entry.path])
        if array.shape != entry.ours:
            mismatched.append(f"{name} from {array.shape} instead of {entry.ours}")
            continue
        array = array if entry.part is None else take_part(array, entry.part)
        state_dict[name] = np.ascontiguousarray(to_layout(array, entry.layout))
    missing = map("/".join, wanted - params.keys())
    _report(missing, map("/".join, params.keys() - wanted), mismatched)
    return state_dict


def _report(missing, unexpected, mismatched) -> None:
    """Raise UserError with the three lists unless all are empty."""

    def show(items) -> str:
        items = sorted(items)
        shown = ", ".join(items[:8]) or "none"
        return shown + (f" and {len(items) - 8} more" if len(items) > 8 else "")

    missing, unexpected = list(missing), list(unexpected)
    if missing or unexpected or mismatched:
        raise UserError(
            f"weights do not fit the network: missing {show(missing)}; "
            f"unexpected {show(unexpected)}; mismatched {show(mismatched)}"
        )


def prefixed(names: Names, prefix: str, root: Path = ()) -> Names:
    """The same map where entries begin with `prefix` and our paths with `root`."""
    return {
        prefix + name: entry._replace(path=entry.path and root + entry.path)
        for name, entry in names.items()
    }


def ema_names(names: Names) -> Names:
    """LitEma's buffers of a UNet's map: "diffusion_model.<name>" without its dots."""
    return {
        "model_ema." + f"diffusion_model.{name}".replace(".", ""): entry
        for name, entry in names.items()
    }


# The maker of maps: our module path -> (foreign module, layout of its dense kernel).
Translate = Callable[[Path], tuple[str, str]]
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


def make_names(network: nn.Module, inputs: tuple, translate: Translate) -> Names:
    """The map of all parameters that `network.init(key, *inputs)` would make.

    A parameter held by a network itself (positions, codebook) counts as a module with a
    weight. The norm inside our `GroupNorm` and `LayerNorm` is no level of its own.
    """
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
    names: Names = {}
    for path, leaf in flatten_dict(shapes).items():
        modules, kind = path[:-1], path[-1]
        if kind not in LEAVES:
            modules = path
        elif modules[-1] == "norm":
            modules = modules[:-1]
        module, layout = translate(modules)
        if kind != "kernel":
            layout = "same"
        elif len(leaf.shape) == 4:
            layout = "conv"
        # A broadcast scalar: the axes move, no memory is used.
        shape = to_layout(np.broadcast_to(np.False_, leaf.shape), layout).shape
        name = f"{module}.{LEAVES.get(kind, 'weight')}"
        names[name] = Entry(path, layout, shape, leaf.shape)
    return names


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _autoencoder_inputs(network: Autoencoder) -> tuple:
    return (_floats(1, network.factor, network.factor, network.image_channels),)


def _unet_inputs(unet: UNet, in_channels: int | None) -> tuple:
    side, width = 2**unet.halvings, unet.context_width
    context = None if width is None else _floats(1, 1, width)
    z = _floats(1, side, side, in_channels or unet.out_channels)
    return z, _floats(1), Cond(context=context)


def _text_inputs(transformer: TextTransformer) -> tuple:
    return (jax.ShapeDtypeStruct((1, transformer.max_length), jnp.int32),)


# Original program.
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
    dense = {"shortcut": "conv1", "proj_in": "conv1", "qkv": "conv1d"}
    dense["proj_out"] = "conv1d" if unet.context_width is None else "conv1"

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


def text_names(transformer: TextTransformer) -> Names:
    """`BERTEmbedder`, names below "cond_stage_model."; `to_logits` has no use here."""
    prefix, layers = "transformer.", "transformer.attn_layers.layers."
    whole = {"tokens": "token_emb", "positions": "pos_emb.emb", "norm": "norm"}

    def translate(modules: Path) -> tuple[str, str]:
        place, *rest = modules
        if place in whole:
            return prefix + whole[place], "same"
        kind, _, number = place.rpartition("_")
        layer = 2 * int(number) + kind.startswith("ff")
        kinds = {"attn_norm": "0", "attn": "1", "ff_norm": "0"}
        kinds |= {"ff_in": "1.net.0.0", "ff_out": "1.net.2"}
        return ".".join([f"{layers}{layer}", kinds[kind], *rest]), "linear"

    names = make_names(transformer, _text_inputs(transformer), translate)
    return names | _unused_logits(transformer, prefix)


def _unused_logits(transformer: TextTransformer, prefix: str) -> Names:
    """The word predictor that both programs store and never evaluate."""
    weight = Entry(None, "linear", (transformer.vocab_size, transformer.width))
    bias = Entry(None, "same", weight.shape[:1])
    return {f"{prefix}to_logits.weight": weight, f"{prefix}to_logits.bias": bias}


# diffusers.
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
        "out_norm": "conv_norm_out",
        "out_conv": "conv_out",
        "input_0_0": "conv_in",
        "middle_0": "mid_block.resnets.0",
        "middle_1": "mid_block.attentions.0",
        "middle_2": "mid_block.resnets.1",
    }
    projection = "conv1" if spatial else "linear"
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
    return _split_qkv(names, unet)


def _split_qkv(names: Names, unet: UNet) -> Names:
    """Replace each `qkv` by diffusers' to_q, to_k, to_v."""
    split: Names = {}
    for name, entry in names.items():
        before, found, after = name.partition(".qkv.")
        if not found:
            split[name] = entry
            continue
        width = entry.shape[0] // 3
        for index, letter in enumerate("qkv"):
            split[f"{before}.to_{letter}.{after}"] = entry._replace(
                shape=(width, *entry.shape[1:]), part=Part(index, 3, unet.heads(width))
            )
    return split


def diffusers_text_names(transformer: TextTransformer) -> Names:
    """`LDMBertModel`; `to_logits` has no use here."""
    whole = {"tokens": "embed_tokens", "positions": "embed_positions"}
    whole["norm"] = "layer_norm"

    def translate(modules: Path) -> tuple[str, str]:
        place, *rest = modules
        if place in whole:
            return "model." + whole[place], "same"
        kind, _, number = place.rpartition("_")
        inner = {
            "attn_norm": "self_attn_layer_norm",
            "attn": f"self_attn.{''.join(rest).removeprefix('to_')}_proj",
            "ff_norm": "final_layer_norm",
            "ff_in": "fc1",
            "ff_out": "fc2",
        }[kind]
        return f"model.layers.{number}.{inner}", "linear"

    names = make_names(transformer, _text_inputs(transformer), translate)
    return names | _unused_logits(transformer, "")
