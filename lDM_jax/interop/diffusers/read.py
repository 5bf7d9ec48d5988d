"""Directories that diffusers' save_pretrained wrote -> our weights directories.

Owns where the components of a pipeline lie and how their files are called. What their
settings mean is in `first_stage_settings` and `diffusers.settings`, the names within a
network in `names` and `names_text`. Each component fits by exact cover.

    LDMPipeline                 unconditional      unet vqvae scheduler
    LDMSuperResolutionPipeline  super_resolution   unet vqvae scheduler
    LDMTextToImagePipeline      text               unet vqvae scheduler bert tokenizer
    StableDiffusionPipeline     text               unet vae scheduler text_encoder tok..

Reading order: `read`, first stages, pipelines, text, files.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lDM_jax.core.errors import UserError
from lDM_jax.data.tokenizers import BERT_VOCAB, clip_vocabulary
from lDM_jax.diffusion.process import make_process
from lDM_jax.from_config import networks
from lDM_jax.interop import first_stage_settings, names, names_text, validate
from lDM_jax.interop.converted import Converted, read_all, split
from lDM_jax.interop.diffusers import settings as diffusers_settings
from lDM_jax.interop.original import conditions
from lDM_jax.interop.original import settings as original_settings
from lDM_jax.interop.original.read import COND_ROOT, UNET_ROOT
from lDM_jax.models.bert_text import TextTransformer
from lDM_jax.models.clip_text import ClipText
from lDM_jax.weights import name_maps, torch_file
from lDM_jax.weights.name_maps import Names

CONFIG, INDEX = "config.json", "model_index.json"
FIRST_STAGES = ("AutoencoderKL", "VQModel")
DEFAULT_SIZE_PX = 256
LDM_TEXT_TOKENS = 77  # whatever its tokenizer says


class Layout(NamedTuple):
    """A pipeline: our task, and the names of its first stage and text components.

    extra: channels beside the latents; scale: of the latents, where it is always that.
    """

    task: str
    first_stage: str
    text: str | None = None
    guidance: float = 1.0
    extra: int = 0
    scale: float | None = None


PIPELINES = {
    "LDMPipeline": Layout("unconditional", "vqvae"),
    "LDMSuperResolutionPipeline": Layout(
        "super_resolution", "vqvae", extra=3, scale=1.0
    ),
    "LDMTextToImagePipeline": Layout("text", "vqvae", "bert", 5.0),
    "StableDiffusionPipeline": Layout("text", "vae", "text_encoder", 7.5),
}


class Component(NamedTuple):
    """One network: its config here, its arrays by path, what was used of its files."""

    config: dict
    arrays: dict[name_maps.Path, name_maps.Lazy]
    report: list[str]


def read(folder: str, *, scale: float | None = None) -> Converted:
    """A pipeline's directory, or that of a first stage alone.

    scale: the latent scale, where the user knows it better.
    """
    path = Path(folder).expanduser()
    if (path / INDEX).is_file():
        return read_pipeline(path, scale)
    config = read_json(path / CONFIG)
    kind = config.get("_class_name")
    if kind in (diffusers_settings.PLAIN, diffusers_settings.SPATIAL):
        raise UserError(f"{path} is a UNet alone: give the pipeline that it is part of")
    stage = first_stage(path)
    if scale is not None:
        stage.config["latent_scale"] = scale
    stage.config["converted_from"] = f"diffusers.{kind}"
    part = split(stage.arrays, {"first_stage": stage.config})["first_stage"]
    return Converted({"": part}, stage.report)


def read_pipeline(path: Path, scale: float | None) -> Converted:
    """All components that draw; safety checkers and the like are left out."""
    index = read_json(path / INDEX)
    try:
        layout = validate.choice(index, "_class_name", PIPELINES, "")
    except UserError as error:
        inner = [path / name for name in ("vae", "vqvae") if (path / name).is_dir()]
        alone = "; alone: " + ", ".join(map(str, inner)) if inner else ""
        raise UserError(f"{error}{alone}") from None
    first = first_stage(path / layout.first_stage)
    network = networks.autoencoder(first.config["autoencoder"])
    scale = known_scale(scale, first.config, layout)
    first.config["latent_scale"] = scale
    net = unet(path / "unet", network.latent_channels, layout)
    process, notes = diffusers_settings.process(
        read_json(path / "scheduler" / "scheduler_config.json")
    )
    make_process(**process)  # refuses what does not go together
    size = net.config.pop("sample_size")
    extent = size if validate.whole(size) else DEFAULT_SIZE_PX // network.factor
    config = original_settings.second_stage_config(
        size_px=extent * network.factor, factor=network.factor
    ) | dict(
        task=layout.task,
        unet=net.config,
        process=process,
        loss=dict(loss="l2", weighting="uniform", drop_rate=0.0),
        sample=conditions.sample(layout.guidance),
        converted_from=f"diffusers.{index['_class_name']}",
    )
    config["first_stage"]["scale"] = scale
    configs = {"": config, "first_stage": first.config}
    components = [net, first]
    if layout.text:
        text = text_encoder(path, layout.text, net.config["context_width"])
        components.append(text)
        config["text"] = text.config
        if text.config["kind"] == "clip":
            pad = text.config.pop("pad")
            network = text.config["network"]
            configs["text"] = conditions.tower_config(network, pad=pad)
            config["text"] = dict(kind="clip", path="./text", network={})
    arrays = {k: v for component in components for k, v in component.arrays.items()}
    report = [line for component in components for line in component.report]
    report += [f"latent scale: {scale:.8g}", *notes]
    return Converted(split(arrays, configs), report)


def known_scale(scale: float | None, config: Mapping, layout: Layout) -> float:
    """The latent scale of a pipeline; the one for super-resolution has none."""
    if scale is not None:
        return scale
    if layout.scale is not None:
        return layout.scale
    if "latent_scale" not in config:
        raise UserError(
            f"{layout.first_stage}/config.json has no scaling_factor: give --scale (1 "
            "for the released models with a codebook)"
        )
    return config["latent_scale"]


def unet(path: Path, channels: int, layout: Layout) -> Component:
    """The denoiser, with the names of attention before diffusers 0.15 too."""
    config = read_json(path / CONFIG)
    section = diffusers_settings.unet(config)
    spatial = bool(section["context_width"])
    if spatial != bool(layout.text):
        raise UserError(
            f"{path}: {config['_class_name']} is not that of a {layout.task} model"
        )
    takes = validate.integer(config, "in_channels", 4 if spatial else 3)
    makes = validate.integer(config, "out_channels", 4 if spatial else 3)
    if (takes, makes) != (channels + layout.extra, channels):
        raise UserError(
            f"{path}: {takes} channels in and {makes} out, but the first stage has "
            f"{channels} and the condition adds {layout.extra}"
        )
    network = networks.unet(section, out_channels=makes)
    table = names.diffusers_unet_names(network, takes)
    state_dict = read_weights(path, MODEL_FILES)
    if not spatial:
        table = named_as(state_dict, table)
    section["sample_size"] = config.get("sample_size")
    rooted = name_maps.prefixed(table, "", UNET_ROOT)
    return component("unet", path, section, state_dict, rooted)


def named_as(state_dict: Mapping, table: Names) -> Names:
    """The table, with attention's names before diffusers 0.15 if the file has them."""
    if any(name.endswith(".query.weight") for name in state_dict):
        for new, old in names.OLD_ATTENTION.items():
            table = {k.replace(f".{new}.", f".{old}."): v for k, v in table.items()}
    return table


