"""Stage 1: the autoencoder as a `Stage`.

    x_hat = decode(posterior sample, or quantized latents)
    loss  = rec(x_hat, x) + w (-mean D(x_hat)) + KL or codebook term
    w     = weight * adaptive_weight(d rec / d K, d (-mean D) / d K),  K: last kernel

The discriminator (`training.adversary`) moves in the same step on the same x_hat; the
original runs the autoencoder a second time for it, after the autoencoder's update.
`frozen` holds the perceptual network's variables under "lpips". Source: Rombach et al.
2022, appendix G; Esser et al. 2021, section 3.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable
from functools import cached_property
from itertools import chain

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lDM_jax.core import image, rng
from lDM_jax.core.arrays import Array, Batch, Scalars
from lDM_jax.core.distributed import whole
from lDM_jax.core.errors import UserError
from lDM_jax.diffusion import losses
from lDM_jax.models.autoencoder import Autoencoder, DiagonalGaussian, Quantized
from lDM_jax.training.accumulation import mean_of_parts
from lDM_jax.training.adversary import Adversary, Player
from lDM_jax.training.codebook import CodeAverages, code_usage, update_codebook
from lDM_jax.training.state import Averages, TrainState, norms

log = logging.getLogger(__name__)
DEAD_USAGE = 0.1
BLIND_GAP = 0.02
BEATEN_ACCURACY, BEATEN_GAP = 0.98, 6.0


@flax.struct.dataclass
class AutoencoderState(TrainState):
    """`TrainState`, the discriminator, and a codebook's averages; None where unused."""

    discriminator: Player | None = None
    codes: CodeAverages | None = None


@dataclasses.dataclass(frozen=True)
class Objective:
    """What the autoencoder minimizes besides the game.

    perceptual: the LPIPS module or None. codebook_decay above 0 moves the codebook by
    averages and not by gradients, restart_below above 0 restarts dead codes
    (`training.codebook`).
    """

    pixel_loss: str = "l1"
    kl_weight: float = 1e-6
    codebook_weight: float = 1.0
    codebook_decay: float = 0.0
    restart_below: float = 0.0
    perceptual: nn.Module | None = None
    perceptual_weight: float = 1.0

    def __post_init__(self):
        losses.check_kind(self.pixel_loss)

    def reconstruction(self, frozen: dict, x_hat: Array, x: Array, *, is_kl: bool):
        """(loss, scalars): pixels and LPIPS, summed (KL) or averaged (VQ)."""
        lpips = None
        if self.perceptual is not None:
            lpips = self.perceptual.apply(frozen["lpips"], x_hat, x)
        return losses.reconstruction_loss(
            x_hat,
            x,
            reduction="sum" if is_kl else "mean",
            pixel_loss=self.pixel_loss,
            perceptual=lpips,
            perceptual_weight=self.perceptual_weight,
        )

    def latent_term(self, latent: DiagonalGaussian | Quantized) -> Array:
        """kl_weight KL, or codebook_weight times the codebook term."""
        if isinstance(latent, DiagonalGaussian):
            return self.kl_weight * latent.kl().mean()
        loss = latent.commitment if self.codebook_decay > 0 else latent.loss
        return self.codebook_weight * loss


