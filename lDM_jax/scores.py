"""What `guidance.by_score` is guided by: log p(y | z_t) of pictures and of classes.

    toward_target   -1/2 |y - T(D(z0_hat))|^2, T the way to y's extent (bicubic), D the
                    first stage's decoder: y is a coarse or small version of what is
                    wanted (Rombach et al. 2022, section C); or -1/2 LPIPS(y, T(D(.)))
    toward_class    log softmax(classifier(z_t, t))[label] (arXiv 2105.05233)

Both are functions (z0_hat, z_t, t) -> "b", differentiable by z_t.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lDM_jax.arrays import Array, UserError
from lDM_jax.codec import Codec

LogProb = Callable[[Array, Array, Array], Array]


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
        wanted = jnp.broadcast_to(target, shape)
        if distance is not None:
            return -0.5 * distance(small, wanted)
        return -0.5 * ((wanted - small) ** 2).sum(axis=(1, 2, 3))

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
