"""First stages: encoder, decoder, KL posterior, vector quantizer (f = 1 .. 32).

Pixels are f32 [-1, 1] "b H W 3". `Autoencoder.moments` gives what the latents cache
stores: mean | logvar "b h w 2c" for KL, the latents before quantization "b h w c" for
VQ. The latent scale is in `Codec`. Source: Rombach et al. 2022, section 3.1 and
appendix G; Esser et al. 2021 for the quantizer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lDM_jax.core.arrays import Array, Float, Int, Key, typecheck
from lDM_jax.models import layers
from lDM_jax.models.layers import FIRST_STAGE_EPS, GroupNorm, ResBlock, conv1x1, conv3x3

CODE_BLOCK = 1024  # codes compared at once


class FirstStageAttention(nn.Module):
    """Single-head self-attention over positions: x + W_o softmax(q k^T / sqrt(c)) v."""

    num_groups: int = 32
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typecheck
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        norm = GroupNorm(FIRST_STAGE_EPS, self.num_groups, name="norm")
        normed = norm(x).reshape(b, h * w, c)
        query, key, value = (
            conv1x1(c, name, dtype=self.dtype)(normed)[:, :, None, :]
            for name in ("q", "k", "v")
        )
        out = layers.attend(query, key, value).reshape(b, h, w, c)
        return x + conv1x1(c, "proj_out", dtype=self.dtype)(out)


class _Coder(nn.Module):
    """What encoder and decoder share: their shape parameters and the middle block.

    attn_factors are downsampling factors (original: resolutions); mid_attn False is
    `attn_type: none`.
    """

    width: int
    width_mults: Sequence[int]
    num_res_blocks: int
    channels: int
    attn_factors: Sequence[int] = ()
    mid_attn: bool = True
    dropout: float = 0.0
    num_groups: int = 32
    dtype: jnp.dtype = jnp.float32

    def res(self, name: str, width: int) -> ResBlock:
        options = dict(num_groups=self.num_groups, dtype=self.dtype, zero_last=False)
        return ResBlock(width, FIRST_STAGE_EPS, self.dropout, **options, name=name)

    def attention(self, name: str) -> FirstStageAttention:
        return FirstStageAttention(self.num_groups, self.dtype, name=name)

    def middle(self, h: Array, train: bool) -> Array:
        h = self.res("mid_block_1", h.shape[-1])(h, None, train)
        if self.mid_attn:
            h = self.attention("mid_attn_1")(h)
        return self.res("mid_block_2", h.shape[-1])(h, None, train)

    def finish(self, h: Array) -> Array:
        norm = GroupNorm(FIRST_STAGE_EPS, self.num_groups, name="norm_out")
        return conv3x3(self.channels, "conv_out", dtype=self.dtype)(nn.silu(norm(h)))


class Encoder(_Coder):
    """Pixels "b H W 3" -> features "b H/f W/f channels", f = 2^(levels - 1)."""

    @nn.compact
    @typecheck
    def __call__(
        self, x: Float[Array, "b H W k"], train: bool = False
    ) -> Float[Array, "b h w c"]:
        h = conv3x3(self.width, "conv_in", dtype=self.dtype)(x.astype(self.dtype))
        last = len(self.width_mults) - 1
        for level, mult in enumerate(self.width_mults):
            for block in range(self.num_res_blocks):
                name = f"down_{level}_block_{block}"
                h = self.res(name, mult * self.width)(h, None, train)
                if 2**level in self.attn_factors:
                    h = self.attention(f"down_{level}_attn_{block}")(h)
            if level < last:
                name = f"down_{level}_downsample"
                h = layers.Downsample(symmetric=False, dtype=self.dtype, name=name)(h)
        return self.finish(self.middle(h, train))


class Decoder(_Coder):
    """Features "b h w c" -> pixels "b H W channels"; one more block a level."""

    @nn.compact
    @typecheck
    def __call__(
        self, z: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b H W k"]:
        top = self.width * self.width_mults[-1]
        h = conv3x3(top, "conv_in", dtype=self.dtype)(z.astype(self.dtype))
        h = self.middle(h, train)
        for level, mult in reversed(list(enumerate(self.width_mults))):
            for block in range(self.num_res_blocks + 1):
                name = f"up_{level}_block_{block}"
                h = self.res(name, mult * self.width)(h, None, train)
                if 2**level in self.attn_factors:
                    h = self.attention(f"up_{level}_attn_{block}")(h)
            if level > 0:
                h = layers.Upsample(dtype=self.dtype, name=f"up_{level}_upsample")(h)
        return self.finish(h).astype(jnp.float32)


@flax.struct.dataclass
class DiagonalGaussian:
    """q(z|x) = N(mean, exp(logvar)), from moments mean | logvar "b h w 2c".

    logvar is clipped to [-30, 20], as in the original.
    """

    mean: jax.Array
    logvar: jax.Array

    @classmethod
    def from_moments(cls, moments: Array) -> "DiagonalGaussian":
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return cls(mean, jnp.clip(logvar, -30.0, 20.0))

    def sample(self, key: Key[Array, ""]) -> Array:
        """mean + exp(logvar / 2) eps."""
        eps = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(0.5 * self.logvar) * eps

    def kl(self) -> Array:
        """KL(q || N(0, 1)) in nats, summed over an example's dimensions: f32 "b"."""
        terms = self.mean**2 + jnp.exp(self.logvar) - 1.0 - self.logvar
        return 0.5 * terms.sum(axis=(1, 2, 3))


