"""Config -> shapes: first stage, parameters, frozen networks and batches, all abstract.

Nothing is read but settings, nothing is allocated. What `train.py --dry_run` counts,
what `tools.compile_report` compiles and what loaded weights must cover is made here;
`networks` makes the same with numbers.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lDM_jax.core.arrays import Batch
from lDM_jax.data.latents_cache import read_plan
from lDM_jax.diffusion.codec import Codec
from lDM_jax.diffusion.latent_diffusion import LatentDiffusion
from lDM_jax.from_config import networks
from lDM_jax.from_config.task_settings import task_of, task_settings
from lDM_jax.models.autoencoder import Identity
from lDM_jax.tasks.registry import example_shapes


def random_key() -> jax.ShapeDtypeStruct:
    """A random key."""
    return jax.eval_shape(lambda: jax.random.key(0))


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    """An f32 array."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def images(config: ConfigDict, channels: int = 3) -> jax.ShapeDtypeStruct:
    """A batch of one image of the config's size."""
    return floats(1, config.data.size_px, config.data.size_px, channels)


def first_stage(config: ConfigDict) -> tuple[Codec, dict]:
    """(codec, parameters), as `networks.first_stage`."""
    codec = networks.abstract_codec(config)
    stored = networks.stored_first_stage(config).get("latent_scale", 0.0)
    scale = config.first_stage.scale or stored or 1.0
    scale = tuple(scale) if isinstance(scale, list | tuple) else scale
    codec = dataclasses.replace(codec, scale=scale)
    if isinstance(codec.autoencoder, Identity):
        return codec, {}
    return codec, jax.eval_shape(codec.autoencoder.init, random_key(), images(config))


def conditions(config: ConfigDict) -> Batch:
    """The conditions of one row of a batch."""
    return example_shapes(task_of(config), task_settings(config), rows=1)


def second_stage_batch(config: ConfigDict, codec: Codec, codec_params: dict) -> Batch:
    """One row of what a second stage trains on: image or moments, and conditions."""
    batch, image = conditions(config), images(config)
    in_files = config.data.source == "latents"
    if not (in_files or config.data.cache_latents):
        return {"image": image, **batch}
    batch["moments"] = jax.eval_shape(codec.moments, codec_params, image)
    if in_files and "text_tower" in read_plan(config.data.path).transform:
        for tower in networks.towers(config):
            rows = batch[tower.reads].shape
            batch[tower.writes] = floats(*rows, tower.network.width)
    return batch


def frozen(config: ConfigDict, codec_params: dict) -> dict:
    """Everything of a second stage that does not train, as `networks.frozen`."""
    trees, batch = {"first_stage": codec_params}, conditions(config)
    for tower in networks.towers(config):
        tokens = batch[tower.reads]
        trees[tower.name] = jax.eval_shape(tower.network.init, random_key(), tokens)
    return trees


def params(config: ConfigDict, model: LatentDiffusion) -> dict[str, Any]:
    """The parameters of a second stage."""
    side = config.data.size_px
    z0 = floats(1, *model.codec.latent_shape(side, side))
    return jax.eval_shape(model.init, random_key(), conditions(config), z0)
