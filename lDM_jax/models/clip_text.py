"""CLIP's text towers: the frozen text encoders of Stable Diffusion.

Tokens i32 "b n" in, one vector a token "b n d" out. Owns the towers' arithmetic;
tokenization is `tokenizers.ClipTokenizer`, other programs' names are `names_text`.

    Stable Diffusion  tower                 ClipText
    1.x               OpenAI's ViT-L/14     (768, 12, 12)
    2.x               OpenCLIP's ViT-H/14   (1024, 24, 16, "gelu", "penultimate")

Source: Radford et al. 2021, section 2.4. Reading order: activations, block, tower.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lDM_jax.core.arrays import Array, Float, Int, typecheck
from lDM_jax.core.errors import UserError
from lDM_jax.models.layers import LayerNorm, attend, gelu


def quick_gelu(x: Array) -> Array:
    """x sigmoid(1.702 x), which OpenAI's towers use for GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu}
OUTPUT_LAYERS = ("last", "penultimate")


class ClipBlock(nn.Module):
    """h += attention(LN h); h += MLP(LN h). The sum h stays f32.

    A position attends to itself and to earlier ones. The 3d outputs of `qkv` are
    ordered [q | k | v], each over all heads. `depth` is the tower's: the layers that
    write to h start at deviations that fall with its root.
    """

    num_heads: int
    depth: int
    activation: str = "quick_gelu"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typecheck
    def __call__(self, h: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        b, n, d = h.shape
        last_std = (2 * self.depth * d) ** -0.5

        def dense(width: int, name: str, std: float) -> nn.Dense:
            init = nn.initializers.normal(std)
            return nn.Dense(width, kernel_init=init, dtype=self.dtype, name=name)

        qkv = dense(3 * d, "qkv", d**-0.5)(LayerNorm(name="norm1")(h))
        qkv = qkv.reshape(b, n, 3, self.num_heads, d // self.num_heads)
        earlier = jnp.tril(jnp.ones((1, 1, n, n), bool))
        out = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], mask=earlier)
        h = h + dense(d, "attn_out", last_std)(out.reshape(b, n, d))
        inner = dense(4 * d, "ff_in", (2 * d) ** -0.5)(LayerNorm(name="norm2")(h))
        inner = ACTIVATIONS[self.activation](inner)
        return h + dense(d, "ff_out", last_std)(inner)


class ClipText(nn.Module):
    """Causal pre-norm transformer over learned token and position embeddings.

    No padding mask: a token never sees the padding, which comes after it, but the
    padding's own vectors are part of the context, as in Stable Diffusion.

    output_layer: the state that the final layer norm is put on: "last", after all
        `depth` blocks (Stable Diffusion 1.x), or "penultimate", before the last of
        them (2.x). The last block is then not held unless `projection` asks for it,
        so that "penultimate" is "last" of a tower with one block less.
    output_norm: False gives that state as it is (SDXL).
    projection: width of `pooled`, where the tower has text_projection; 0 for none.

    Initial deviations are those of OpenAI's CLIP, initial biases are zero.
    """

    width: int
    depth: int
    num_heads: int
    activation: str = "quick_gelu"
    output_layer: str = "last"
    output_norm: bool = True
    projection: int = 0
    vocab_size: int = 49_408
    max_length: int = 77
    dtype: jnp.dtype = jnp.float32

    def __call__(self, tokens: Int[Array, "b n"]) -> Float[Array, "b n d"]:
        """The context f32, one vector a token; UserError for fields that do not fit."""
        return self.states(tokens)[0]

    def pooled(self, tokens: Int[Array, "b n"]) -> Float[Array, "b p"]:
        """The last state, normed, at the first end-of-text token, projected if it can.

        f32, not of unit length. The end token is the highest id of a row. UserError
        when the last block is not held.
        """
        pooled = self.states(tokens)[1]
        if pooled is None:
            raise UserError("the pooled text needs the last block: set projection")
        return pooled

    @nn.compact
    @typecheck
    def states(
        self, tokens: Int[Array, "b n"]
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b p"] | None]:
        """(context, pooled or None): what the two methods above choose from."""
        self._check(tokens.shape[1])
        init = nn.initializers.normal(0.02)
        embed = nn.Embed(
            self.vocab_size, self.width, embedding_init=init, name="tokens"
        )
        shape = (self.max_length, self.width)
        positions = self.param("positions", nn.initializers.normal(0.01), shape)
        h = embed(tokens) + positions[None, : tokens.shape[1]]
        norm = LayerNorm(name="norm")

        def block(index: int) -> ClipBlock:
            fields = self.num_heads, self.depth, self.activation, self.dtype
            return ClipBlock(*fields, name=f"block_{index}")

        for index in range(self.depth - 1):
            h = block(index)(h)
        context, pooled = h, None
        if self.output_layer == "last" or self.projection:
            last = block(self.depth - 1)(h)
            context = last if self.output_layer == "last" else h
            end = tokens.argmax(axis=1)[:, None, None]
            pooled = jnp.take_along_axis(norm(last), end, axis=1)[:, 0]
        if self.projection:
            init = nn.initializers.normal(self.width**-0.5)
            project = nn.Dense(
                self.projection, use_bias=False, kernel_init=init, name="projection"
            )
            pooled = project(pooled)
        return norm(context) if self.output_norm else context, pooled

    def _check(self, length: int) -> None:
        """UserError for fields without a meaning, or for more tokens than positions."""
        choices = {"activation": ACTIVATIONS, "output_layer": OUTPUT_LAYERS}
        for name, valid in choices.items():
            value = getattr(self, name)
            if value not in valid:
                raise UserError(f"{name} is {value!r}: one of {', '.join(valid)}")
        if self.width % self.num_heads:
            raise UserError(
                f"width {self.width} does not divide into {self.num_heads} heads"
            )
        if length > self.max_length:
            raise UserError(
                f"{length} tokens a text: this tower has {self.max_length} positions"
            )