def first_stage(path: Path) -> Component:
    """AutoencoderKL or VQModel, with the names of attention before 0.15 too."""
    config = read_json(path / CONFIG)
    validate.choice(config, "_class_name", FIRST_STAGES, "")
    section = first_stage_settings.diffusers_first_stage(config)
    state_dict = read_weights(path, MODEL_FILES)
    network = networks.autoencoder(section)
    table = named_as(state_dict, names.diffusers_autoencoder_names(network))
    size = config.get("sample_size")
    usable = validate.whole(size) and size % network.factor == 0
    ours = first_stage_settings.first_stage_config(
        section,
        size_px=size if usable else DEFAULT_SIZE_PX,
        scale=first_stage_settings.diffusers_scale(config),
    )
    rooted = name_maps.prefixed(table, "", ("first_stage", "params"))
    return component("first stage", path, ours, state_dict, rooted)


def component(
    what: str, path: Path, config: dict, state_dict: Mapping, table: Names
) -> Component:
    """Exact cover of one network, the one at `path`."""
    try:
        arrays, report = read_all(state_dict, table)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return Component(config, arrays, [f"{what}: {line}" for line in report])


def text_encoder(path: Path, name: str, width: int) -> Component:
    """The text encoder and its tokenizer, which has to be the one that we have."""
    config = read_json(path / name / CONFIG)
    kind = "bert" if "d_model" in config else "clip"
    files = read_weights(path / name, TEXT_FILES)
    settings = tokenizer_settings(path / "tokenizer")
    if kind == "bert":
        section = diffusers_settings.bert(config)
        inner = {key: value for key, value in section.items() if key != "kind"}
        network = networks.construct(TextTransformer, inner, "text")
        table = names_text.diffusers_text_names(network)
        root = (*COND_ROOT, "encoders_text", "transformer")
        ours = BERT_VOCAB.read_text(encoding="utf-8").split()
        vocabulary = {piece: number for number, piece in enumerate(ours)}
        length = LDM_TEXT_TOKENS if name == "bert" else None
    else:
        inner = diffusers_settings.clip(config)
        pad = "eos" if settings.get("pad_token") in (None, "<|endoftext|>") else "zero"
        section = dict(kind="clip", network=inner, pad=pad)
        network = networks.construct(ClipText, inner, "text.network")
        outer = any(entry.startswith("text_model.") for entry in files)
        table = names_text.clip_names(network, "text_model." if outer else "")
        root = ("text", "params")
        vocabulary, length = clip_vocabulary()[0], None
    check_vocabulary(path / "tokenizer", vocabulary)
    length = length or settings.get("model_max_length", network.max_length)
    if length != network.max_length:
        raise UserError(
            f"{path}: prompts have {length} tokens, {name} has {network.max_length} "
            "positions"
        )
    if network.width != width:
        raise UserError(
            f"{path}: {name} is {network.width} wide, but the UNet attends to {width}"
        )
    rooted = name_maps.prefixed(table, "", root)
    return component("text", path / name, section, files, rooted)


