"""Config -> objects: explicit tables, and every cross-check between sections.

The only reader of configs. A section is exactly its constructor's keyword arguments,
with 0 or "" standing for "not set" where ml_collections needs a typed default.
"""

import dataclasses
import inspect
import logging
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lDM_jax.core.errors import UserError
from lDM_jax.data.box_tokens import BoxTokenizer
from lDM_jax.data.tokenizers import BertTokenizer, ClipTokenizer
from lDM_jax.diffusion.codec import Codec
from lDM_jax.diffusion.latent_diffusion import LatentDiffusion, Tower
from lDM_jax.diffusion.process import make_process
from lDM_jax.models.autoencoder import Autoencoder, Identity
from lDM_jax.models.bert_text import TextTransformer
from lDM_jax.models.boxes import TokenBoxes
from lDM_jax.models.clip_text import ClipText
from lDM_jax.models.conditioners import (
    AsItIs,
    ClassConditioner,
    Conditioner,
    SpatialRescaler,
    TextConditioner,
)
from lDM_jax.models.latent_classifier import LatentClassifier
from lDM_jax.models.unet import REMAT_POLICIES, UNet
from lDM_jax.tasks import task as task_lib
from lDM_jax.weights import checkpoint
from lDM_jax.weights import directory as weights_directory

log = logging.getLogger(__name__)

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
SCALE_SAMPLE_IMAGES = 512


def autoencoder(section: dict) -> Autoencoder:
    """Network of stage 1 from config.autoencoder."""
    section = dict(section)
    section["num_codes"] = section["num_codes"] or None
    for key in ("width_mults", "attn_factors"):
        section[key] = tuple(section[key])
    return construct(Autoencoder, section, "autoencoder")


def unet(section: dict, *, out_channels: int) -> UNet:
    """Network of stage 2 from config.unet. UserError for impossible head counts."""
    section = dict(section)
    for key in ("num_heads", "head_channels", "context_width"):
        section[key] = section[key] or None
    for key in ("width_mults", "attn_factors"):
        section[key] = tuple(section[key])
    depth = section.get("transformer_depth", 1)
    if not isinstance(depth, int):
        section["transformer_depth"] = tuple(depth)
        if len(depth) != len(section["width_mults"]):
            raise UserError(
                f"config.unet.transformer_depth = {tuple(depth)}: give one number, or "
                f"one for each of the {len(section['width_mults'])} levels"
            )
    lookup(
        REMAT_POLICIES,
        section.get("remat_policy", "nothing"),
        "config.unet.remat_policy",
    )
    heads, channels = section["num_heads"], section["head_channels"]
    if (heads is None) == (channels is None):
        raise UserError(
            f"config.unet: set exactly one of num_heads ({heads}) and "
            f"head_channels ({channels}); 0 means not set"
        )
    unit = channels or heads
    for mult in section["width_mults"]:
        width = section["width"] * mult
        for name, divisor in (("heads", unit), ("groups", section["num_groups"])):
            if width % min(divisor, width):
                raise UserError(
                    f"config.unet: {width} channels do not divide into {name} of "
                    f"{divisor}; change width, width_mults or the {name}"
                )
    return construct(UNet, {**section, "out_channels": out_channels}, "unet")


def construct(kind: type, section: dict, name: str):
    """kind(**section) with the dtype looked up and a readable error for wrong keys."""
    section = dict(section)
    if "dtype" in section:
        section["dtype"] = lookup(DTYPES, section["dtype"], f"config.{name}.dtype")
    valid = set(inspect.signature(kind).parameters) - {"parent", "name"}
    unknown = sorted(section.keys() - valid)
    if unknown:
        raise UserError(
            f"config.{name} has unknown keys {unknown}; valid: {sorted(valid)}"
        )
    return kind(**section)


def lookup(table: dict, key: str, where: str):
    """table[key], or UserError naming `where` and the valid keys."""
    if key not in table:
        raise UserError(f"{where} = {key!r} is unknown; valid: {', '.join(table)}")
    return table[key]


def text_kind(config: ConfigDict) -> str:
    """ "bert" (trained with the denoiser) or "clip" (a frozen tower)."""
    kind = config.text.get("kind", "bert")
    return lookup({"bert": "bert", "clip": "clip"}, kind, "config.text.kind")


def tokenizer(config: ConfigDict) -> Callable | None:
    """What turns the texts (or boxes) of a task into tokens, None without any."""
    task = config.get("task")
    if task == "layout":
        return BoxTokenizer(config.text.max_length, config.text.vocab_size)
    if task != "text":
        return None
    if text_kind(config) == "bert":
        return BertTokenizer(max_length=config.text.max_length)
    section = tower_section(config)
    length = section["network"].get("max_length", 77)
    return ClipTokenizer(max_length=length, pad=section.get("pad", "eos"))


def tower_section(config: ConfigDict) -> dict:
    """The text section of a frozen tower: of its own directory, else of the config."""
    path = config.text.path
    if path in ("", "random"):
        return config.text.to_dict()
    stored = weights_directory.read_config(weights_directory.resolve(path))
    if stored.get("stage") != "text":
        raise UserError(f"{path} is no text tower (stage: {stored.get('stage')})")
    return stored["text"]


