"""A trained second stage in memory: networks, parameters, what is compiled once.

Owns the path from a name to a model that computes conditions, predictions, latents and
pixels. Holds EMA weights. `pipeline` samples; autoguidance takes a second
`TrainedModel` as its guide.
"""

from functools import cached_property

import jax
from ml_collections import ConfigDict

from lDM_jax.core.errors import UserError
from lDM_jax.diffusion.latent_diffusion import LatentDiffusion
from lDM_jax.from_config import abstract, networks
from lDM_jax.from_config.task_settings import task_settings
from lDM_jax.models.unet import check_extent
from lDM_jax.tasks import registry
from lDM_jax.weights import directory as weights_directory


class TrainedModel:
    """config, model, params and frozen of a second stage; `load` makes one by name."""

    def __init__(
        self, config: ConfigDict, model: LatentDiffusion, params: dict, frozen: dict
    ):
        self.config, self.model = config, model
        self.params, self.frozen = jax.device_put((params, frozen))
        self.task = registry.get_task(config.task)
        self.settings = task_settings(config)
        size = config.data.size_px
        self.latent_shape = model.codec.latent_shape(size, size)

    @classmethod
    def load(cls, name: str) -> "TrainedModel":
        """A work directory, a weights directory, or the name of shipped weights.

        Raises UserError when it is none of these, or does not fit its own config.
        """
        config, params = networks.load_trained(name)
        if config.stage != "diffusion":
            raise UserError(
                f"{name} is of stage {config.stage!r}, which does not draw (a first "
                "stage encodes and decodes); give a model of stage 'diffusion'"
            )
        codec, codec_params = networks.first_stage(config)
        frozen = networks.frozen(config, codec_params)
        trained = cls(config, networks.model(config, codec), params, frozen)
        weights_directory.check_cover(params, trained.abstract_params, what=str(name))
        return trained

    @cached_property
    def abstract_params(self) -> dict:
        """Shapes of the parameters, by tracing the model's init."""
        return abstract.params(self.config, self.model)

    def place(self, sharding) -> None:
        """Put the parameters where the batches will be."""
        self.params, self.frozen = jax.device_put((self.params, self.frozen), sharding)

    def latent_extent(self, height_px: int, width_px: int) -> tuple[int, int, int]:
        """(h, w, c) of a picture's latents. UserError for sides that do not fit."""
        shape = self.model.codec.latent_shape(height_px, width_px)
        check_extent(shape[:2], self.model.denoiser.halvings)
        return shape

    @cached_property
    def condition(self):
        """(params, frozen, batch, drop) -> Cond, compiled."""
        return jax.jit(self.model.condition)

    @cached_property
    def denoise(self):
        """(params, z_t, t, cond) -> prediction, compiled."""
        return jax.jit(self.model.denoise)

    @cached_property
    def decode(self):
        """(first stage's parameters, z0) -> pixels, compiled."""
        return jax.jit(self.model.codec.decode)

    @cached_property
    def moments(self):
        """(first stage's parameters, pixels) -> moments, compiled."""
        return jax.jit(self.model.codec.moments)
