"""Our models -> directories that diffusers' from_pretrained reads.

Owns what a pipeline's directory holds. Files are made as a table, {path inside the
directory: text or arrays}, and written one array at a time. A model that no pipeline of
diffusers fits is written as its components, and the report says so.

    task              pipeline
    unconditional     LDMPipeline
    super_resolution  LDMSuperResolutionPipeline (latent scale 1)
    text, BERT        LDMTextToImagePipeline (77 tokens, f = 8); else, with a KL first
                      stage, StableDiffusionPipeline around the same text encoder
    text, CLIP        StableDiffusionPipeline
    others            components; `conditioner` holds theirs under our names

Reading order: `export`, first stage, pipelines, text, `write`.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from lDM_jax.core.errors import UserError
from lDM_jax.data.tokenizers import BERT_VOCAB, END, START, clip_vocabulary
from lDM_jax.from_config import networks
from lDM_jax.from_config.task_settings import task_of, task_settings
from lDM_jax.interop import first_stage_settings, names, names_text
from lDM_jax.interop.converted import Ours, open_model, open_parts, write_whole
from lDM_jax.interop.diffusers import settings as diffusers_settings
from lDM_jax.interop.original.read import COND_ROOT, UNET_ROOT
from lDM_jax.models.bert_text import TextTransformer
from lDM_jax.models.clip_text import ClipText
from lDM_jax.tasks.task import Settings
from lDM_jax.weights import directory as weights_directory
from lDM_jax.weights import name_maps
from lDM_jax.weights.name_maps import Lazy

Files = dict[str, str | Mapping[str, Lazy]]
MODEL, TEXT = "diffusion_pytorch_model.safetensors", "model.safetensors"
VERSION = "0.30.0"  # of diffusers, whose forms these are
LDM_TEXT_TOKENS, LDM_TEXT_FACTOR = 77, 8  # fixed in LDMTextToImagePipeline


def export(model: str) -> tuple[Files, list[str]]:
    """(files, report) of a first stage, a text tower or a whole model of ours."""
    ours = open_model(model)
    stage = ours.config.get("stage")
    if stage == "autoencoder":
        return first_stage_files(ours, networks.stored_scale(ours.config))
    if stage == "text":
        files = tower_files(ours)
        return files, [f"CLIPTextModel, {len(files[TEXT])} entries"]
    return pipeline_files(ours)


def as_json(values: Mapping) -> str:
    """The text of a settings file."""
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def first_stage_files(ours: Ours, scale) -> tuple[Files, list[str]]:
    """AutoencoderKL or VQModel."""
    if isinstance(scale, list | tuple):
        raise UserError("diffusers has no place for a latent scale of every channel")
    section = ours.config.autoencoder.to_dict()
    plain = first_stage_settings.to_diffusers_first_stage(
        section, scale=scale, size_px=ours.config.data.size_px
    )
    table = names.diffusers_autoencoder_names(networks.autoencoder(section))
    rooted = name_maps.prefixed(table, "", ("params",))
    arrays = name_maps.lazy_to_original(ours.arrays, rooted)
    report = [f"{plain['_class_name']}, {len(arrays)} entries"]
    if not scale:
        report.append("the latent scale is not known here: scaling_factor is set to 1")
    return {"config.json": as_json(plain), MODEL: arrays}, report


def tower_files(ours: Ours) -> Files:
    """CLIPTextModel."""
    section = ours.config.text.network.to_dict()
    network = networks.construct(ClipText, section, "text.network")
    config = diffusers_settings.to_clip(network)
    rooted = name_maps.prefixed(names_text.clip_names(network), "", ("params",))
    arrays = name_maps.lazy_to_original(ours.arrays, rooted)
    return {"config.json": as_json(config), TEXT: arrays}


def under(folder: str, files: Files) -> Files:
    """The same files inside a directory."""
    return {f"{folder}/{name}": content for name, content in files.items()}


def pipeline_files(ours: Ours) -> tuple[Files, list[str]]:
    """Every component of a second stage, and the pipeline's index where one fits."""
    config = ours.config
    first, tower, scale = open_parts(ours)
    scheduler = diffusers_settings.to_scheduler(config.process.to_dict())
    codec = networks.abstract_codec(config)
    unet, entries, conditioner = unet_files(config, ours.arrays, codec)
    files = {"scheduler/scheduler_config.json": as_json(scheduler)}
    files |= under("unet", unet)
    kind, folder, note = choose_pipeline(config, codec, scale or 1.0)
    report = [f"unet: {entries} entries", note]
    index = {"scheduler": ["diffusers", "DDIMScheduler"]}
    index["unet"] = ["diffusers", json.loads(unet["config.json"])["_class_name"]]
    if first:
        inner, lines = first_stage_files(first, scale or 1.0)
        files |= under(folder, inner)
        report += [f"{folder}: {line}" for line in lines]
        index[folder] = ["diffusers", json.loads(inner["config.json"])["_class_name"]]
    if tower is not None or any("encoders_text" in path for path in conditioner):
        text, parts = text_files(config, conditioner, tower, kind)
        files |= text
        index |= parts
        conditioner = {}
    if conditioner:
        files["conditioner/model.safetensors"] = {
            "/".join(path): lazy for path, lazy in conditioner.items()
        }
    if kind:
        index |= {"_class_name": kind, "_diffusers_version": VERSION}
        if kind == STABLE_DIFFUSION:
            without = ("safety_checker", "feature_extractor", "image_encoder")
            index |= dict.fromkeys(without, [None, None])
            index["requires_safety_checker"] = False
        files["model_index.json"] = as_json(index)
    return files, [line for line in report if line]


