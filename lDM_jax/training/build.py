"""Config -> what training needs beside the networks: optimizer and adversary."""

from ml_collections import ConfigDict

from lDM_jax.from_config.networks import construct
from lDM_jax.models.discriminator import PatchDiscriminator
from lDM_jax.training.adversary import Adversary
from lDM_jax.training.optim import make_optimizer


def optimizer(config: ConfigDict):
    """The optax chain of config.optimizer."""
    section = dict(config.optimizer)
    section["clip_norm"] = section["clip_norm"] or None
    section["decay_mask"] = section.get("decay_mask") or "all"
    return make_optimizer(num_steps=config.train.num_steps, **section)[0]


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
