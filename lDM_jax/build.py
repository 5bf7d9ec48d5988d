"""Config -> objects: explicit tables, and every cross-check between sections.

The only reader of configs. A section is exactly its constructor's keyword arguments,
with 0 or "" standing for "not set" where ml_collections needs a typed default.
"""

import dataclasses
import inspect
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lDM_jax import codec as codec_lib
from lDM_jax import tasks, weights
from lDM_jax.arrays import Batch, UserError
from lDM_jax.codec import Codec
from lDM_jax.data import pipeline as data_pipeline
from lDM_jax.data import sources
from lDM_jax.data.folder import FolderSource
from lDM_jax.diffusion import make_process
from lDM_jax.models.autoencoder import Autoencoder, Identity
from lDM_jax.models.conditioners import (
    ClassConditioner,
    Conditioner,
    TextConditioner,
)
from lDM_jax.models.discriminator import PatchDiscriminator
from lDM_jax.models.lpips import LPIPS
from lDM_jax.models.text import TextTransformer
from lDM_jax.models.unet import UNet, check_extent
from lDM_jax.perceptual import load_lpips
from lDM_jax.tokenizers import BertTokenizer
from lDM_jax.training import autoencoder as stage1
from lDM_jax.training import checkpoint
from lDM_jax.training import diffusion as stage2
from lDM_jax.training.adversary import Adversary
from lDM_jax.training.diffusion import Model
from lDM_jax.training.optim import make_optimizer
from lDM_jax.training.state import Stage

log = logging.getLogger(__name__)

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
SCALE_SAMPLE_IMAGES = 512


@dataclasses.dataclass
class Experiment:
    """Everything the loop needs for one config."""

    config: ConfigDict
    stage: Stage
    frozen: Any
    iterator: Any
    eval_batches: Callable[[], Any]
    example_batch: Batch


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


def tokenizer(config: ConfigDict) -> BertTokenizer | None:
    """The tokenizer of a text task, None otherwise."""
    if config.get("task") != "text":
        return None
    return BertTokenizer(max_length=config.text.max_length)


def source(config: ConfigDict, split: str):
    """The data set of config.data, one split of it, its first `limit` examples."""
    data = config.data
    if data.source == "emoji":
        chosen = sources.EmojiSource(split=split, size_px=data.size_px)
    elif data.source == "folder":
        chosen = FolderSource(data.path, split=split, size_px=data.size_px)
        check_folder(config, chosen)
    else:
        raise UserError(f"config.data.source = {data.source!r}; valid: emoji, folder")
    limit = data.get("limit", 0)
    return sources.First(chosen, limit) if limit else chosen


def check_folder(config: ConfigDict, folder: FolderSource) -> None:
    """UserError unless the folder has the conditions of the config's task."""
    task = config.get("task")
    if task == "text" and not folder.has_captions:
        raise UserError(
            f"task 'text' needs captions: {folder.path} has no .txt file named like an "
            "image (photo.jpg, photo.txt)"
        )
    if task == "class" and not folder.classes:
        raise UserError(
            f"task 'class' needs every image of {folder.path} in a sub-folder, one a "
            "class"
        )
    if task == "class" and len(folder.classes) > config.num_classes:
        raise UserError(
            f"config.num_classes = {config.num_classes}, but {folder.path} has "
            f"{len(folder.classes)} sub-folders with images"
        )


def transform(config: ConfigDict) -> Callable:
    """The example transform of the config's task."""
    task = tasks.get_task(config.get("task", "unconditional"))
    data = config.data
    return tasks.train_transform(
        task,
        tokenizer(config),
        background=data.background,
        flip=data.flip,
    )


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
        raise UserError(
            "config.first_stage.path is empty: give a first stage's work directory or "
            f"weights directory, or a shipped name ({', '.join(weights.shipped())})"
        )
    stored, params = load_trained(section.path)
    if stored.stage != "autoencoder":
        raise UserError(f"{section.path} is not a first stage (stage: {stored.stage})")
    network = autoencoder(stored.autoencoder)
    scale = section.scale or stored.get("latent_scale", 0.0) or 1.0
    if isinstance(scale, list | tuple):
        return Codec(network, tuple(float(number) for number in scale)), params
    return Codec(network, float(scale)), params


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
        stored = ConfigDict(weights.read_config(weights.resolve(section.path)))
        return Codec(autoencoder(stored.get("config", stored).autoencoder))
    if not section.get("network"):
        raise UserError("config.first_stage has neither a path nor a network")
    return Codec(autoencoder(section.network))


