"""A config -> what the loop trains: data, stage, frozen networks.

Owns the data set of a config, the latents that are encoded before training, and the
latent scale that is measured where nobody knows it. Networks are `build`'s affair.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from lDM_jax import build, tasks, weights
from lDM_jax import codec as codec_lib
from lDM_jax.arrays import Batch, UserError
from lDM_jax.codec import Codec
from lDM_jax.data import pipeline as data_pipeline
from lDM_jax.data import sources
from lDM_jax.data.folder import FolderSource
from lDM_jax.data.scenes import SceneSource
from lDM_jax.models.lpips import LPIPS
from lDM_jax.models.unet import check_extent
from lDM_jax.perceptual import load_lpips
from lDM_jax.training import autoencoder as stage1
from lDM_jax.training import diffusion as stage2
from lDM_jax.training.state import Stage

log = logging.getLogger(__name__)

SCALE_SAMPLE_IMAGES = 512
HELD_OUT_SCENES = 512


@dataclasses.dataclass
class Experiment:
    """Everything the loop needs for one config.

    initial: parameters to begin with instead of random ones, by path
    (config.init_from).
    """

    config: ConfigDict
    stage: Stage
    frozen: Any
    iterator: Any
    eval_batches: Callable[[], Any]
    example_batch: Batch
    initial: dict = dataclasses.field(default_factory=dict)


def source(config: ConfigDict, split: str):
    """The data set of config.data, one split of it, its first `limit` examples."""
    data = config.data
    if data.source == "emoji":
        chosen = sources.EmojiSource(split=split, size_px=data.size_px)
    elif data.source == "scenes":
        options = dict(data.get("scenes", {}))
        if split != "train":
            options["num_scenes"] = HELD_OUT_SCENES
        chosen = SceneSource(split=split, size_px=data.size_px, **options)
    elif data.source == "folder":
        chosen = FolderSource(data.path, split=split, size_px=data.size_px)
        check_folder(config, chosen)
    else:
        raise UserError(
            f"config.data.source = {data.source!r}; valid: emoji, scenes, folder"
        )
    check_conditions(config, chosen)
    limit = data.get("limit", 0)
    return sources.First(chosen, limit) if limit else chosen


def check_conditions(config: ConfigDict, source) -> None:
    """UserError if the data set does not hold the condition of the config's task."""
    needed = {"text": "caption", "class": "label", "layout": "layout"}
    needed["semantic"] = "segmentation"
    key = needed.get(config.get("task"))
    if key and key not in source[0]:
        raise UserError(
            f"task {config.task!r} needs data with a {key}; config.data.source = "
            f"{config.data.source!r} has {', '.join(sorted(source[0]))}"
        )


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
        build.tokenizer(config),
        background=data.background,
        flip=data.flip,
        low_res={k: v for k, v in config.get("low_res", {}).items() if k != "fold"},
        masks=dict(config.get("masks", {})),
    )


def make(config: ConfigDict) -> Experiment:
    """Data, networks and stage of a config: what train.py hands to the loop.

    May fill in config.first_stage.scale when it has to be measured.
    """
    builders = {"autoencoder": _autoencoder, "diffusion": _diffusion}
    builder = build.lookup(builders, config.stage, "config.stage")
    if config.train.batch_size < 1:
        raise UserError(f"config.train.batch_size = {config.train.batch_size} < 1")
    return builder(config)


def _autoencoder(config: ConfigDict) -> Experiment:
    network = build.autoencoder(config.autoencoder)
    build.check_pixels(config, network.factor)
    data = source(config, "train")  # before anything is downloaded
    loss, frozen = dict(config.loss), {}
    path = loss.pop("lpips_weights")
    if loss["perceptual_weight"]:
        loss["perceptual"] = LPIPS()
        frozen["lpips"] = load_lpips(path)
    stage = stage1.make_stage(
        network,
        build.optimizer(config),
        image_size_px=config.data.size_px,
        adversary=build.adversary(config),
        objective=build.construct(stage1.Objective, loss, "loss"),
        ema_decay=config.train.ema_decay,
    )
    return _with_data(config, stage, frozen, data, transform(config))


def _diffusion(config: ConfigDict) -> Experiment:
    codec, codec_params = build.first_stage(config)
    frozen = build.frozen(config, codec_params)
    build.check_pixels(config, codec.factor)
    latent_shape = codec.latent_shape(config.data.size_px, config.data.size_px)
    check_extent(latent_shape[:2], len(config.unet.width_mults) - 1)
    row, held_out = transform(config), None
    data = source(config, "train")
    cached = config.data.cache_latents
    if cached or needs_scale(config):
        rows = None if cached else SCALE_SAMPLE_IMAGES
        data_latents = encode(codec, codec_params, data, row, limit=rows)
        if needs_scale(config):
            codec = measure_scale(config, codec, data_latents["moments"])
    if cached:
        data = sources.ArraySource(data_latents)
        held_out = sources.ArraySource(
            encode(codec, codec_params, source(config, "validation"), row)
        )
        row = identity
    networks = build.model(config, codec)
    example = next(iter(data_pipeline.batches_once(data, row, batch_size=1)))
    example.pop("weight")
    stage = stage2.make_stage(
        networks,
        build.optimizer(config),
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
    initial = initial_params(config, stage)
    return Experiment(config, stage, frozen, iterator, eval_batches, example, initial)


def initial_params(config: ConfigDict, stage: Stage) -> dict:
    """The parameters of config.init_from by path: those of a trained model.

    only: the beginnings of paths to take, such as ("unet",); empty takes everything.
    UserError with three lists unless these cover the network, or its named part,
    exactly, and for a name that is in neither.
    """
    section = config.get("init_from", {})
    if not section.get("path", ""):
        return {}
    _, params = build.load_trained(section.path)
    abstract = jax.eval_shape(stage.init, jax.random.key(0)).params
    wanted, given = (flatten_dict(tree, sep="/") for tree in (abstract, params))
    for name in section.only:
        if not any(inside(path, (name,)) for path in wanted):
            raise UserError(
                f"config.init_from.only: nothing lies below {name!r}; the network has "
                + ", ".join(sorted({path.split("/")[0] for path in wanted}))
            )
    if section.only:
        wanted, given = (
            {path: leaf for path, leaf in tree.items() if inside(path, section.only)}
            for tree in (wanted, given)
        )
    weights.check_cover(given, wanted, what=section.path)
    log.info("starting from %s: %d of its arrays", section.path, len(given))
    return given


def inside(path: str, roots: Sequence[str]) -> bool:
    """True if a path "a/b/c" is one of `roots` or lies below one."""
    return any(path == root or path.startswith(f"{root}/") for root in roots)
