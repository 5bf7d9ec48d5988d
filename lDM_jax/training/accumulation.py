"""Gradients of a large batch in parts: the same numbers in a part of the memory.

    d/dp mean_i l_i = 1/n sum_j d/dp mean_{i in part j} l_i      (n equal parts)

What is random of a row is sampled for the whole batch and travels with the row: the
parts see the noise that the whole batch would have seen. Owns the split and the
sum; what a row is and what a loss is belong to the stages.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lDM_jax.core.arrays import Array, Scalars


def split(rows: Any, parts: int) -> Any:
    """Leaves "b ..." -> "n b/n ...": row i goes to part i mod n.

    So every part has rows of every device, and no row moves to another one.
    """

    def one(leaf: Array) -> Array:
        b, *rest = leaf.shape
        return jnp.moveaxis(leaf.reshape(b // parts, parts, *rest), 1, 0)

    return jax.tree.map(one, rows)


def join(parts: Any) -> Any:
    """The inverse of `split`: leaves "n b/n ..." -> "b ..."."""

    def one(leaf: Array) -> Array:
        n, rows, *rest = leaf.shape
        return jnp.moveaxis(leaf, 0, 1).reshape(n * rows, *rest)

    return jax.tree.map(one, parts)


def in_parts(function: Callable, rows: Any, parts: int) -> Any:
    """function(rows) of a function that treats every row alone, part after part."""
    if parts == 1:
        return function(rows)
    return join(jax.lax.map(function, split(rows, parts)))


def mean_of_parts(function: Callable, rows: Any, parts: int) -> Any:
    """The mean over the parts of function(rows, index), a tree of arrays.

    index i32 "": the number of the part, for keys of its dropout.
    """
    if parts == 1:
        return function(rows, jnp.int32(0))

    def add(total, part):
        index, rows = part
        return jax.tree.map(jnp.add, total, function(rows, index)), None

    numbered = jnp.arange(parts), split(rows, parts)
    first = jax.tree.map(lambda leaf: leaf[0], numbered)
    shapes = jax.eval_shape(function, first[1], first[0])
    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, shapes), numbered)
    return jax.tree.map(lambda leaf: leaf / parts, total)


def mean_gradients(
    loss: Callable, params: Any, rows: Any, parts: int
) -> tuple[Any, Scalars]:
    """(gradients, scalars), averaged over the parts, of loss(params, rows, index)."""
    gradients = jax.grad(loss, has_aux=True)
    return mean_of_parts(lambda *part: gradients(params, *part), rows, parts)