def random_network() -> Autoencoder:
    """The tiny untrained first stage of the `:smoke` size, f = 4."""
    return Autoencoder(8, (1, 1, 1), 1, z_channels=3, latent_channels=3, num_groups=4)


def load_trained(name: str) -> tuple[ConfigDict, dict]:
    """(config, EMA parameters) of a shipped name, weights or work directory."""
    path = weights.resolve(name)
    if weights.is_weights_directory(path):
        config, params = weights.load(path)
        return ConfigDict(config), params
    config = weights.read_config(path)
    return ConfigDict(config.get("config", config)), checkpoint.load_ema(path)


def model(config: ConfigDict, codec: Codec) -> Model:
    """The second stage's networks and process."""
    return Model(
        unet=unet(config.unet, out_channels=codec.channels),
        conditioner=conditioner(config),
        process=make_process(**config.process),
        codec=codec,
    )


def conditioner(config: ConfigDict) -> Conditioner:
    """The conditioner of the config's task; checks that the UNet reads it."""
    task = tasks.get_task(config.task)
    if task.route is None:
        return Conditioner()
    encoder = task.route[1]
    width = config.unet.context_width
    if not width:
        raise UserError(f"task {task.name!r} needs config.unet.context_width > 0")
    if encoder == "class":
        network = ClassConditioner(config.num_classes, width)
    else:
        if config.text.width != width:
            raise UserError(
                f"config.text.width ({config.text.width}) must equal "
                f"config.unet.context_width ({width})"
            )
        null = tokenizer(config)([""])[0].tolist()
        network = TextConditioner(TextTransformer(**config.text), tuple(null))
    return Conditioner(routes=(task.route,), encoders={encoder: network})


def optimizer(config: ConfigDict):
    """The optax chain of config.optimizer."""
    section = dict(config.optimizer)
    section["clip_norm"] = section["clip_norm"] or None
    return make_optimizer(num_steps=config.train.num_steps, **section)[0]


def experiment(config: ConfigDict) -> Experiment:
    """Data, networks and stage of a config: what train.py hands to the loop.

    May fill in config.first_stage.scale when it has to be measured.
    """
    builders = {"autoencoder": _autoencoder, "diffusion": _diffusion}
    build = lookup(builders, config.stage, "config.stage")
    if config.train.batch_size < 1:
        raise UserError(f"config.train.batch_size = {config.train.batch_size} < 1")
    return build(config)


def _autoencoder(config: ConfigDict) -> Experiment:
    network = autoencoder(config.autoencoder)
    check_pixels(config, network.factor)
    data = source(config, "train")  # before anything is downloaded
    loss, frozen = dict(config.loss), {}
    path = loss.pop("lpips_weights")
    if loss["perceptual_weight"]:
        loss["perceptual"] = LPIPS()
        frozen["lpips"] = load_lpips(path)
    stage = stage1.make_stage(
        network,
        optimizer(config),
        image_size_px=config.data.size_px,
        adversary=adversary(config),
        objective=construct(stage1.Objective, loss, "loss"),
        ema_decay=config.train.ema_decay,
    )
    return _with_data(config, stage, frozen, data, transform(config))


def adversary(config: ConfigDict) -> Adversary | None:
    """The discriminator of config.discriminator; None where its factor is 0."""
    section = dict(config.discriminator)
    game = {key: section.pop(key) for key in ("start_steps", "weight", "factor")}
    kind = section.pop("loss")
    if not game["factor"]:
        return None
    network = construct(PatchDiscriminator, section, "discriminator")
    network.check_size(config.data.size_px)
    return Adversary(network, optimizer(config), **game, loss=kind)