@dataclasses.dataclass(frozen=True, eq=False)
class AutoencoderStage:
    """The autoencoder's `Stage`; without an adversary, the plain autoencoder.

    accumulate_steps: parts of a batch whose gradients are computed one after another.
    UserError where a part is not enough: the adversary's batch norm and its adaptive
    weight, and a codebook's averages, are of the whole batch.
    """

    network: Autoencoder
    optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    image_size_px: int
    objective: Objective = Objective()
    adversary: Adversary | None = None
    averages: Averages = Averages()
    accumulate_steps: int = 1

    def __post_init__(self):
        alone = self.adversary is None and not self.averages_codes
        if self.accumulate_steps > 1 and not alone:
            raise UserError(
                f"config.train.accumulate_steps = {self.accumulate_steps}: a "
                "discriminator and a codebook's averages need the whole batch at once; "
                "valid: 1, or discriminator.factor=0 with loss.codebook_decay=0, "
                "restart_below=0"
            )

    @property
    def averages_codes(self) -> bool:
        """Whether the state carries `CodeAverages`."""
        moved = self.objective.codebook_decay > 0 or self.objective.restart_below > 0
        return moved and not self.network.is_kl

    def init(self, key: Array) -> AutoencoderState:
        """Random parameters of all players."""
        side = self.image_size_px
        x = jnp.zeros((1, side, side, self.network.image_channels))
        plain = TrainState.create(self.network.init(key, x), self.optimizer)
        player = codes = None
        if self.adversary is not None:
            player = self.adversary.init(rng.stream(key, "discriminator"), x)
        if self.averages_codes:
            codes = CodeAverages.start(codebook_of(plain.params))
        return AutoencoderState(**vars(plain), discriminator=player, codes=codes)

    def step(self, state: AutoencoderState, frozen, batch: Batch, key: Array):
        """One update of the autoencoder, the discriminator and the codebook."""
        x, parts = batch["image"], self.accumulate_steps
        rows = {"image": x}
        if self.network.is_kl:  # of the whole batch, whatever its parts
            extent = (side // self.network.factor for side in x.shape[1:3])
            shape = (len(x), *extent, self.network.latent_channels)
            rows["eps"] = jax.random.normal(rng.stream(key, "latent"), shape)

        def part(rows, index):
            own = key if parts == 1 else jax.random.fold_in(key, index)
            return self._gradients(state, frozen, rows, own)

        grads, (scalars, player, taken) = mean_of_parts(part, rows, parts)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params, codes = optax.apply_updates(state.params, updates), state.codes
        if self.averages_codes:
            # what gradients do not move: averages, dead codes
            codes, codebook = update_codebook(
                codes,
                codebook_of(params),
                *taken,
                rng.stream(key, "codes"),
                decay=self.objective.codebook_decay or 0.99,
                by_average=self.objective.codebook_decay > 0,
                restart_below=self.objective.restart_below,
            )
            params = with_codebook(params, codebook)
        state = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            discriminator=player,
            codes=codes,
            **self.averages.update(state, params),
        )
        return state, scalars | norms(grads, params, updates)

    def _gradients(self, state: AutoencoderState, frozen, rows: dict, key: Array):
        """(gradients, (scalars, the discriminator's next state, latents and codes)).

        The last are None where no codebook is averaged.
        """
        network, objective, x = self.network, self.objective, rows["image"]

        # 1. forward, and the cotangent of x_hat from the reconstruction
        def forward(params):
            x_hat, latent, z = reconstruct(network, params, x, key, rows.get("eps"))
            return (x_hat, objective.latent_term(latent)), (latent, z)

        (x_hat, term), pullback, (latent, z) = jax.vjp(
            forward, state.params, has_aux=True
        )
        (rec, scalars), x_hat_bar = jax.value_and_grad(
            lambda x_hat: objective.reconstruction(
                frozen, x_hat, x, is_kl=network.is_kl
            ),
            has_aux=True,
        )(x_hat)
        loss, player = rec + term, state.discriminator

        # 2. the game. Two pullbacks for one kernel are cheap: XLA drops the rest
        if self.adversary is not None:
            awake = state.step >= self.adversary.start_steps
            player, game_bar, game = self.adversary.turn(player, x, x_hat, awake=awake)
            bars = (x_hat_bar, game_bar)
            trees = [pullback((bar, jnp.zeros_like(term)))[0]["params"] for bar in bars]
            kernels = [tree["decoder"]["conv_out"]["kernel"] for tree in trees]
            scale = jnp.where(awake, self.adversary.weight * self.adversary.factor, 0.0)
            weight = scale * losses.adaptive_weight(*kernels)
            x_hat_bar = x_hat_bar + weight * game_bar
            loss = loss + weight * game["gen"]
            scalars |= {**game, "adv_weight": weight}

        # 3. one backward pass for the sum
        (grads,) = pullback((x_hat_bar, jnp.ones_like(term)))
        scalars |= {**latent_scalars(network, latent), "loss": loss}
        taken = (z, latent.codes) if self.averages_codes else None
        return grads, (scalars, player, taken)

    def preview(self, state: AutoencoderState, frozen, batch: Batch, key: Array):
        """Images above their reconstructions, by the EMA."""
        del frozen, key
        x = np.asarray(batch["image"][:8])
        x_hat = self._reconstruct(state.ema, x)
        rows = np.concatenate([image.to_uint8(x), image.to_uint8(whole(x_hat))])
        return {"reconstruction": image.grid(rows, columns=len(x))}

    def evaluate(self, state: AutoencoderState, frozen, batches: Iterable[Batch]):
        """PSNR and L1 of held-out images by the EMA, and whether a player collapses."""
        del frozen
        batches, run = iter(batches), self._reconstruct
        first = next(batches)  # usage and logits are read off one batch
        x = jnp.asarray(first["image"][np.asarray(first["weight"]) > 0])
        figures = evaluate_reconstruction(run, state.ema, chain([first], batches))
        if not self.network.is_kl:
            figures["code_usage"] = held_out_usage(self.network, state.ema, x)
        if self.adversary and int(state.step) >= self.adversary.start_steps:
            logits = self._logits(state.discriminator, x, run(state.ema, x))
            figures |= {name: float(whole(value)) for name, value in logits.items()}
        for line in diagnose(figures):
            log.warning("%s", line)
        return figures

    @cached_property
    def _reconstruct(self):
        """(parameters, x) -> x_hat without sampling, compiled."""
        return jax.jit(self.network.apply)

    @cached_property
    def _logits(self):
        """(player, x, x_hat) -> `Adversary.reading`, compiled."""
        return jax.jit(self.adversary.reading)