def unet_files(
    config: ConfigDict, arrays: Mapping[name_maps.Path, Lazy], codec
) -> tuple[Files, int, dict[name_maps.Path, Lazy]]:
    """(files of the UNet, number of its entries, the arrays of the conditioner)."""
    own = {path: lazy for path, lazy in arrays.items() if path[:2] == UNET_ROOT[1:]}
    rest = {path: lazy for path, lazy in arrays.items() if path not in own}
    section = config.unet.to_dict()
    first = next((path for path in own if path[2:] == ("input_0_0", "kernel")), None)
    if first is None:
        raise UserError("the model has no UNet: it is damaged")
    channels = own[first].shape[2]
    network = networks.unet(config.unet, out_channels=codec.channels)
    plain = diffusers_settings.to_unet(
        section,
        in_channels=channels,
        out_channels=codec.channels,
        sample_size=config.data.size_px // codec.factor,
    )
    table = names.diffusers_unet_names(network, channels)
    rooted = name_maps.prefixed(table, "", UNET_ROOT[1:])
    entries = name_maps.lazy_to_original(own, rooted)
    return {"config.json": as_json(plain), MODEL: entries}, len(entries), rest


def choose_pipeline(config: ConfigDict, codec, scale) -> tuple[str, str, str]:
    """(pipeline or "", the first stage's directory there, a line for the report)."""
    if config.first_stage.path == "identity":
        return "", "vqvae", "diffusers has no pipeline for pixels: components only"
    task, settings = task_of(config), task_settings(config)
    for name in task.diffusers:
        if FITS[name](settings, codec, scale):
            return name, "vae" if name == STABLE_DIFFUSION else "vqvae", ""
    note = f"diffusers has no pipeline for this {task.name} model: components"
    if any(condition.field == "boxes" for condition in task.conditions(settings)):
        note += ", without the masks of layout.within_boxes: other pictures"
    return "", "vqvae", note


def fits_ldm_text(settings: Settings, codec, scale) -> bool:
    """Whether the fixed length and factor of LDMTextToImagePipeline are the model's."""
    del scale
    own = settings.text["kind"] == "bert"
    length = settings.tokenizer.max_length == LDM_TEXT_TOKENS
    return own and codec.factor == LDM_TEXT_FACTOR and length


STABLE_DIFFUSION = "StableDiffusionPipeline"
# Whether a pipeline holds a model of its task, of (settings, codec, latent scale).
FITS = {
    "LDMPipeline": lambda settings, codec, scale: True,
    "LDMSuperResolutionPipeline": lambda settings, codec, scale: scale == 1.0,
    "LDMTextToImagePipeline": fits_ldm_text,
    STABLE_DIFFUSION: lambda settings, codec, scale: codec.autoencoder.is_kl,
}


def text_files(
    config: ConfigDict,
    conditioner: Mapping[name_maps.Path, Lazy],
    tower: Ours | None,
    kind: str,
) -> tuple[Files, dict[str, list]]:
    """(files, lines of the index) of text encoder and tokenizer."""
    name = "bert" if kind == "LDMTextToImagePipeline" else "text_encoder"
    if tower is not None:
        inner = tower_files(tower)
        pad = END if tower.config.text.pad == "eos" else "!"
        length = json.loads(inner["config.json"])["max_position_embeddings"]
        files = under(name, inner) | under("tokenizer", clip_tokenizer(length, pad))
        encoder, tokenizer = ["transformers", "CLIPTextModel"], "CLIPTokenizer"
    else:
        skip = ("kind", "path", "network")
        section = {k: v for k, v in config.text.items() if k not in skip}
        network = networks.construct(TextTransformer, section, "text")
        root = (*COND_ROOT[1:], "encoders_text", "transformer")
        table = name_maps.prefixed(names_text.diffusers_text_names(network), "", root)
        entries = name_maps.lazy_to_original(conditioner, table)
        settings = diffusers_settings.to_bert(section)
        files = under(name, {"config.json": as_json(settings), TEXT: entries})
        files |= under("tokenizer", bert_tokenizer(network.max_length))
        encoder, tokenizer = ["latent_diffusion", "LDMBertModel"], "BertTokenizer"
    return files, {name: encoder, "tokenizer": ["transformers", tokenizer]}


def bert_tokenizer(length: int) -> Files:
    """The files of transformers' BertTokenizer."""
    settings = dict(do_lower_case=True, model_max_length=length)
    settings["tokenizer_class"] = "BertTokenizer"
    vocabulary = BERT_VOCAB.read_text(encoding="utf-8")
    return {"vocab.txt": vocabulary, "tokenizer_config.json": as_json(settings)}


def clip_tokenizer(length: int, pad: str) -> Files:
    """The files of transformers' CLIPTokenizer."""
    pieces, merges = clip_vocabulary()
    special = dict(bos_token=START, eos_token=END, pad_token=pad, unk_token=END)
    settings = special | dict(model_max_length=length, tokenizer_class="CLIPTokenizer")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    return {
        "merges.txt": "\n".join(lines) + "\n",
        "special_tokens_map.json": as_json(special),
        "tokenizer_config.json": as_json(settings),
        "vocab.json": json.dumps(pieces, ensure_ascii=False) + "\n",
    }


def write(files: Files, out: str) -> None:
    """The directory, whole or not at all."""

    def fill(path: Path) -> None:
        for name, content in files.items():
            file = path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                file.write_text(content, encoding="utf-8")
            else:
                weights_directory.write_tensors(file, content, {"format": "pt"})

    write_whole(out, fill)
