"""The discriminator's side of stage 1: its state, its step, what the decoder feels.

    discriminator  hinge or vanilla loss of D(x) against D(x_hat)
    decoder        -mean D(x_hat), as a cotangent of x_hat

One forward pass of D on x_hat serves both. Before `start_steps` D sleeps: it neither
runs nor moves, inside the same compiled step. Losses are in `losses`, the balance of
the decoder's two gradients in `training.autoencoder`.
"""

import dataclasses
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from lDM_jax.core.arrays import Array, Scalars
from lDM_jax.diffusion import losses
from lDM_jax.models.discriminator import PatchDiscriminator


@flax.struct.dataclass
class Player:
    """The discriminator: variables ("params" and, with batch norm, "batch_stats")."""

    variables: dict
    opt_state: optax.OptState


class Turn(NamedTuple):
    """What a turn gives: the new player, d(-mean D) / d x_hat, and scalars."""

    player: Player
    x_hat_bar: Array
    scalars: Scalars


@dataclasses.dataclass(frozen=True)
class Adversary:
    """The discriminator and how it is trained.

    start_steps: the update it wakes at; weight: factor of the adaptive weight; factor:
    of both players' adversarial losses; loss: "hinge" or "vanilla".
    """

    network: PatchDiscriminator
    optimizer: optax.GradientTransformation
    start_steps: int = 0
    weight: float = 1.0
    factor: float = 1.0
    loss: str = "hinge"

    def __post_init__(self):
        losses.check_kind(self.loss, losses.ADVERSARIAL_LOSSES)

    def init(self, key: Array, x: Array) -> Player:
        """Random parameters for images like x."""
        variables = self.network.init(key, x)
        return Player(variables, self.optimizer.init(variables["params"]))

    def turn(self, player: Player, x: Array, x_hat: Array, *, awake: Array) -> Turn:
        """One update, and what the decoder feels; nothing and zeros while asleep."""

        def asleep(player, x, x_hat):
            shapes = jax.eval_shape(self._turn, player, x, x_hat)
            return jax.tree.map(jnp.zeros_like, shapes)._replace(player=player)

        return jax.lax.cond(awake, self._turn, asleep, player, x, x_hat)

    def _turn(self, player: Player, x: Array, x_hat: Array) -> Turn:
        params, stats = _split(player.variables)
        fake, fake_back, stats = jax.vjp(
            lambda p, x: self._judge(p, stats, x), params, x_hat, has_aux=True
        )
        real, real_back, stats = jax.vjp(
            lambda p: self._judge(p, stats, x), params, has_aux=True
        )
        generator, generator_bar = jax.value_and_grad(losses.generator_loss)(fake)
        loss, (real_bar, fake_bar) = jax.value_and_grad(
            lambda real, fake: losses.discriminator_loss(real, fake, self.loss), (0, 1)
        )(real, fake)
        bars = real_back(real_bar)[0], fake_back(fake_bar)[0]
        grads = jax.tree.map(lambda a, b: self.factor * (a + b), *bars)
        updates, opt_state = self.optimizer.update(grads, player.opt_state, params)
        params = optax.apply_updates(params, updates)
        scalars = {"gen": generator, "disc": loss, "disc_gnorm": optax.tree.norm(grads)}
        player = Player({"params": params, **stats}, opt_state)
        return Turn(player, fake_back(generator_bar)[1], scalars | _reading(real, fake))

    def _judge(self, params: dict, stats: dict, x: Array) -> tuple[Array, dict]:
        """(logits, batch statistics), normalized by this batch."""
        logits, stats = self.network.apply(
            {"params": params, **stats}, x, True, mutable=["batch_stats"]
        )
        return logits, dict(stats)

    def reading(self, player: Player, x: Array, x_hat: Array) -> Scalars:
        """Mean logits and accuracy on images, without an update."""
        params, stats = _split(player.variables)
        real, fake = (self._judge(params, stats, images)[0] for images in (x, x_hat))
        return _reading(real, fake)


def _split(variables: dict) -> tuple[dict, dict]:
    stats = {name: tree for name, tree in variables.items() if name != "params"}
    return variables["params"], stats


def _reading(real: Array, fake: Array) -> Scalars:
    right = 0.5 * ((real > 0).mean() + (fake < 0).mean())
    return {"logit_real": real.mean(), "logit_fake": fake.mean(), "disc_acc": right}
