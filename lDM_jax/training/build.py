"""Config -> what training runs: the stage, with its optimizer and its adversary.

`stage` builds what train.py trains, what `--dry_run` counts and what compile_report
compiles: `abstract_run` adds the shapes of what the stage is called with.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from lDM_jax.core.arrays import Batch
from lDM_jax.diffusion.codec import Codec
from lDM_jax.diffusion.process import make_process
from lDM_jax.from_config import abstract, networks
from lDM_jax.models.discriminator import PatchDiscriminator
from lDM_jax.models.lpips import LPIPS
from lDM_jax.models.unet import check_extent
from lDM_jax.training.adversary import Adversary
from lDM_jax.training.autoencoder import AutoencoderStage, Objective
from lDM_jax.training.classifier import ClassifierStage
from lDM_jax.training.diffusion import DiffusionStage, PreviewSettings
from lDM_jax.training.optim import make_optimizer
from lDM_jax.training.state import Averages, Stage


class AbstractRun(NamedTuple):
    """A stage, and the shapes of its frozen networks and of one row of its batches."""

    stage: Stage
    frozen: dict[str, Any]
    batch: Batch

    @property
    def state(self) -> Any:
        """The shapes of what training carries."""
        return jax.eval_shape(self.stage.init, abstract.random_key())


def abstract_run(config: ConfigDict) -> AbstractRun:
    """What train.py would run, without data and weights."""
    if config.stage == "autoencoder":
        built = autoencoder_stage(config)
        x, frozen = abstract.images(config, built.network.image_channels), {}
        if built.objective.perceptual is not None:
            lpips = built.objective.perceptual
            frozen["lpips"] = jax.eval_shape(lpips.init, abstract.random_key(), x, x)
        return AbstractRun(built, frozen, {"image": x})
    make = networks.lookup(SECOND_STAGES, config.stage, "config.stage")
    codec, codec_params = abstract.first_stage(config)
    return AbstractRun(
        make(config, codec),
        abstract.frozen(config, codec_params),
        abstract.second_stage_batch(config, codec, codec_params),
    )


def autoencoder_stage(config: ConfigDict) -> AutoencoderStage:
    """Stage 1. UserError for sizes and sections that do not fit."""
    network = networks.autoencoder(config.autoencoder)
    networks.check_pixels(config, network.factor)
    loss = dict(config.loss)
    loss.pop("lpips_weights")
    if loss["perceptual_weight"]:
        loss["perceptual"] = LPIPS()
    return AutoencoderStage(
        network,
        image_size_px=config.data.size_px,
        objective=networks.construct(Objective, loss, "loss"),
        adversary=adversary(config),
        **common(config),
    )


def diffusion_stage(config: ConfigDict, codec: Codec) -> DiffusionStage:
    """The denoiser's stage. UserError for sizes and sections that do not fit."""
    loss = {key: value for key, value in config.loss.items() if key != "log_variance"}
    names = ("steps", "guidance", "sampler", "spacing")
    return DiffusionStage(
        networks.model(config, codec),
        conditions=abstract.conditions(config),
        latent_shape=latent_shape(config, codec),
        previews=PreviewSettings(**{key: config.sample[key] for key in names}),
        **common(config),
        **loss,
    )


def classifier_stage(config: ConfigDict, codec: Codec) -> ClassifierStage:
    """The stage of a classifier of noisy latents."""
    return ClassifierStage(
        networks.classifier(config),
        make_process(**config.process),
        codec,
        latent_shape=latent_shape(config, codec),
        **common(config),
    )


SECOND_STAGES = {"diffusion": diffusion_stage, "classifier": classifier_stage}


def latent_shape(config: ConfigDict, codec: Codec) -> tuple[int, int, int]:
    """(h, w, c) of the latents. UserError unless the UNet can halve them."""
    networks.check_pixels(config, codec.factor)
    shape = codec.latent_shape(config.data.size_px, config.data.size_px)
    check_extent(shape[:2], len(config.unet.width_mults) - 1)
    return shape


def common(config: ConfigDict) -> dict[str, Any]:
    """What all stages have: optimizer, averages of the parameters, parts of a batch.

    A field of `Averages` is config.train's "ema_" and its name.
    """
    train = config.train
    names = [field.name for field in dataclasses.fields(Averages)]
    asked = {name: train[f"ema_{name}"] for name in names if f"ema_{name}" in train}
    return dict(
        optimizer=optimizer(config),
        averages=Averages(**asked),
        accumulate_steps=train.accumulate_steps,
    )


def optimizer(config: ConfigDict):
    """The optax chain of config.optimizer."""
    section = dict(config.optimizer)
    section["clip_norm"] = section["clip_norm"] or None
    section["decay_mask"] = section["decay_mask"] or "all"
    return make_optimizer(num_steps=config.train.num_steps, **section)[0]


def adversary(config: ConfigDict) -> Adversary | None:
    """The discriminator of config.discriminator; None where its factor is 0."""
    section = dict(config.discriminator)
    game = {key: section.pop(key) for key in ("start_steps", "weight", "factor")}
    kind = section.pop("loss")
    if not game["factor"]:
        return None
    network = networks.construct(PatchDiscriminator, section, "discriminator")
    network.check_size(config.data.size_px)
    return Adversary(network, optimizer(config), **game, loss=kind)