class Quantized(NamedTuple):
    """The result of a quantizer.

    z: f32 "b h w c" with straight-through gradient; codes: i32 "b h w"; loss: f32, the
    codebook term; commitment: f32, its part that moves latents (at rate beta).
    """

    z: Array
    codes: Array
    loss: Array
    commitment: Array


class VectorQuantizer(nn.Module):
    """Nearest code by squared distance, gradients copied straight through.

    loss = mean((z_q - sg[z])^2) + beta mean((sg[z_q] - z)^2): codes move to latents at
    full rate, latents commit to codes at rate beta. `legacy_beta` is
    QUIRK(misplaced_beta): the original released models have beta on the first term.
    """

    num_codes: int
    channels: int
    beta: float = 0.25
    legacy_beta: bool = False

    def setup(self):
        bound = 1.0 / self.num_codes
        self.codebook = self.param(
            "codebook",
            lambda key, shape: bound * jax.random.uniform(key, shape, minval=-1.0),
            (self.num_codes, self.channels),
        )

    @typecheck
    def __call__(self, z: Float[Array, "b h w c"]) -> Quantized:
        codes = self.codes(z)
        z_q = self.lookup(codes)
        to_codes = jnp.mean((z_q - jax.lax.stop_gradient(z)) ** 2)
        to_latents = jnp.mean((jax.lax.stop_gradient(z_q) - z) ** 2)
        if self.legacy_beta:
            loss = to_latents + self.beta * to_codes
        else:
            loss = to_codes + self.beta * to_latents
        z_straight = z + jax.lax.stop_gradient(z_q - z)
        return Quantized(z_straight, codes, loss, self.beta * to_latents)

    @typecheck
    def codes(self, z: Float[Array, "b h w c"]) -> Int[Array, "b h w"]:
        """argmin_k ||z - e_k||^2, a block of codes at a time (bounded memory).

        Blocks run over codes, not positions, so that positions may stay spread over
        devices. Of equally near codes the first is taken.
        """
        block = min(CODE_BLOCK, self.num_codes)
        padding = -self.num_codes % block
        codebook, z = jax.lax.stop_gradient((self.codebook, z.astype(jnp.float32)))
        norms = jnp.pad((codebook**2).sum(-1), (0, padding), constant_values=jnp.inf)
        table = jnp.pad(codebook, ((0, padding), (0, 0)))
        rows = z.reshape(-1, z.shape[-1])

        def nearer(best, part):
            first, norms, table = part
            products = jnp.matmul(rows, table.T, precision="highest")
            distance = norms[None, :] - 2.0 * products
            least = distance.min(axis=-1)
            code = first + distance.argmin(axis=-1).astype(jnp.int32)
            better = least < best[0]
            least = jnp.where(better, least, best[0])
            return (least, jnp.where(better, code, best[1])), None

        parts = (
            jnp.arange(0, self.num_codes + padding, block, dtype=jnp.int32),
            norms.reshape(-1, block),
            table.reshape(-1, block, self.channels),
        )
        far = jnp.full(rows.shape[:1], jnp.inf), jnp.zeros(rows.shape[:1], jnp.int32)
        (_, codes), _ = jax.lax.scan(nearer, far, parts)
        return codes.reshape(z.shape[:-1])

    @typecheck
    def lookup(self, codes: Int[Array, "b h w"]) -> Float[Array, "b h w c"]:
        """Codes -> vectors."""
        return self.codebook[codes]


