"""From a batch to `Cond`: one route a condition, each of which can be dropped.

A route reads one key of the batch, passes it through an encoder and writes one field
of `Cond`. Dropping (for classifier-free guidance) replaces the input by the encoder's
null input, so that training and the null condition at sampling time agree exactly.
"""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict

from lDM_jax.core.arrays import Array, Batch, Bool, Cond, Float, Int, per_row, typecheck
from lDM_jax.models.bert_text import TextTransformer
from lDM_jax.models.layers import average2


class TextConditioner(nn.Module):
    """Tokens -> context "b n d"; dropped rows become the empty prompt's tokens."""

    transformer: TextTransformer
    null_tokens: Sequence[int]

    @nn.compact
    @typecheck
    def __call__(
        self, tokens: Int[Array, "b n"], drop: Bool[Array, " b"], train: bool = False
    ) -> Float[Array, "b n d"]:
        null = jnp.asarray(self.null_tokens, jnp.int32)[None, : tokens.shape[1]]
        return self.transformer(jnp.where(drop[:, None], null, tokens), train)


class ClassConditioner(nn.Module):
    """Label -> one context token "b 1 width", or with `as_vector` the vector "b width".

    Index num_classes is the null class; without `null_class` (the first releases) the
    table has no such row and nothing can be dropped. The table starts as N(0, 1), as
    the original's does; flax's own default would be N(0, 1/width).
    """

    num_classes: int
    width: int
    null_class: bool = True
    as_vector: bool = False

    @nn.compact
    @typecheck
    def __call__(
        self, label: Int[Array, " b"], drop: Bool[Array, " b"], train: bool = False
    ) -> Float[Array, "b *n d"]:
        del train
        rows = self.num_classes + self.null_class
        normal = nn.initializers.normal(1.0)
        embed = nn.Embed(rows, self.width, embedding_init=normal, name="embed")
        if self.null_class:
            label = jnp.where(drop, self.num_classes, label)
        vector = embed(label)
        return vector if self.as_vector else vector[:, None, :]


class SpatialRescaler(nn.Module):
    """Label map i32 "b H W" -> "b H/2^s W/2^s width": mean over cells of W one_hot(l).

    The original halves the one-hot map `num_stages` times (bilinear at 0.5, which is
    the mean of 2 x 2) and then maps its channels; both are linear, so the order is
    free. Dropped rows are zero.
    """

    num_labels: int
    num_stages: int = 2
    width: int = 3

    @nn.compact
    @typecheck
    def __call__(
        self,
        segmentation: Int[Array, "b H W"],
        drop: Bool[Array, " b"],
        train: bool = False,
    ) -> Float[Array, "b h w d"]:
        del train
        mapper = nn.Dense(self.width, use_bias=False, name="mapper")
        # Through the layer, so that its parameter is a kernel like every other.
        colors = mapper(jnp.eye(self.num_labels))
        x = colors[segmentation]
        for _ in range(self.num_stages):
            x = average2(x)
        return jnp.where(per_row(drop, x), 0, x)


class AsItIs(nn.Module):
    """A condition that needs no network: low-resolution pixels, masked latents.

    Dropped rows are zero; with `droppable` False whoever made the value has dropped.
    fold k: cells of k x k positions become k^2 times the channels, "b kh kw c" ->
    "b h w kkc", for pixels that are finer than the latents.
    """

    droppable: bool = True
    fold: int = 1

    @nn.compact
    @typecheck
    def __call__(
        self,
        value: Float[Array, " b *rest"],
        drop: Bool[Array, " b"],
        train: bool = False,
    ) -> Float[Array, " b *rest"]:
        del train
        if self.fold > 1:
            value = fold_cells(value, self.fold)
        return jnp.where(per_row(drop, value), 0, value) if self.droppable else value


def fold_cells(x: Array, k: int) -> Array:
    """ "b kh kw c" -> "b h w k*k*c", cells in row-major order."""
    b, height, width, c = x.shape
    x = x.reshape(b, height // k, k, width // k, k, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, height // k, width // k, k * k * c)


class Conditioner(nn.Module):
    """Batch -> Cond through `routes`, a tuple of (key, encoder, field of Cond).

    `encoders` are the networks by name. No routes: the unconditional model. `drop` is
    bool "b"; None drops nothing.
    """

    routes: Sequence[tuple[str, str, str]] = ()
    encoders: Mapping[str, nn.Module] = FrozenDict()

    @nn.compact
    def __call__(
        self, batch: Batch, drop: Array | None = None, train: bool = False
    ) -> Cond:
        fields = {}
        for key, encoder, field in self.routes:
            value = batch[key]
            dropped = jnp.zeros(value.shape[0], bool) if drop is None else drop
            fields[field] = self.encoders[encoder](value, dropped, train)
        return Cond(**fields)
