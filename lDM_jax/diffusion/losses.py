"""What the two stages minimize, as functions of arrays.

Autoencoder: reconstruction (pixels and LPIPS), KL or codebook term, and the
adversarial game with its adaptive weight. Diffusion: weighted squared or absolute error
of the prediction. Weights and reductions follow the original: it sums over an image for
KL stages and takes means for VQ stages, so their kl_weight and learning rates differ.
"""

import jax
import jax.numpy as jnp

from lDM_jax.core.arrays import Array, Float, Scalars, typecheck
from lDM_jax.core.errors import UserError

PIXEL_LOSSES = ("l1", "l2")
ADVERSARIAL_LOSSES = ("hinge", "vanilla")
MAX_ADAPTIVE_WEIGHT = 1e4


def check_kind(kind: str, valid: tuple[str, ...] = PIXEL_LOSSES) -> None:
    """Raise UserError unless `kind` is one of the valid kinds of loss."""
    if kind not in valid:
        raise UserError(f"loss {kind!r} is unknown; valid: {', '.join(valid)}")


def pixel_error(kind: str, x: Array, target: Array) -> Array:
    """|x - target| or (x - target)^2, elementwise f32."""
    check_kind(kind)
    difference = x.astype(jnp.float32) - target.astype(jnp.float32)
    return jnp.abs(difference) if kind == "l1" else difference**2


@typecheck
def reconstruction_loss(
    x_hat: Float[Array, "b H W c"],
    x: Float[Array, "b H W c"],
    *,
    reduction: str,
    pixel_loss: str = "l1",
    perceptual: Float[Array, " b"] | None = None,
    perceptual_weight: float = 1.0,
) -> tuple[Float[Array, ""], Scalars]:
    """|x_hat - x| + perceptual_weight LPIPS, the latter added to every pixel's value.

    reduction "sum" sums over an image (KL stages), "mean" takes the mean (VQ stages);
    the mean over the batch follows. Rombach et al. 2022, eq. 25.
    """
    error = pixel_error(pixel_loss, x_hat, x).mean(axis=(1, 2, 3))
    scalars = {"rec": error.mean(), "psnr": psnr(x_hat, x).mean()}
    if perceptual is not None:
        scalars["lpips"] = perceptual.mean()
        error = error + perceptual_weight * perceptual
    elements = x[0].size if reduction == "sum" else 1
    return elements * error.mean(), scalars


@typecheck
def generator_loss(logits_fake: Float[Array, "b h w 1"]) -> Float[Array, ""]:
    """-mean D(x_hat): what the decoder minimizes of the game, for both kinds."""
    return -logits_fake.mean()


@typecheck
def discriminator_loss(
    logits_real: Float[Array, "b h w 1"],
    logits_fake: Float[Array, "b h w 1"],
    kind: str = "hinge",
) -> Float[Array, ""]:
    """hinge: (mean max(0, 1 - D(x)) + mean max(0, 1 + D(x_hat))) / 2;
    vanilla: (mean softplus(-D(x)) + mean softplus(D(x_hat))) / 2.
    """
    check_kind(kind, ADVERSARIAL_LOSSES)
    bend = jax.nn.softplus if kind == "vanilla" else lambda v: jax.nn.relu(1 + v)
    return 0.5 * (bend(-logits_real).mean() + bend(logits_fake).mean())


@typecheck
def adaptive_weight(
    reconstruction_grad: Float[Array, "..."], generator_grad: Float[Array, "..."]
) -> Float[Array, ""]:
    """|grad rec| / (|grad g| + 1e-4), at most 1e4: brings both players' pull together.

    Both gradients are taken at the decoder's last kernel (Esser et al. 2021, eq. 7).
    """
    norms = [jnp.linalg.norm(g.ravel()) for g in (reconstruction_grad, generator_grad)]
    return jnp.clip(norms[0] / (norms[1] + 1e-4), 0.0, MAX_ADAPTIVE_WEIGHT)


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
    log_variance: Float[Array, " b"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, " b"]]:
    """mean_b weight_b mean |prediction - target|^(1 or 2), and each row's error e_b.

    With a learned log-variance u_b the mean is of weight_b e_b / exp(u_b) + u_b, whose
    minimum over u is at exp(u) = weight e: then every time contributes alike (Karras et
    al. 2023, arXiv 2312.02696, eq. 14).
    """
    error = pixel_error(kind, prediction, target).mean(axis=(1, 2, 3))
    weighted = weight * error
    if log_variance is not None:
        weighted = weighted * jnp.exp(-log_variance) + log_variance
    return weighted.mean(), error


@typecheck
def cosine_series(
    coefficients: Float[Array, " k"], u: Float[Array, " b"]
) -> Float[Array, " b"]:
    """sum_j coefficients_j cos(pi j u), j = 0 .. k-1, of places u in [0, 1]: "b"."""
    waves = jnp.arange(coefficients.size, dtype=u.dtype)
    table = jnp.cos(jnp.pi * u[:, None] * waves[None])
    return (table * coefficients[None]).sum(axis=1)


@typecheck
def by_time(
    error: Float[Array, " b"], u: Float[Array, " b"], buckets: int
) -> Float[Array, "2 buckets"]:
    """Sum of the errors, and their number, in equal buckets of time u in [0, 1]."""
    place = jnp.clip((buckets * u).astype(jnp.int32), 0, buckets - 1)
    member = place[:, None] == jnp.arange(buckets)[None]
    return jnp.stack([jnp.where(member, error[:, None], 0).sum(0), member.sum(0)])