def tower(config: ConfigDict) -> ClipText | None:
    """The frozen text tower of a config, without its weights; None without one."""
    if config.get("task") != "text" or text_kind(config) != "clip":
        return None
    return construct(ClipText, tower_section(config)["network"], "text.network")


def towers(config: ConfigDict) -> tuple[Tower, ...]:
    """The frozen text towers of a config, as the model reads them."""
    network = tower(config)
    return () if network is None else (Tower("text", network, null_tokens(config)),)


def frozen_text(config: ConfigDict) -> dict:
    """{"text": the tower's parameters}, or nothing."""
    network = tower(config)
    if network is None:
        return {}
    path, key = config.text.path, jax.random.key(0)
    tokens = jnp.zeros((1, network.max_length), jnp.int32)
    if path == "random":
        return {"text": jax.jit(network.init)(key, tokens)}
    if not path:
        raise UserError(
            "config.text.path is empty: give the weights directory of a text tower "
            "(python -m lDM_jax.tools.convert makes one)"
        )
    _, params = weights_directory.load(weights_directory.resolve(path))
    shapes = jax.eval_shape(network.init, key, tokens)
    weights_directory.check_cover(params, shapes, what=path)
    return {"text": params}


def first_stage(config: ConfigDict) -> tuple[Codec, dict]:
    """Codec and parameters that config.first_stage.path names.

    "identity" is no first stage: the diffusion sees pixels. "random" builds the tiny
    untrained stage of the `:smoke` size. A scale of 0 takes the stored one, a number or
    one for every channel; a first stage without any gets 1, and `experiment` measures
    it.
    """
    section = config.first_stage
    if section.path == "identity":
        return Codec(Identity(), section.scale or 1.0), {}
    if section.path == "random":
        network = random_network()
        image = jnp.zeros((1, 32, 32, 3))
        params = jax.jit(network.init)(jax.random.key(0), image)
        return Codec(network, section.scale or 1.0), params
    if not section.path:
        shipped = ", ".join(weights_directory.shipped())
        raise UserError(
            "config.first_stage.path is empty: give a first stage's work directory or "
            f"weights directory, or a shipped name ({shipped})"
        )
    stored, params = load_trained(section.path)
    if stored.stage != "autoencoder":
        raise UserError(f"{section.path} is not a first stage (stage: {stored.stage})")
    network = autoencoder(stored.autoencoder)
    scale = section.scale or stored.get("latent_scale", 0.0) or 1.0
    if isinstance(scale, list | tuple):
        return Codec(network, tuple(float(number) for number in scale)), params
    return Codec(network, float(scale)), params


def stored_first_stage(config: ConfigDict) -> dict:
    """What lies beside the weights that config.first_stage.path names; else nothing."""
    if config.first_stage.path in ("", "identity", "random"):
        return {}
    return weights_directory.read_config(
        weights_directory.resolve(config.first_stage.path)
    )


def frozen(config: ConfigDict, first_stage_params: dict) -> dict:
    """Everything of a second stage that does not train (see `LatentDiffusion`)."""
    return {"first_stage": first_stage_params, **frozen_text(config)}


def abstract_codec(config: ConfigDict) -> Codec:
    """The first stage's codec without its parameters, for shapes alone.

    Without a path, the architecture comes from config.first_stage.network.
    """
    section = config.first_stage
    if section.path == "identity":
        return Codec(Identity())
    if section.path == "random":
        return Codec(random_network())
    if section.path:
        stored = ConfigDict(
            weights_directory.read_config(weights_directory.resolve(section.path))
        )
        return Codec(autoencoder(stored.get("config", stored).autoencoder))
    if not section.get("network"):
        raise UserError("config.first_stage has neither a path nor a network")
    return Codec(autoencoder(section.network))


def random_network() -> Autoencoder:
    """The tiny untrained first stage of the `:smoke` size, f = 4."""
    return Autoencoder(8, (1, 1, 1), 1, z_channels=3, latent_channels=3, num_groups=4)


def load_trained(name: str) -> tuple[ConfigDict, dict]:
    """(config, EMA parameters) of a shipped name, weights or work directory."""
    path = weights_directory.resolve(name)
    if not weights_directory.is_weights_directory(path):
        config = weights_directory.read_config(path)
        return ConfigDict(config.get("config", config)), checkpoint.load_ema(path)
    stored, params = weights_directory.load(path)
    return in_place(stored, path), params


def in_place(stored: dict, path: Path) -> ConfigDict:
    """The config of a weights directory; "./" at the beginning of a path means it."""
    config = ConfigDict(stored)
    for section in ("first_stage", "text"):
        inner = config.get(section, {}).get("path", "")
        if inner.startswith("./"):
            config[section].path = str(path / inner)
    return config


def model(config: ConfigDict, codec: Codec) -> LatentDiffusion:
    """The second stage's networks and process."""
    return LatentDiffusion(
        denoiser=unet(config.unet, out_channels=codec.channels),
        conditioner=conditioner(config),
        process=make_process(**config.process),
        codec=codec,
        towers=towers(config),
        log_variance=config.get("loss", {}).get("log_variance", False),
    )


