"""Guidance: turn denoisers into a denoiser that leans toward the condition.

Owns the combination of two predictions at the same (z_t, t),

    guided = weak + scale (strong - weak)

which is the same for eps, v, z0 and velocity, since at fixed z_t each is an affine
function of the others. Owns no network and no sampler. scale may be traced,
a scalar or one number a row: changing it never recompiles. scale 1 is no guidance.

Guidance by gradients (`by_score`) adds those of log p(y | z_t) of pictures and classes:

    toward_target   -1/2 |y - T(D(z0_hat))|^2, T the way to y's extent (bicubic), D the
                    first stage's decoder: y is a coarse or small version of what is
                    asked for (Rombach et al. 2022, section C); or
                    -1/2 LPIPS(y, T(D(.)))
    toward_class    log softmax(classifier(z_t, t))[label] (arXiv 2105.05233)

Both are functions (z0_hat, z_t, t) -> "b", differentiable by z_t.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lDM_jax.core.arrays import Array, Cond, Denoiser, Float, Int, per_row, typecheck
from lDM_jax.core.errors import UserError
from lDM_jax.diffusion.codec import Codec
from lDM_jax.diffusion.process import Process

Scalar = int | float | Array  # one number, or one a row
Interval = tuple[Scalar, Scalar]
LogProb = Callable[[Array, Array, Array], Array]
Network = Callable[[Array, Array, Cond], Array]


def classifier_free(
    denoise_cond: Network,
    cond: Cond,
    null: Cond,
    scale: Scalar,
    *,
    rescale: Scalar = 0.0,
    interval: Interval | None = None,
) -> Denoiser:
    """null + scale (cond - null) by one evaluation of [null, cond] (arXiv 2207.12598).

    null is the dropped condition, or a negative prompt. rescale and interval: `mix`.
    UserError if cond and null do not have the same fields and shapes.
    """
    _same_shapes(cond, null)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), null, cond)

    def guided(z: Array, t: Array) -> Array:
        twice = denoise_cond(jnp.concatenate([z, z]), jnp.concatenate([t, t]), both)
        weak, strong = jnp.split(twice, 2)
        return mix(weak, strong, scale, t, rescale=rescale, interval=interval)

    return guided


def autoguidance(
    main: Denoiser,
    guide: Denoiser,
    scale: Scalar,
    *,
    rescale: Scalar = 0.0,
    interval: Interval | None = None,
) -> Denoiser:
    """guide + scale (main - guide), `guide` a worse `main` (arXiv 2406.02507).

    Both see the same condition. rescale and interval: `mix`.
    """

    def guided(z: Array, t: Array) -> Array:
        weak, strong = guide(z, t), main(z, t)
        return mix(weak, strong, scale, t, rescale=rescale, interval=interval)

    return guided


def by_region(network: Network) -> Network:
    """sum_r m_r network(z_t, t, text r) / sum_r m_r: regional prompts in the latents.

    The condition has the fields `regions` "b h w r" and r texts in `context`; r times
    the evaluations, each with its text alone and, in `regions` "b h w 1", where it
    counts. Where no region is, the first text does.
    """

    def regional(z: Array, t: Array, cond: Cond) -> Array:
        b, h, w, r = cond.regions.shape
        first = jnp.zeros(r).at[0].set(1.0)
        empty = cond.regions.max(axis=-1, keepdims=True) == 0
        shares = jnp.where(empty, first, cond.regions)
        shares = shares / shares.sum(axis=-1, keepdims=True)
        repeat = lambda x: None if x is None else jnp.repeat(x, r, axis=0)  # noqa: E731
        texts = cond.context.reshape(b * r, -1, cond.context.shape[-1])
        where = jnp.moveaxis(shares, -1, 1).reshape(b * r, h, w, 1)
        alone = Cond(repeat(cond.concat), texts, repeat(cond.vector), where)
        predictions = network(repeat(z), repeat(t), alone).reshape(b, r, h, w, -1)
        return jnp.einsum("brhwc,bhwr->bhwc", predictions, shares, precision="highest")

    return regional


def by_score(
    denoise: Denoiser, log_prob: LogProb, process: Process, scale: Scalar
) -> Denoiser:
    """eps_hat - scale sigma_t grad_{z_t} log p(y | z_t) (arXiv 2105.05233, alg. 2).

    log_prob (z0_hat, z_t, t) -> "b", where z0_hat depends on z_t through the network:
    what is known of clean latents is a function of the first (image guidance, Rombach
    et al. 2022, section C), what a classifier says of noisy ones of the second. The
    shift is given in the units of the process's prediction, and z_t = alpha z0_hat +
    sigma eps_hat still holds. At alpha_t = 0 (pure noise) nothing is shifted.
    """

    def guided(z: Array, t: Array) -> Array:
        alpha, sigma = process.scales(t)

        def total(z: Array) -> tuple[Array, Array]:
            prediction = denoise(z, t)
            z0, _ = process.to_z0_eps(prediction, z, alpha, sigma)
            return log_prob(z0, z, t).sum(), prediction

        gradient, prediction = jax.grad(total, has_aux=True)(z)
        shift = process.eps_shift(t).astype(z.dtype)
        rate = per_row(scale, z) * per_row(sigma * shift, z)
        return prediction - jnp.where(per_row(alpha, z) > 0, rate * gradient, 0)

    return guided


@typecheck
def mix(
    weak: Float[Array, " b *rest"],
    strong: Float[Array, " b *rest"],
    scale: Scalar,
    t: Int[Array, " b"] | Float[Array, " b"],
    *,
    rescale: Scalar = 0.0,
    interval: Interval | None = None,
) -> Float[Array, " b *rest"]:
    """weak + scale (strong - weak), at least in f32.

    interval (low, high) in the units of t: outside low <= t <= high the scale is 1
    (arXiv 2404.07724). rescale phi in [0, 1]: the share of the guided prediction
    that is brought back to the standard deviation of `strong`, by row (arXiv
    2305.08891, eqs. 15 and 16).
    """
    weak, strong = (
        x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (weak, strong)
    )
    if interval is not None:
        low, high = interval
        scale = jnp.where((t >= low) & (t <= high), scale, 1)
    guided = weak + per_row(scale, weak) * (strong - weak)
    if isinstance(rescale, (int, float)) and rescale == 0:
        return guided
    rest = tuple(range(1, strong.ndim))
    before = jnp.std(strong, axis=rest, keepdims=True)
    after = jnp.std(guided, axis=rest, keepdims=True)
    phi = per_row(rescale, weak)
    # A constant prediction has no deviation to restore.
    factor = jnp.where(after > 0, before / jnp.where(after > 0, after, 1), 1)
    return guided * (phi * factor + (1 - phi))


def _same_shapes(cond: Cond, null: Cond) -> None:
    for name in (field.name for field in dataclasses.fields(Cond)):
        left, right = (getattr(c, name) for c in (cond, null))
        shapes = [None if x is None else tuple(x.shape) for x in (left, right)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"guidance needs a condition and a null condition of one shape; "
                f"{name} has {shapes[0]} and {shapes[1]}"
            )


def toward_target(
    codec: Codec,
    first_stage: dict,
    target: Array,
    *,
    distance: Callable[[Array, Array], Array] | None = None,
) -> LogProb:
    """target: f32 [-1, 1] "1 h w 3" or "b h w 3"; distance: (x, y) -> "b", None for L2.

    The picture is made smaller to the target's extent, never larger: UserError else.
    """

    def log_prob(z0: Array, z: Array, t: Array) -> Array:
        del z, t
        x = codec.decode(first_stage, z0)
        if target.shape[1] > x.shape[1] or target.shape[2] > x.shape[2]:
            raise UserError(
                f"the target of {target.shape[1:3]} px is larger than the picture of "
                f"{x.shape[1:3]} px"
            )
        shape = (x.shape[0], *target.shape[1:])
        small = jax.image.resize(x, shape, "cubic", antialias=True)
        goal = jnp.broadcast_to(target, shape)
        if distance is not None:
            return -0.5 * distance(small, goal)
        return -0.5 * ((goal - small) ** 2).sum(axis=(1, 2, 3))

    return log_prob


def toward_class(
    classify: Callable[[Array, Array], Array], label: int | Array
) -> LogProb:
    """classify: (z_t, t) -> logits "b classes"; label: a scalar or "b"."""

    def log_prob(z0: Array, z: Array, t: Array) -> Array:
        del z0
        logits = jax.nn.log_softmax(classify(z, t))
        rows = jnp.broadcast_to(jnp.asarray(label), logits.shape[:1])
        return jnp.take_along_axis(logits, rows[:, None], axis=1)[:, 0]

    return log_prob
