"""What the two stages minimise, as functions of arrays.

Autoencoder: reconstruction + KL or codebook term. Diffusion: weighted squared or
absolute error of the prediction. Weights and reductions follow the original
(shared units: per-image sums where it sums, means where it takes means).
"""

import jax.numpy as jnp

from lDM_jax.arrays import Array, Float, Scalars, UserError, typecheck

PIXEL_LOSSES = ("l1", "l2")


def check_kind(kind: str) -> None:
    """Raise UserError unless `pixel_error` knows this kind of loss."""
    if kind not in PIXEL_LOSSES:
        raise UserError(f"loss {kind!r} is unknown; valid: {', '.join(PIXEL_LOSSES)}")


def pixel_error(kind: str, x: Array, target: Array) -> Array:
    """|x - target| or (x - target)^2, elementwise f32."""
    check_kind(kind)
    difference = x.astype(jnp.float32) - target.astype(jnp.float32)
    return jnp.abs(difference) if kind == "l1" else difference**2


@typecheck
def kl_autoencoder_loss(
    x_hat: Float[Array, "b H W c"],
    x: Float[Array, "b H W c"],
    *,
    kl: Float[Array, " b"],
    kl_weight: float,
    pixel_loss: str = "l1",
) -> tuple[Float[Array, ""], Scalars]:
    """Sum over an image of |x_hat - x|, plus kl_weight KL; mean over the batch.

    Rombach et al. 2022, eq. 25, without its adversarial and perceptual parts.
    """
    rec = pixel_error(pixel_loss, x_hat, x)
    per_image = rec.sum(axis=(1, 2, 3)) + kl_weight * kl
    scalars = {"rec": rec.mean(), "kl": kl.mean(), "psnr": psnr(x_hat, x).mean()}
    return per_image.mean(), scalars


@typecheck
def vq_autoencoder_loss(
    x_hat: Float[Array, "b H W c"],
    x: Float[Array, "b H W c"],
    *,
    codebook: Float[Array, ""],
    codebook_weight: float = 1.0,
    pixel_loss: str = "l1",
) -> tuple[Float[Array, ""], Scalars]:
    """Mean |x_hat - x| + codebook_weight * codebook term (Esser et al. 2021, eq. 4)."""
    rec = pixel_error(pixel_loss, x_hat, x).mean()
    scalars = {"rec": rec, "codebook": codebook, "psnr": psnr(x_hat, x).mean()}
    return rec + codebook_weight * codebook, scalars


@typecheck
def psnr(
    x_hat: Float[Array, "b H W c"], x: Float[Array, "b H W c"]
) -> Float[Array, " b"]:
    """10 log10(4 / MSE) in dB an image, x_hat clipped to [-1, 1] (peak range 2)."""
    mse = jnp.mean((jnp.clip(x_hat, -1.0, 1.0) - x) ** 2, axis=(1, 2, 3))
    return 10.0 * jnp.log10(4.0 / jnp.maximum(mse, 1e-12))


@typecheck
def diffusion_loss(
    prediction: Float[Array, "b h w c"],
    target: Float[Array, "b h w c"],
    *,
    weight: Float[Array, " b"],
    kind: str = "l2",
) -> tuple[Float[Array, ""], Float[Array, " b"]]:
    """mean_b weight_b mean |prediction - target|^(1 or 2), and each row's error."""
    error = pixel_error(kind, prediction, target).mean(axis=(1, 2, 3))
    return (weight * error).mean(), error
