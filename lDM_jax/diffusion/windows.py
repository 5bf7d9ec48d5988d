"""Denoisers for pictures larger than they were trained for, in overlapping windows.

    prediction(z) = sum_k w_k network(window_k(z)) / sum_k w_k

Windows have one extent and run one after the other, so that memory is that of a single
window however large the picture is; their weights w_k fall linearly to their borders
where windows overlap. Every step mixes them, and the windows agree on one picture
(Rombach et al. 2022, section 4.3.2, sample convolutionally without windows; the
original's `split_input_params` is the same idea). What counts in a region only is drawn
by the windows that lie in it: w_k times the region's share of window k, squared.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lDM_jax.core.arrays import Array, Cond
from lDM_jax.core.errors import UserError
from lDM_jax.diffusion.tiling import spans
from lDM_jax.models import boxes

SHARE_POWER = 2
LEAST_SHARE = 1e-3  # so that every position has a window
Network = Callable[[Array, Array, Cond], Array]


def in_windows(
    network: Network,
    extent: tuple[int, int],
    *,
    window: int,
    overlap: int,
    within: bool = False,
) -> Network:
    """`network` (z, t, cond) over latents "b h w c" of `extent`, in windows.

    window and overlap in latent positions; what lies over the latents (`Cond.spatial`,
    and boxes) is cut along with them. within: `cond.regions` "b h w 1" is
    where each row's prediction will be used, and a window counts by its share of it.
    UserError unless 0 <= overlap < window.
    """
    if not 0 <= overlap < window:
        raise UserError(f"windows of {window} cannot overlap by {overlap}")
    sides = tuple(min(window, side) for side in extent)
    rows, columns = (
        [span.start for span in spans(side, cut, overlap)]
        for side, cut in zip(extent, sides, strict=True)
    )
    places = jnp.asarray([(y, x) for y in rows for x in columns], jnp.int32)
    weight = np.outer(*(ramp(cut, overlap) for cut in sides))[None, :, :, None]
    weight = jnp.asarray(weight, jnp.float32)

    def cut(x: Array, place: Array) -> Array:
        size = (x.shape[0], *sides, x.shape[-1])
        return jax.lax.dynamic_slice(x, (0, place[0], place[1], 0), size)

    def windowed(z: Array, t: Array, cond: Cond) -> Array:
        cond = boxes.on_grid(cond, extent)

        def add(sums, place):
            total, weights = sums
            over = {name: cut(value, place) for name, value in cond.spatial.items()}
            used = weight
            if within:
                share = over["regions"].mean(axis=(1, 2, 3), keepdims=True)
                used = weight * jnp.maximum(share, LEAST_SHARE) ** SHARE_POWER
            out = network(cut(z, place), t, cond.replace(**over))
            at = (0, place[0], place[1], 0)
            total = jax.lax.dynamic_update_slice(
                total, cut(total, place) + used * out, at
            )
            weights = jax.lax.dynamic_update_slice(
                weights, cut(weights, place) + used, at
            )
            return (total, weights), None

        first = {name: cut(value, places[0]) for name, value in cond.spatial.items()}
        channels = jax.eval_shape(network, cut(z, places[0]), t, cond.replace(**first))
        total = jnp.zeros((*z.shape[:3], channels.shape[-1]))
        weights = jnp.zeros((len(z) if within else 1, *z.shape[1:3], 1))
        (total, weights), _ = jax.lax.scan(add, (total, weights), places)
        return total / weights

    return windowed


def ramp(window: int, overlap: int) -> np.ndarray:
    """Weights "window": 1 inside, falling linearly over the overlap at both ends."""
    rise = (np.arange(window) + 1) / (overlap + 1)
    return np.minimum(1.0, np.minimum(rise, rise[::-1]))
