"""Array aliases, the axis glossary, `Batch`, `Cond`, `Denoiser` and `@typecheck`.

Owns the vocabulary every other file speaks. Axis names in shape strings:

    b batch   H W pixels   h w latent positions   c latent channels   k concat channels
    n tokens  d token width  e vector width       t time, integer or real

`Batch` is a dict with a fixed vocabulary; each key has one meaning everywhere:

    image    f32 [-1, 1]  "b H W 3"     tokens   i32 "b n"
    moments  f32          "b h w 2c"    label    i32 "b"
    low_res  f32 [-1, 1]  "b h w 3"     mask     f32 {0, 1} "b H W 1" (1 = paint)
    segmentation i32      "b H W"       boxes    i32 "b n"

`moments` replaces `image` when latents are cached. What frozen networks derive:
`masked` f32 "b h w c+1" (latents of the masked image, mask in {-1, 1}) and `embeddings`
f32 "b n d" (a text tower's output).
"""

import functools
from collections.abc import Callable
from typing import TypeVar

import flax.struct
import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Key, UInt8, jaxtyped

__all__ = [
    "Array",
    "Batch",
    "Bool",
    "Cond",
    "Denoiser",
    "Float",
    "Int",
    "Key",
    "Scalars",
    "UInt8",
    "per_row",
    "typecheck",
]

# Functions take numpy arrays as well; inside jit there are only jax's.
Array = jax.Array | np.ndarray
Batch = dict[str, Array]
Scalars = dict[str, Array]
Denoiser = Callable[[Array, Array], Array]

F = TypeVar("F", bound=Callable)


@flax.struct.dataclass
class Cond:
    """All that a denoiser may be told besides (z_t, t); unset fields are None.

    concat:  f32 "b h w k", stacked to z_t along channels.
    context: f32 "b n d", attended to by cross-attention.
    vector:  f32 "b e", added to the time embedding.
    regions: f32 [0, 1] "b h w r" at the latents' extent: the context is r texts of
             equal length one after the other, and a position attends to those whose
             region it is in (of none: to all), as far as it is in it.
    boxes:   f32 "b n 4", (left, top, right, bottom) of each token of `context` in
             fractions of the picture; they become `regions` (`models.boxes`).
    """

    concat: jax.Array | None = None
    context: jax.Array | None = None
    vector: jax.Array | None = None
    regions: jax.Array | None = None
    boxes: jax.Array | None = None

    @property
    def spatial(self) -> dict[str, jax.Array]:
        """The set fields over the latents, "b h w ...", which are cut with them."""
        over = {"concat": self.concat, "regions": self.regions}
        return {name: value for name, value in over.items() if value is not None}


def per_row(value: int | float | Array, x: Array) -> int | float | Array:
    """A scalar as it is, one number a row "b" as "b 1 .. 1": to go with x "b ..."."""
    if np.ndim(value) == 0:
        return value
    return value.reshape(value.shape + (1,) * (x.ndim - 1))


def typecheck(function: F) -> F:
    """Check jaxtyping shapes and dtypes when `function` is called or traced.

    Goes under `@nn.compact`. Raises jaxtyping.TypeCheckError naming the argument. The
    check is built at the first call: building all of them would slow every import.
    """

    @functools.cache
    def checked() -> F:
        from beartype import beartype

        return jaxtyped(function, typechecker=beartype)

    @functools.wraps(function)
    def call(*args, **kwargs):
        return checked()(*args, **kwargs)

    return call
