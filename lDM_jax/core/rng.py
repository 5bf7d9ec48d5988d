"""Named random streams, derived and never carried.

Every draw has a key that is a pure function of (root seed, stream name, step), so a
resumed run draws what the uninterrupted run would have drawn. At sampling time every
image has its own key, made from its seed alone: the image of a seed does not depend on
the batch size, the device count or the order.
"""

import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lDM_jax.core.arrays import Array


def stream(root: Array, name: str) -> Array:
    """The key of the stream `name`: fold_in(root, crc32(name)); equal on every host."""
    return jax.random.fold_in(root, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def key(root: Array, name: str, step: int | Array) -> Array:
    """The key of `step` in the stream `name`: fold_in(stream(root, name), step)."""
    return jax.random.fold_in(stream(root, name), step)


def seed_keys(seeds: Sequence[int]) -> Array:
    """One typed key a seed, shape "b". Seeds are integers in [0, 2^32)."""
    return jnp.stack([jax.random.key(int(seed)) for seed in seeds])


def normal_per_seed(keys: Array, shape: tuple[int, ...], *, step: int | Array = 0):
    """N(0, 1) noise "b *shape" whose row i depends on keys[i] and `step` alone."""

    def draw(seed_key):
        return jax.random.normal(jax.random.fold_in(seed_key, step), shape)

    return jax.vmap(draw)(keys)
