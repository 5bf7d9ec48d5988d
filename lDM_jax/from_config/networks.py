"""Config -> objects: explicit tables, and every cross-check between sections.

The only reader of configs. A section is exactly its constructor's keyword arguments,
with 0 or "" standing for "not set" where ml_collections needs a typed default.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lDM_jax.core.errors import UserError
from lDM_jax.diffusion.codec import Codec
from lDM_jax.diffusion.latent_diffusion import LatentDiffusion, Tower
from lDM_jax.diffusion.process import make_process
from lDM_jax.from_config import older
from lDM_jax.from_config.task_settings import task_of, task_settings
from lDM_jax.models.autoencoder import Autoencoder, Identity
from lDM_jax.models.conditioners import Conditioner
from lDM_jax.models.construct import construct, lookup
from lDM_jax.models.latent_classifier import LatentClassifier
from lDM_jax.models.unet import REMAT_POLICIES, UNet
from lDM_jax.weights import checkpoint
from lDM_jax.weights import directory as weights_directory


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
    depth = section["transformer_depth"]
    if not isinstance(depth, int):
        section["transformer_depth"] = tuple(depth)
        if len(depth) != len(section["width_mults"]):
            raise UserError(
                f"config.unet.transformer_depth = {tuple(depth)}: give one number, or "
                f"one for each of the {len(section['width_mults'])} levels"
            )
    if "remat_policy" in section:
        lookup(REMAT_POLICIES, section["remat_policy"], "config.unet.remat_policy")
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


def tokenizer(config: ConfigDict) -> Callable | None:
    """What turns the texts (or boxes) of a task into tokens, None without any."""
    return task_settings(config).tokenizer


def towers(config: ConfigDict) -> tuple[Tower, ...]:
    """The frozen text towers of a config, without their weights."""
    task = task_of(config)
    return task.towers(task_settings(config)) if task.towers else ()


def tower_params(config: ConfigDict, tower: Tower) -> dict:
    """The parameters at config.<name>.path of a tower; initial ones for "random"."""
    path, key = config[tower.name].path, jax.random.key(0)
    tokens = jnp.zeros((1, len(tower.null_tokens)), jnp.int32)
    if path == "random":
        return jax.jit(tower.network.init)(key, tokens)
    if not path:
        raise UserError(
            f"config.{tower.name}.path is empty: give the weights directory of a text "
            "tower (python -m lDM_jax.tools.convert makes one)"
        )
    _, params = weights_directory.load(weights_directory.resolve(path))
    shapes = jax.eval_shape(tower.network.init, key, tokens)
    weights_directory.check_cover(params, shapes, what=path)
    return params


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
    scale = section.scale or stored_scale(stored) or 1.0
    several = isinstance(scale, list | tuple)
    scale = tuple(map(float, scale)) if several else float(scale)
    return Codec(network, scale), params


def stored_scale(config: ConfigDict) -> float | list:
    """The latent scale that is noted beside a first stage; 0 where it is not known."""
    return config.get("latent_scale", 0.0)


def stored_first_stage(config: ConfigDict) -> dict:
    """What lies beside the weights that config.first_stage.path names; else nothing."""
    if config.first_stage.path in ("", "identity", "random"):
        return {}
    path = weights_directory.resolve(config.first_stage.path)
    return weights_directory.read_config(path)


def frozen(config: ConfigDict, first_stage_params: dict) -> dict:
    """Everything of a second stage that does not train (see `LatentDiffusion`)."""
    own = {tower.name: tower_params(config, tower) for tower in towers(config)}
    return {"first_stage": first_stage_params, **own}


def abstract_codec(config: ConfigDict) -> Codec:
    """The codec without parameters; without a path, of config.first_stage.network."""
    section = config.first_stage
    if section.path == "identity":
        return Codec(Identity())
    if section.path == "random":
        return Codec(random_network())
    if section.path:
        stored = stored_first_stage(config)
        return Codec(autoencoder(stored.get("config", stored)["autoencoder"]))
    if not section.network:
        raise UserError("config.first_stage has neither a path nor a network")
    return Codec(autoencoder(section.network))


def random_network() -> Autoencoder:
    """The tiny untrained first stage of the `:smoke` size, f = 4."""
    return Autoencoder(8, (1, 1, 1), 1, z_channels=3, latent_channels=3, num_groups=4)


def load_trained(name: str) -> tuple[ConfigDict, dict]:
    """(config, EMA parameters) of a shipped name, weights or work directory."""
    path = weights_directory.resolve(name)
    if not weights_directory.is_weights_directory(path):
        stored = weights_directory.read_config(path)
        stored = older.complete(stored.get("config", stored))
        return ConfigDict(stored), checkpoint.load_ema(path)
    stored, params = weights_directory.load(path)
    return in_place(stored, path), params


def in_place(stored: dict, path: Path) -> ConfigDict:
    """The config of a weights directory; "./" at the beginning of a path means it."""
    config = ConfigDict(older.complete(stored))
    for section in ("first_stage", "text"):
        inner = config.get(section, {}).get("path", "")
        if inner.startswith("./"):
            config[section].path = str(path / inner)
    return config


def model(config: ConfigDict, codec: Codec) -> LatentDiffusion:
    """The second stage's networks and process."""
    derive = task_of(config).derive
    return LatentDiffusion(
        denoiser=unet(config.unet, out_channels=codec.channels),
        conditioner=conditioner(config),
        process=make_process(**config.process),
        codec=codec,
        towers=towers(config),
        log_variance=config.loss.log_variance,
        derived=derive(codec) if derive else (),
    )


def classifier(config: ConfigDict) -> LatentClassifier:
    """The network of stage "classifier": config.unet's way down, config.num_classes."""
    if config.num_classes < 2 or config.unet.context_width:
        raise UserError(
            f"a classifier needs config.num_classes ({config.num_classes}) of two or "
            "more and config.unet.context_width = 0"
        )
    network = unet(config.unet, out_channels=config.num_classes)
    names = {field.name for field in dataclasses.fields(network)} - {"parent", "name"}
    return LatentClassifier(**{name: getattr(network, name) for name in names})


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
    """The conditioner of the config's task. UserError unless the UNet reads it."""
    conditions = task_of(config).conditions(task_settings(config))
    return Conditioner(
        routes=tuple((one.key, one.encoder, one.field) for one in conditions),
        encoders={one.encoder: one.network for one in conditions},
    )


def check_pixels(config: ConfigDict, factor: int) -> None:
    """UserError unless the first stage can halve config.data.size_px."""
    size = config.data.size_px
    if size < factor or size % factor:
        raise UserError(
            f"config.data.size_px = {size} must be a multiple of the first stage's "
            f"factor {factor}"
        )