def _diffusion(config: ConfigDict) -> Experiment:
    codec, frozen = first_stage(config)
    check_pixels(config, codec.factor)
    latent_shape = codec.latent_shape(config.data.size_px, config.data.size_px)
    check_extent(latent_shape[:2], len(config.unet.width_mults) - 1)
    row, held_out = transform(config), None
    data = source(config, "train")
    cached = config.data.cache_latents
    if cached or needs_scale(config):
        rows = None if cached else SCALE_SAMPLE_IMAGES
        data_latents = encode(codec, frozen, data, row, limit=rows)
        if needs_scale(config):
            codec = measure_scale(config, codec, data_latents["moments"])
    if cached:
        data = sources.ArraySource(data_latents)
        held_out = sources.ArraySource(
            encode(codec, frozen, source(config, "validation"), row)
        )
        row = identity
    networks = model(config, codec)
    example = next(iter(data_pipeline.batches_once(data, row, batch_size=1)))
    example.pop("weight")
    stage = stage2.make_stage(
        networks,
        optimizer(config),
        example_batch=example,
        latent_shape=latent_shape,
        ema_decay=config.train.ema_decay,
        preview_steps=config.sample.steps,
        preview_guidance=config.sample.guidance,
        **config.loss,
    )
    return _with_data(config, stage, frozen, data, row, held_out)


def needs_scale(config: ConfigDict) -> bool:
    """True if neither the config nor the first stage knows the latent scale."""
    if config.first_stage.scale or config.first_stage.path == "identity":
        return False
    if config.first_stage.path == "random":
        return True
    stored = weights.read_config(weights.resolve(config.first_stage.path))
    return not stored.get("latent_scale", 0.0)


def measure_scale(config: ConfigDict, codec: Codec, moments: np.ndarray) -> Codec:
    """Codec with 1 / std of the latents of the first images; noted in the config."""
    scale = codec_lib.latent_scale(
        codec, moments[:SCALE_SAMPLE_IMAGES], jax.random.key(0)
    )
    config.first_stage.scale = scale
    log.info("latent scale %.6g (1 / std of the training latents)", scale)
    return dataclasses.replace(codec, scale=scale)


def identity(example: dict, rng: np.random.Generator) -> dict:
    """The transform of examples that are already batch rows."""
    del rng
    return example


def encode(codec: Codec, params, data, row: Callable, *, limit: int | None = None):
    """Moments and conditions of a whole source in memory: dict of "N ..." arrays."""
    encoder = jax.jit(codec.moments)
    parts, seen = [], 0
    for batch in data_pipeline.batches_once(data, row, batch_size=32):
        real = batch.pop("weight") > 0
        moments = encoder(params, batch.pop("image"))
        batch["moments"] = jax.device_get(moments)
        parts.append({name: value[real] for name, value in batch.items()})
        seen += int(real.sum())
        if limit is not None and seen >= limit:
            break
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _with_data(config, stage, frozen, data, row, held_out=None) -> Experiment:
    size = config.train.batch_size
    if size > len(data):
        raise UserError(
            f"config.train.batch_size = {size} exceeds the {len(data)} training images"
        )
    shards = jax.process_count()
    iterator = data_pipeline.loader(
        data,
        row,
        batch_size=size // shards,
        seed=config.seed,
        shard_index=jax.process_index(),
        shard_count=shards,
        num_workers=config.data.num_workers,
    )
    if held_out is None:
        held_out = source(config, "validation")

    def eval_batches():
        return data_pipeline.batches_once(held_out, row, batch_size=min(size, 32))

    example = next(iter(eval_batches()))
    example.pop("weight")
    return Experiment(config, stage, frozen, iterator, eval_batches, example)


def check_pixels(config: ConfigDict, factor: int) -> None:
    """UserError unless the first stage can halve config.data.size_px."""
    size = config.data.size_px
    if size < factor or size % factor:
        raise UserError(
            f"config.data.size_px = {size} must be a multiple of the first stage's "
            f"factor {factor}"
        )
