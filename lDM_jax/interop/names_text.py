"""The names that other programs give to the parameters of text encoders.

Owns the tables of text encoders as `names` owns those of the other networks:

    network          original        Hugging Face
    TextTransformer  text_names      diffusers_text_names: LDMBertModel
    ClipText         openclip_names  clip_names: CLIPTextModel, -WithProjection

Where the maps begin in a checkpoint of Stable Diffusion, for `convert.prefixed`:
`SD1_PREFIX` (1.x, `clip_names`) and `SD2_PREFIX` (2.x, `openclip_names`).

Reading order: inputs that make the maps, the paper's encoder, CLIP.
"""

import jax
import jax.numpy as jnp

from lDM_jax.models.bert_text import TextTransformer
from lDM_jax.models.clip_text import ClipText
from lDM_jax.weights.name_maps import (
    Entry,
    Names,
    Path,
    Translate,
    make_names,
    split_qkv,
)

SD1_PREFIX = "cond_stage_model.transformer."
SD2_PREFIX = "cond_stage_model.model."


def _text_inputs(network: TextTransformer | ClipText) -> tuple:
    return (jax.ShapeDtypeStruct((1, network.max_length), jnp.int32),)


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


# CLIP.
def clip_names(network: ClipText, prefix: str = "text_model.") -> Names:
    """transformers' `CLIPTextModel` and `CLIPTextModelWithProjection`.

    prefix: "" for a `CLIPTextModel` that transformers 5 wrote; all other files have
        "text_model.". The projection stands outside of it.
    What `network` does not evaluate may be absent, and the buffer of position numbers:
    Stable Diffusion 2's file of 23 blocks fits a "penultimate" network of 24.
    """
    whole = {
        "tokens": f"{prefix}embeddings.token_embedding",
        "positions": f"{prefix}embeddings.position_embedding",
        "norm": f"{prefix}final_layer_norm",
        "projection": "text_projection",
    }
    inner = dict(norm1="layer_norm1", qkv="self_attn.qkv", norm2="layer_norm2")
    inner |= dict(attn_out="self_attn.out_proj", ff_in="mlp.fc1", ff_out="mlp.fc2")

    def translate(modules: Path) -> tuple[str, str]:
        place, *rest = modules
        if place in whole:
            return whole[place], "linear"
        number = place.removeprefix("block_")
        return f"{prefix}encoder.layers.{number}.{inner[rest[0]]}", "linear"

    names = split_qkv(_tower_names(network, translate), "{}_proj", lambda width: 1)
    numbers = Entry(None, "same", (1, network.max_length))
    return names | {f"{prefix}embeddings.position_ids": numbers}


def openclip_names(network: ClipText) -> Names:
    """OpenCLIP's text tower, as `CLIP` without its `visual.` holds it.

    What `network` does not evaluate may be absent: the last block if "penultimate",
    text_projection, logit_scale, and the buffer attn_mask of early releases.
    """
    whole = dict(tokens="token_embedding", norm="ln_final")
    loose = dict(positions="positional_embedding", projection="text_projection")
    whole |= loose
    inner = dict(norm1="ln_1", qkv="attn.in_proj", attn_out="attn.out_proj")
    inner |= dict(norm2="ln_2", ff_in="mlp.c_fc", ff_out="mlp.c_proj")
    # Parameters that are no module's, and so have no ".weight".
    bare = {f"{name}.weight": name for name in loose.values()}

    def translate(modules: Path) -> tuple[str, str]:
        place, *rest = modules
        if place in whole:
            return whole[place], "same"
        number = place.removeprefix("block_")
        return f"transformer.resblocks.{number}.{inner[rest[0]]}", "linear"

    names = {
        bare.get(name, name.replace(".in_proj.", ".in_proj_")): entry
        for name, entry in _tower_names(network, translate).items()
    }
    mask = Entry(None, "same", (network.max_length, network.max_length))
    return names | {"logit_scale": Entry(None, "same", ()), "attn_mask": mask}


def _tower_names(network: ClipText, translate: Translate) -> Names:
    """The map of the whole tower, in which only `network`'s parameters have a use.

    A projection that `network` does not have is taken to be as wide as the tower.
    """
    width = network.projection or network.width
    whole = network.clone(output_layer="last", output_norm=True, projection=width)
    inputs = _text_inputs(network)
    used = {entry.path for entry in make_names(network, inputs, translate).values()}
    return {
        name: entry if entry.path in used else entry._replace(path=None)
        for name, entry in make_names(whole, inputs, translate).items()
    }