class Autoencoder(nn.Module):
    """The first stage: encoder, latent regularization (KL or VQ), decoder.

    width, width_mults, num_res_blocks, attn_factors, mid_attn, dropout: `Encoder` and
    `Decoder`. z_channels leave the encoder (twice that for KL), latent_channels are
    what the second stage sees (original: embed_dim). num_codes None means KL.
    """

    width: int
    width_mults: Sequence[int]
    num_res_blocks: int
    z_channels: int
    latent_channels: int
    num_codes: int | None = None
    attn_factors: Sequence[int] = ()
    mid_attn: bool = True
    dropout: float = 0.0
    num_groups: int = 32
    legacy_beta: bool = False
    image_channels: int = 3
    dtype: jnp.dtype = jnp.float32

    @property
    def factor(self) -> int:
        """f: pixels a latent position along each side."""
        return 2 ** (len(self.width_mults) - 1)

    @property
    def is_kl(self) -> bool:
        return self.num_codes is None

    def setup(self):
        double = 2 if self.is_kl else 1
        names = ("width", "width_mults", "num_res_blocks", "attn_factors", "mid_attn")
        names += ("dropout", "num_groups", "dtype")
        shared = {name: getattr(self, name) for name in names}
        self.encoder = Encoder(channels=double * self.z_channels, **shared)
        self.decoder = Decoder(channels=self.image_channels, **shared)
        self.quant_conv = conv1x1(double * self.latent_channels, None)
        self.post_quant_conv = conv1x1(self.z_channels, None)
        if not self.is_kl:
            self.quantizer = VectorQuantizer(
                self.num_codes, self.latent_channels, legacy_beta=self.legacy_beta
            )

    @typecheck
    def moments(
        self, x: Float[Array, "b H W k"], train: bool = False
    ) -> Float[Array, "b h w c"]:
        """mean | logvar (KL) or latents before quantization (VQ), f32."""
        return self.quant_conv(self.encoder(x, train).astype(jnp.float32))

    @typecheck
    def decode(
        self, z: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b H W k"]:
        """Latents as the encoder gives them -> pixels; does not quantize."""
        return self.decoder(self.post_quant_conv(z), train)

    @typecheck
    def quantize(self, z: Float[Array, "b h w c"]) -> Quantized:
        """VQ only: nearest codes, their vectors and the codebook loss."""
        return self.quantizer(z)

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Deterministic reconstruction (posterior mean, or quantized latents)."""
        moments = self.moments(x, train)
        if self.is_kl:
            return self.decode(DiagonalGaussian.from_moments(moments).mean, train)
        return self.decode(self.quantize(moments).z, train)


class Identity(nn.Module):
    """The first stage of a diffusion over pixels: latents are the image, f = 1."""

    image_channels: int = 3

    factor = 1
    is_kl = mid_attn = False
    attn_factors = ()

    @property
    def latent_channels(self) -> int:
        return self.image_channels

    def moments(self, x: Array, train: bool = False) -> Array:
        """The image itself, as `Autoencoder.moments` of a VQ stage."""
        del train
        return x

    def decode(self, z: Array, train: bool = False) -> Array:
        """The latents themselves."""
        del train
        return z

    @typecheck
    def quantize(self, z: Float[Array, "b h w c"]) -> Quantized:
        """z unchanged: every value is its own code."""
        none = jnp.zeros((), jnp.float32)
        return Quantized(z, jnp.zeros(z.shape[:-1], jnp.int32), none, none)

    def __call__(self, x: Array, train: bool = False) -> Array:
        del train
        return x