def reconstruct(network: Autoencoder, params, x: Array, key: Array, eps: Array | None):
    """(x_hat, latent, z) as in training: a posterior sample, or quantized latents.

    latent: `DiagonalGaussian` or `Quantized`; z: the decoder's input, before
    quantization for VQ. eps: the noise of a KL posterior's sample.
    """

    def run(net: Autoencoder, x: Array):
        moments = net.moments(x, train=True)
        if net.is_kl:
            latent = DiagonalGaussian.from_moments(moments)
            z = latent.mean + jnp.exp(0.5 * latent.logvar) * eps
            return net.decode(z, train=True), latent, z
        latent = net.quantize(moments)
        return net.decode(latent.z, train=True), latent, moments

    dropout = {"dropout": rng.stream(key, "dropout")}
    return network.apply(params, x, method=run, rngs=dropout)


def codebook_of(params: dict) -> Array:
    """The codebook "k c" of a VQ stage's parameters."""
    return params["params"]["quantizer"]["codebook"]


def with_codebook(params: dict, codebook: Array) -> dict:
    """The same parameters with another codebook."""
    inner = {**params["params"], "quantizer": {"codebook": codebook}}
    return {**params, "params": inner}


def latent_scalars(network: Autoencoder, latent) -> Scalars:
    """KL in nats an image; or the codebook term, perplexity and usage of a batch."""
    if network.is_kl:
        return {"kl": latent.kl().mean()}
    perplexity, usage = code_usage(latent.codes, network.num_codes)
    return {"codebook": latent.loss, "perplexity": perplexity, "code_usage": usage}


def held_out_usage(network: Autoencoder, params, x: Array) -> float:
    """Codes that x uses, as a share of those it could: min(codes, positions)."""
    codes = network.apply(
        params, x, method=lambda net, x: net.quantize(net.moments(x)).codes
    )
    return len(np.unique(whole(codes))) / min(network.num_codes, codes.size)


def diagnose(figures: dict[str, float]) -> list[str]:
    """A line for each collapse that held-out figures show.

    figures: code_usage (share of the codes that could have been used), logit_real,
    logit_fake, disc_acc, as far as the stage has them.
    """
    lines = []
    usage = figures.get("code_usage", 1.0)
    if usage < DEAD_USAGE:
        lines.append(
            f"codebook collapse: held-out images use {usage:.1%} of the codes they "
            "could; set loss.restart_below=0.01, or loss.codebook_decay=0.99"
        )
    if "disc_acc" not in figures:
        return lines
    gap = figures["logit_real"] - figures["logit_fake"]
    if abs(gap) < BLIND_GAP:
        lines.append(
            f"the discriminator sees no difference (logits {gap:.3f} apart): usual "
            "in the first thousand steps after it wakes; if it stays, raise the "
            "learning rate or discriminator.width"
        )
    if figures["disc_acc"] > BEATEN_ACCURACY and gap > BEATEN_GAP:
        lines.append(
            f"the discriminator wins everywhere (accuracy {figures['disc_acc']:.1%}, "
            f"logits {gap:.1f} apart): the decoder learns little from it; start it "
            "later (discriminator.start_steps), narrow it (discriminator.width), or "
            "lower discriminator.weight if reconstructions get worse"
        )
    return lines


def evaluate_reconstruction(
    run: Callable, params, batches: Iterable[Batch]
) -> dict[str, float]:
    """Mean PSNR (dB) and L1 over `batches`, rows weighted by batch["weight"]."""
    total, count = {"psnr": 0.0, "l1": 0.0}, 0.0
    for batch in batches:
        x, weight = jnp.asarray(batch["image"]), np.asarray(batch["weight"])
        x_hat = whole(run(params, x))
        l1 = jnp.abs(jnp.clip(x_hat, -1, 1) - x).mean(axis=(1, 2, 3))
        total["psnr"] += float(weight @ np.asarray(losses.psnr(x_hat, x)))
        total["l1"] += float(weight @ np.asarray(l1))
        count += float(weight.sum())
    return {name: value / count for name, value in total.items()}