def classifier(config: ConfigDict) -> LatentClassifier:
    """The network of stage "classifier": config.unet's way down, config.num_classes."""
    if config.num_classes < 2 or config.unet.context_width:
        raise UserError(
            f"a classifier needs config.num_classes ({config.num_classes}) of two or "
            "more and config.unet.context_width = 0"
        )
    network = unet(config.unet, out_channels=config.num_classes)
    return LatentClassifier(**dataclass_fields(network))


def dataclass_fields(network) -> dict:
    """The constructor's arguments of a module."""
    return {
        field.name: getattr(network, field.name)
        for field in dataclasses.fields(network)
        if field.name not in ("parent", "name")
    }


def load_classifier(name: str) -> tuple[LatentClassifier, dict]:
    """(network, EMA parameters on the device) of a model of stage "classifier"."""
    config, params = load_trained(name)
    if config.stage != "classifier":
        raise UserError(f"{name} is no classifier (stage: {config.stage})")
    network = classifier(config)
    side = config.data.size_px
    z = jnp.zeros((1, *abstract_codec(config).latent_shape(side, side)))
    t = jnp.zeros(1, jnp.int32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), z, t)
    weights_directory.check_cover(params, shapes, what=name)
    return network, jax.device_put(params)


def conditioner(config: ConfigDict) -> Conditioner:
    """The conditioner of the config's task; checks that the UNet reads it."""
    task = task_lib.get_task(config.task)
    if task.route is None:
        return Conditioner()
    key, encoder, field = task.route
    width = config.unet.context_width
    if field == "context" and not width and encoder != "class":
        raise UserError(f"task {task.name!r} needs config.unet.context_width > 0")
    if encoder == "text" and text_kind(config) == "clip":
        key, encoder = "embeddings", "tower"
    if encoder == "class" and not width:
        field = "vector"
    routes, encoders = ((key, encoder, field),), {encoder: ENCODERS[encoder](config)}
    if encoder == "layout" and config.get("layout", {}).get("within_boxes"):
        routes += ((key, "token_boxes", "boxes"),)
        encoders["token_boxes"] = TokenBoxes(config.text.vocab_size)
    return Conditioner(routes=routes, encoders=encoders)


def class_encoder(config: ConfigDict) -> ClassConditioner:
    """A context token a class; without cross-attention the original's label_emb."""
    null_class = config.get("null_class", True)
    if config.loss.get("drop_rate", 0.0) and not null_class:
        raise UserError(
            "config.loss.drop_rate needs a null class: set config.null_class = True"
        )
    if config.num_classes < 1:
        raise UserError(
            "config.num_classes = 0 stands for as many as the data has: "
            "lDM_jax.from_config.datasets.resolve(config) counts them"
        )
    width = config.unet.context_width
    return ClassConditioner(
        config.num_classes,
        width or 4 * config.unet.width,
        null_class=null_class,
        as_vector=not width,
    )


def token_encoder(config: ConfigDict) -> TextConditioner:
    """The transformer over words or boxes that trains with the denoiser."""
    section = {k: v for k, v in config.text.items() if k not in ("kind", "path")}
    if section["width"] != config.unet.context_width:
        raise UserError(
            f"config.text.width ({section['width']}) must equal "
            f"config.unet.context_width ({config.unet.context_width})"
        )
    network = construct(TextTransformer, section, "text")
    return TextConditioner(network, null_tokens(config))


def tower_encoder(config: ConfigDict) -> AsItIs:
    """A frozen tower's output, whose rows the tower itself has dropped."""
    width = tower(config).width
    if width != config.unet.context_width:
        raise UserError(
            f"the text tower is {width} wide, but config.unet.context_width is "
            f"{config.unet.context_width}"
        )
    return AsItIs(droppable=False)


def rescaler(config: ConfigDict) -> SpatialRescaler:
    """From label maps to the extent of the latents."""
    if config.num_classes < 1:
        raise UserError("task 'semantic' needs config.num_classes, the map's labels")
    return SpatialRescaler(config.num_classes, **config.rescaler)


def as_it_is(config: ConfigDict) -> AsItIs:
    """Low-resolution pixels (folded where they are finer than the latents), masks."""
    folds = config.task == "super_resolution"
    return AsItIs(fold=config.low_res.fold if folds else 1)


ENCODERS: dict[str, Callable] = {
    "class": class_encoder,
    "text": token_encoder,
    "layout": token_encoder,
    "tower": tower_encoder,
    "rescaler": rescaler,
    "as_is": as_it_is,
}


def null_tokens(config: ConfigDict) -> tuple[int, ...]:
    """The tokens of the dropped condition: of no text, of no boxes."""
    return tuple(tokenizer(config)([""])[0].tolist())


def check_pixels(config: ConfigDict, factor: int) -> None:
    """UserError unless the first stage can halve config.data.size_px."""
    size = config.data.size_px
    if size < factor or size % factor:
        raise UserError(
            f"config.data.size_px = {size} must be a multiple of the first stage's "
            f"factor {factor}"
        )
