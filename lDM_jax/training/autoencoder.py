"""Stage 1: the autoencoder's init, step, preview and evaluate, as a `Stage`.

Reconstruction with the KL or the codebook term; parameters and their EMA in
`TrainState`. Knows networks and losses, nothing of configs, data or checkpoints.
"""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lDM_jax import image, losses, rng
from lDM_jax.arrays import Array, Batch, Scalars
from lDM_jax.models.autoencoder import Autoencoder, DiagonalGaussian
from lDM_jax.training.state import Stage, TrainState, ema_update


def make_stage(
    network: Autoencoder,
    optimizer: optax.GradientTransformation,
    *,
    image_size_px: int,
    pixel_loss: str = "l1",
    kl_weight: float = 1e-6,
    codebook_weight: float = 1.0,
    ema_decay: float = 0.999,
) -> Stage:
    """The autoencoder's stage. The loss is in `losses`; `frozen` is unused."""
    losses.check_kind(pixel_loss)
    forward = make_loss(
        network,
        pixel_loss=pixel_loss,
        kl_weight=kl_weight,
        codebook_weight=codebook_weight,
    )

    def init(key: Array) -> TrainState:
        side = image_size_px
        params = network.init(key, jnp.zeros((1, side, side, network.image_channels)))
        return TrainState.create(params, optimizer)

    def step(state: TrainState, frozen, batch: Batch, key: Array):
        del frozen
        grads, scalars = jax.grad(forward, has_aux=True)(
            state.params, batch["image"], key
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        scalars["gnorm"] = optax.tree.norm(grads)
        ema = ema_update(state.ema, params, ema_decay, state.step + 1)
        return TrainState(state.step + 1, params, ema, opt_state), scalars

    reconstruct = jax.jit(network.apply)

    def preview(state: TrainState, frozen, batch: Batch, key: Array):
        del frozen, key
        x = np.asarray(batch["image"][:8])
        x_hat = reconstruct(state.ema, x)
        rows = np.concatenate([image.to_uint8(x), image.to_uint8(x_hat)])
        return {"reconstruction": image.grid(rows, columns=len(x))}

    def evaluate(state: TrainState, frozen, batches: Iterable[Batch]):
        del frozen
        return evaluate_reconstruction(reconstruct, state.ema, batches)

    return Stage(init=init, step=step, preview=preview, evaluate=evaluate)


def make_loss(
    network: Autoencoder, *, pixel_loss: str, kl_weight: float, codebook_weight: float
) -> Callable:
    """(params, x, key) -> (loss, scalars): KL samples the posterior, VQ quantises."""

    def loss(params, x: Array, key: Array) -> tuple[Array, Scalars]:
        sample_key, dropout_key = rng.stream(key, "latent"), rng.stream(key, "dropout")

        def run(net: Autoencoder, x: Array):
            moments = net.moments(x, train=True)
            if net.is_kl:
                posterior = DiagonalGaussian.from_moments(moments)
                z = posterior.sample(sample_key)
                return net.decode(z, train=True), posterior.kl()
            quantized = net.quantize(moments)
            return net.decode(quantized.z, train=True), quantized

        x_hat, latent = network.apply(
            params, x, method=run, rngs={"dropout": dropout_key}
        )
        if network.is_kl:
            total, scalars = losses.kl_autoencoder_loss(
                x_hat, x, kl=latent, kl_weight=kl_weight, pixel_loss=pixel_loss
            )
        else:
            total, scalars = losses.vq_autoencoder_loss(
                x_hat,
                x,
                codebook=latent.loss,
                codebook_weight=codebook_weight,
                pixel_loss=pixel_loss,
            )
            scalars |= code_usage(latent.codes, network.num_codes)
        return total, {"loss": total, **scalars}

    return loss


def code_usage(codes: Array, num_codes: int) -> Scalars:
    """Perplexity exp(H) of the codes in a batch, and the share of codes used."""
    counts = jnp.zeros(num_codes).at[codes.reshape(-1)].add(1.0)
    p = counts / counts.sum()
    entropy = -jnp.sum(p * jnp.log(jnp.maximum(p, 1e-20)))
    return {"perplexity": jnp.exp(entropy), "code_usage": (counts > 0).mean()}


def evaluate_reconstruction(
    reconstruct: Callable, params, batches: Iterable[Batch]
) -> dict[str, float]:
    """Mean PSNR (dB) and L1 over `batches`, rows weighted by batch["weight"]."""
    total = {"psnr": 0.0, "l1": 0.0}
    count = 0.0
    for batch in batches:
        x, weight = jnp.asarray(batch["image"]), np.asarray(batch["weight"])
        x_hat = reconstruct(params, x)
        l1 = jnp.abs(jnp.clip(x_hat, -1, 1) - x).mean(axis=(1, 2, 3))
        total["psnr"] += float(weight @ np.asarray(losses.psnr(x_hat, x)))
        total["l1"] += float(weight @ np.asarray(l1))
        count += float(weight.sum())
    return {name: value / count for name, value in total.items()}