def tokenizer_settings(path: Path) -> dict:
    """pad_token and model_max_length, where the tokenizer's files say so."""
    settings = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if not (path / name).is_file():
            continue
        values = read_json(path / name)
        pad = values.get("pad_token")
        pad = pad.get("content") if isinstance(pad, dict) else pad
        if isinstance(pad, str):
            settings["pad_token"] = pad
        if validate.whole(values.get("model_max_length")):
            settings["model_max_length"] = values["model_max_length"]
    return settings


def check_vocabulary(path: Path, ours: dict[str, int]) -> None:
    """UserError unless vocab.txt, vocab.json or tokenizer.json has the same numbers."""
    if (path / "vocab.txt").is_file():
        lines = (path / "vocab.txt").read_text(encoding="utf-8").split()
        theirs = {piece: number for number, piece in enumerate(lines)}
    elif (path / "vocab.json").is_file():
        theirs = read_json(path / "vocab.json")
    elif (path / "tokenizer.json").is_file():
        model = read_json(path / "tokenizer.json").get("model", {})
        theirs = model.get("vocab") if isinstance(model, dict) else None
    else:
        raise UserError(f"{path} has no vocabulary: vocab.txt, .json or tokenizer.json")
    if theirs != ours:
        raise UserError(f"{path}: another vocabulary than ours: prompts would not fit")


# Files: by the name of what they hold, in the order of preference.
def _files(safe: str, torch: str) -> tuple[str, ...]:
    names = []
    for variant in ("", ".fp16"):
        for stem, ending in ((safe, "safetensors"), (torch, "bin")):
            index = f"{stem}.{ending}.index{variant}.json"
            names += [f"{stem}{variant}.{ending}", index]
    return tuple(names)


MODEL_FILES = _files("diffusion_pytorch_model", "diffusion_pytorch_model")
TEXT_FILES = _files("model", "pytorch_model")


def read_weights(path: Path, files: tuple[str, ...]) -> Mapping:
    """The state dict of a component, of the first file that is there."""
    present = [path / name for name in files if (path / name).is_file()]
    if not present:
        raise UserError(f"{path} has none of {', '.join(files)}")
    reader = torch_file.read_index if present[0].suffix == ".json" else torch_file.read
    return reader(present[0])


def read_json(path: Path) -> dict:
    """A table of values. UserError for any other file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path.parent} holds no readable {path.name}: {error.strerror}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} should be a table of values")
    return values
