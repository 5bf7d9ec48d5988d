"""From a batch to `Cond`: one route a condition, each of which can be dropped.

A route reads one key of the batch, passes it through an encoder and writes one field
of `Cond`. Dropping (for classifier-free guidance) replaces the input by the encoder's
null input, so that training and the null condition at sampling time agree exactly.
"""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict

from lDM_jax.arrays import Array, Batch, Bool, Cond, Float, Int, typecheck
from lDM_jax.models.text import TextTransformer


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
    """Label -> one context token "b 1 width"; index num_classes is the null class."""

    num_classes: int
    width: int

    @nn.compact
    @typecheck
    def __call__(
        self, label: Int[Array, " b"], drop: Bool[Array, " b"], train: bool = False
    ) -> Float[Array, "b 1 d"]:
        del train
        embed = nn.Embed(self.num_classes + 1, self.width, name="embed")
        return embed(jnp.where(drop, self.num_classes, label))[:, None, :]


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
