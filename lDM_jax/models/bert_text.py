"""Text encoders. Here: the paper's BERT-tokenized transformer tau, trained jointly.

Tokens i32 "b n" in, one vector a token "b n d" out. Tokenization is `tokenizers`.
Source: Rombach et al. 2022, appendix E.2.1 and table 17.
"""

import flax.linen as nn
import jax.numpy as jnp

from lDM_jax.core.arrays import Array, Float, Int, typecheck
from lDM_jax.models.layers import Attention, LayerNorm, conv1x1, gelu


class TextTransformer(nn.Module):
    """Pre-norm transformer encoder over learned token and position embeddings.

    No attention mask: QUIRK(pads_attended), the padding after [SEP] is attended to, as
    in the original. Heads are num_heads x head_width wide whatever `width` is.
    token_std is the deviation of the initial token embeddings: the original's 0.02 is
    small beside the first residual branches, 1 lets rare words be told apart at once.
    position_std is that of the position embeddings. It must not be small beside
    token_std where order carries the meaning, as it does in boxes and their labels.
    """

    width: int
    depth: int
    vocab_size: int = 30_522
    max_length: int = 77
    num_heads: int = 8
    head_width: int = 64
    dropout: float = 0.0
    token_std: float = 0.02
    position_std: float = 0.02
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typecheck
    def __call__(
        self, tokens: Int[Array, "b n"], train: bool = False
    ) -> Float[Array, "b n d"]:
        n = tokens.shape[1]
        token_init = nn.initializers.normal(self.token_std)
        embed = nn.Embed(
            self.vocab_size, self.width, embedding_init=token_init, name="tokens"
        )
        shape = (self.max_length, self.width)
        position_init = nn.initializers.normal(self.position_std)
        positions = self.param("positions", position_init, shape)
        h = (embed(tokens) + positions[None, :n]).astype(self.dtype)
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        for index in range(self.depth):
            attention = Attention(
                self.num_heads, self.head_width, dtype=self.dtype, name=f"attn_{index}"
            )
            h = h + attention(LayerNorm(name=f"attn_norm_{index}")(h))
            inner = LayerNorm(name=f"ff_norm_{index}")(h)
            inner = conv1x1(4 * self.width, f"ff_in_{index}", dtype=self.dtype)(inner)
            inner = gelu(inner)
            h = h + conv1x1(self.width, f"ff_out_{index}", dtype=self.dtype)(inner)
        return LayerNorm(name="norm")(h).astype(jnp.float32)
