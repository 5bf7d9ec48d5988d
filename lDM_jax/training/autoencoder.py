"""Stage 1: the autoencoder's init, step, preview and evaluate, as a `Stage`.

    x_hat = decode(posterior sample, or quantised latents)
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
from lDM_jax.training.accumulation import mean_gradients
from lDM_jax.training.adversary import Adversary, Player
from lDM_jax.training.codebook import CodeAverages, code_usage, update_codebook
from lDM_jax.training.gan_health import diagnose
from lDM_jax.training.state import Averages, Stage, TrainState, apply_gradients, norms

log = logging.getLogger(__name__)


@flax.struct.dataclass
class AutoencoderState(TrainState):
    """`TrainState`, the discriminator, and a codebook's averages; None where unused."""

    discriminator: Player | None = None
    codes: CodeAverages | None = None


@dataclasses.dataclass(frozen=True)
class Objective:
    """What the autoencoder minimises besides the game.

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
        moved = latent.commitment if self.codebook_decay > 0 else latent.loss
        return self.codebook_weight * moved

    @property
    def averages_codes(self) -> bool:
        """Whether a VQ stage carries `CodeAverages`."""
        return self.codebook_decay > 0 or self.restart_below > 0


def make_stage(
    network: Autoencoder,
    optimizer: optax.GradientTransformation,
    *,
    image_size_px: int,
    objective: Objective | None = None,
    adversary: Adversary | None = None,
    ema_decay: float = 0.999,
    ema_std: float = 0.0,
    accumulate_steps: int = 1,
) -> Stage:
    """The autoencoder's stage; without an adversary, the plain autoencoder.

    accumulate_steps: parts of a batch whose gradients are computed one after another.
    UserError where a part is not enough: the adversary's batch norm and its adaptive
    weight, and a codebook's averages, are of the whole batch.
    """
    objective = objective or Objective()
    averages_codes = not network.is_kl and objective.averages_codes
    averages = Averages(ema_decay, ema_std)
    if accumulate_steps > 1 and (adversary is not None or averages_codes):
        raise UserError(
            f"config.train.accumulate_steps = {accumulate_steps}: a discriminator and "
            "a codebook's averages need the whole batch at once; valid: 1, or "
            "discriminator.factor=0 with loss.codebook_decay=0, restart_below=0"
        )

    def init(key: Array) -> AutoencoderState:
        side = image_size_px
        x = jnp.zeros((1, side, side, network.image_channels))
        plain = TrainState.create(network.init(key, x), optimizer)
        player = codes = None
        if adversary is not None:
            player = adversary.init(rng.stream(key, "discriminator"), x)
        if averages_codes:
            codes = CodeAverages.start(codebook_of(plain.params))
        return AutoencoderState(**vars(plain), discriminator=player, codes=codes)

    def plain_step(state: AutoencoderState, frozen, batch: Batch, key: Array):
        """`step` without a game and averages, part after part."""
        rows = {"image": batch["image"]}
        if network.is_kl:  # drawn for the whole batch, as `step` draws it
            shape = jax.eval_shape(
                lambda p, x: network.apply(p, x, method="moments"),
                state.params,
                rows["image"],
            ).shape
            shape = (*shape[:-1], shape[-1] // 2)
            rows["eps"] = jax.random.normal(rng.stream(key, "latent"), shape)

        def part_loss(params, rows, index):
            x, own = rows["image"], jax.random.fold_in(key, index)
            x_hat, latent, _ = reconstruct(network, params, x, own, rows.get("eps"))
            term = objective.latent_term(latent)
            rec, scalars = objective.reconstruction(
                frozen, x_hat, x, is_kl=network.is_kl
            )
            loss = rec + term
            scalars |= {**latent_scalars(network, latent), "loss": loss}
            return loss, scalars

        grads, scalars = mean_gradients(part_loss, state.params, rows, accumulate_steps)
        state, norms = apply_gradients(state, grads, optimizer, averages)
        return state, {**scalars, **norms}

    def step(state: AutoencoderState, frozen, batch: Batch, key: Array):
        if accumulate_steps > 1:
            return plain_step(state, frozen, batch, key)
        x, player, codes = batch["image"], state.discriminator, state.codes

        # 1. forward, and the cotangent of x_hat from the reconstruction
        def forward(params):
            x_hat, latent, z = reconstruct(network, params, x, key)
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
        loss = rec + term

        # 2. the game. Two pullbacks for one kernel are cheap: XLA drops the rest
        if adversary is not None:
            awake = state.step >= adversary.start_steps
            player, game_bar, game = adversary.turn(player, x, x_hat, awake=awake)
            kernels = [
                last_kernel(pullback((bar, jnp.zeros_like(term)))[0])
                for bar in (x_hat_bar, game_bar)
            ]
            scale = jnp.where(awake, adversary.weight * adversary.factor, 0.0)
            weight = scale * losses.adaptive_weight(*kernels)
            x_hat_bar = x_hat_bar + weight * game_bar
            loss = loss + weight * game["gen"]
            scalars |= {**game, "adv_weight": weight}

        # 3. one backward pass for the sum
        (grads,) = pullback((x_hat_bar, jnp.ones_like(term)))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        # 4. what gradients do not move: dead codes, averages
        if averages_codes:
            codes, codebook = update_codebook(
                codes,
                codebook_of(params),
                z,
                latent.codes,
                rng.stream(key, "codes"),
                decay=objective.codebook_decay or 0.99,
                by_average=objective.codebook_decay > 0,
                restart_below=objective.restart_below,
            )
            params = with_codebook(params, codebook)
        moved = averages.update(state, params)
        scalars |= latent_scalars(network, latent)
        scalars |= {"loss": loss, **norms(grads, params, updates)}
        done = dict(step=state.step + 1, params=params, opt_state=opt_state, **moved)
        return state.replace(**done, discriminator=player, codes=codes), scalars

    infer = jax.jit(network.apply)
    read = jax.jit(adversary.reading) if adversary else None

    def preview(state: AutoencoderState, frozen, batch: Batch, key: Array):
        del frozen, key
        x = np.asarray(batch["image"][:8])
        x_hat = infer(state.ema, x)
        rows = np.concatenate([image.to_uint8(x), image.to_uint8(whole(x_hat))])
        return {"reconstruction": image.grid(rows, columns=len(x))}

    def evaluate(state: AutoencoderState, frozen, batches: Iterable[Batch]):
        del frozen
        batches = iter(batches)
        first = next(batches)  # usage and logits are read off one batch
        x = jnp.asarray(first["image"][np.asarray(first["weight"]) > 0])
        figures = evaluate_reconstruction(infer, state.ema, chain([first], batches))
        if not network.is_kl:
            figures["code_usage"] = held_out_usage(network, state.ema, x)
        if adversary is not None and int(state.step) >= adversary.start_steps:
            reading = read(state.discriminator, x, infer(state.ema, x))
            figures |= {name: float(whole(value)) for name, value in reading.items()}
        for line in diagnose(figures):
            log.warning("%s", line)
        return figures

    return Stage(init=init, step=step, preview=preview, evaluate=evaluate)


def reconstruct(
    network: Autoencoder, params, x: Array, key: Array, eps: Array | None = None
):
    """(x_hat, latent, z) as in training: a posterior sample, or quantised latents.

    latent: `DiagonalGaussian` or `Quantized`; z: what the decoder was given, before
    quantisation for VQ. eps: the sample's noise, where it is drawn already.
    """

    def run(net: Autoencoder, x: Array):
        moments = net.moments(x, train=True)
        if net.is_kl:
            latent = DiagonalGaussian.from_moments(moments)
            if eps is None:
                z = latent.sample(rng.stream(key, "latent"))
            else:
                z = latent.mean + jnp.exp(0.5 * latent.logvar) * eps
            return net.decode(z, train=True), latent, z
        latent = net.quantize(moments)
        return net.decode(latent.z, train=True), latent, moments

    dropout = {"dropout": rng.stream(key, "dropout")}
    return network.apply(params, x, method=run, rngs=dropout)


def last_kernel(params: dict) -> Array:
    """The kernel of the decoder's last convolution, in a tree like the parameters."""
    return params["params"]["decoder"]["conv_out"]["kernel"]


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
    latent = network.apply(
        params, x, method=lambda net, x: net.quantize(net.moments(x))
    )
    used = len(np.unique(whole(latent.codes)))
    return used / min(network.num_codes, latent.codes.size)


def evaluate_reconstruction(
    infer: Callable, params, batches: Iterable[Batch]
) -> dict[str, float]:
    """Mean PSNR (dB) and L1 over `batches`, rows weighted by batch["weight"]."""
    total = {"psnr": 0.0, "l1": 0.0}
    count = 0.0
    for batch in batches:
        x, weight = jnp.asarray(batch["image"]), np.asarray(batch["weight"])
        x_hat = whole(infer(params, x))
        l1 = jnp.abs(jnp.clip(x_hat, -1, 1) - x).mean(axis=(1, 2, 3))
        total["psnr"] += float(weight @ np.asarray(losses.psnr(x_hat, x)))
        total["l1"] += float(weight @ np.asarray(l1))
        count += float(weight.sum())
    return {name: value / count for name, value in total.items()}
