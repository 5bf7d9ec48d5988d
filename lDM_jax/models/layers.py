"""The blocks of both stages: norms, convolutions, residual and attention blocks.

Layout is NHWC, parameters are f32, `dtype` is the compute type; norms and softmax run
in f32. Initial kernels follow the original (uniform in +-1/sqrt(fan_in)), biases are
zero, and the last layer of every residual branch of the UNet starts at zero.

Reading order: small layers, resampling, time embedding, residual block, attention,
spatial transformer. Facts: Rombach et al. 2022, section 3.3 and appendix E.2.1.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from lDM_jax.core.arrays import Array, Bool, Float, typecheck
from lDM_jax.models import cpu_kernels

fan_in_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
zeros = nn.initializers.zeros_init()

# First stage and spatial transformer use 1e-6, the UNet's other norms 1e-5.
FIRST_STAGE_EPS = 1e-6
UNET_EPS = 1e-5


class GroupNorm(nn.Module):
    """Group normalization in f32, the result in the input's dtype.

    `num_groups` is lowered to the width when a layer is narrower than that. Parameters
    are those of flax's GroupNorm.
    """

    eps: float = UNET_EPS
    num_groups: int = 32

    @nn.compact
    @typecheck
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        norm = _Groups(min(self.num_groups, x.shape[-1]), self.eps, name="norm")
        return norm(x.astype(jnp.float32)).astype(x.dtype)


class _Groups(nn.Module):
    """(x - mean) / sqrt(variance + eps) scale + bias, means over pixels and a group.

    Means are taken over pixels first, then over the few channels of a group, which is
    faster on CPUs than one sum over both, as flax has it (`benchmarks.kernels`).
    """

    num_groups: int
    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (c,))
        bias = self.param("bias", zeros, (c,))
        scale, bias = (row.reshape(1, 1, 1, c) for row in (scale, bias))
        x = x - self._mean(x)
        return x * (jax.lax.rsqrt(self._mean(x * x) + self.epsilon) * scale) + bias

    def _mean(self, x: Array) -> Array:
        """The group's mean at each of its channels: "b 1 1 c"."""
        groups = x.mean(axis=(1, 2)).reshape(len(x), self.num_groups, -1)
        means = groups.mean(axis=-1, keepdims=True)
        return jnp.broadcast_to(means, groups.shape).reshape(len(x), 1, 1, -1)


class LayerNorm(nn.Module):
    """Layer normalization over the last axis, eps 1e-5, in f32."""

    @nn.compact
    @typecheck
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        options = dict(epsilon=1e-5, dtype=jnp.float32, use_fast_variance=False)
        return nn.LayerNorm(name="norm", **options)(x).astype(x.dtype)


def conv3x3(width: int, name: str, *, dtype=jnp.float32, init=fan_in_uniform, **more):
    """3x3 convolution with one pixel of zeros on every side; more as flax has it."""
    options = dict(padding=((1, 1), (1, 1)), kernel_init=init, dtype=dtype, name=name)
    options["conv_general_dilated"] = cpu_kernels.conv_general_dilated
    return nn.Conv(width, (3, 3), **{**options, **more})


def conv1x1(width: int, name: str, *, dtype=jnp.float32, init=fan_in_uniform, **more):
    """1x1 convolution, held as a dense layer over channels; more as flax has it."""
    return nn.Dense(width, kernel_init=init, dtype=dtype, name=name, **more)


def gelu(x: Array) -> Array:
    """x (1 + erf(x / sqrt(2))) / 2, computed in f32, as PyTorch has it."""
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def upsample2(x: Array) -> Array:
    """Nearest-neighbor doubling: "b h w c" -> "b 2h 2w c"."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)


def average2(x: Array) -> Array:
    """Mean over 2x2 cells: "b 2h 2w c" -> "b h w c"."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


class Downsample(nn.Module):
    """Strided 3x3 convolution to half the extent.

    `symmetric` pads one pixel on every side (UNet); otherwise one row below and one
    column to the right (first stage: QUIRK(asymmetric_pad) of the original).
    """

    symmetric: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typecheck
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        pad = (1, 1) if self.symmetric else (0, 1)
        options = dict(strides=2, padding=(pad, pad), dtype=self.dtype)
        return conv3x3(x.shape[-1], "conv", **options)(x)


class Upsample(nn.Module):
    """Nearest doubling, then a 3x3 convolution."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typecheck
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        options = dict(dtype=self.dtype, conv_general_dilated=_convolve_doubled)
        return conv3x3(x.shape[-1], "conv", **options)(x)


def _convolve_doubled(x: Array, kernel: Array, strides, padding, **options) -> Array:
    """conv_general_dilated of the doubled image, without making it where possible."""
    if cpu_kernels.fits_doubled(x, kernel):
        return cpu_kernels.doubled_convolution(x, kernel)
    x = upsample2(x)
    return cpu_kernels.conv_general_dilated(x, kernel, strides, padding, **options)


def time_features(t: Array, width: int, *, max_period: float = 10_000.0) -> Array:
    """Sinusoidal embedding f32 "b width" of times "b" (not rescaled).

    [cos(t f_i), sin(t f_i)], f_i = max_period^(-i / half), i = 0 .. half - 1; an odd
    width gets a zero at the end. Cosines come first, as in the original.
    """
    half = width // 2
    frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    features = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(features, ((0, 0), (0, width % 2)))


class ResBlock(nn.Module):
    """Norm, SiLU, conv, (+ time), norm, SiLU, conv, + shortcut.

    With `emb` given, its projection is added before the second norm, or scales and
    shifts the normed features (`scale_shift`): norm(h) (1 + scale) + shift.
    `resample` "up" / "down" resamples both branches before the first convolution.
    `zero_last` starts the block at the identity (UNet, not the first stage).
    """

    width: int
    eps: float = UNET_EPS
    dropout: float = 0.0
    scale_shift: bool = False
    resample: str | None = None
    zero_last: bool = True
    num_groups: int = 32
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typecheck
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        emb: Float[Array, "b e"] | None = None,
        train: bool = False,
    ) -> Float[Array, "b h2 w2 c2"]:
        norm = dict(eps=self.eps, num_groups=self.num_groups)
        h = nn.silu(GroupNorm(name="norm1", **norm)(x))
        if self.resample is not None:
            change = upsample2 if self.resample == "up" else average2
            h, x = change(h), change(x)
        h = conv3x3(self.width, "conv1", dtype=self.dtype)(h)
        second_norm = GroupNorm(name="norm2", **norm)
        if emb is not None:
            outputs = 2 * self.width if self.scale_shift else self.width
            emb = conv1x1(outputs, "emb", dtype=self.dtype)(nn.silu(emb))
            emb = emb[:, None, None, :]
        if emb is None or not self.scale_shift:
            h = second_norm(h if emb is None else h + emb)
        else:
            scale, shift = jnp.split(emb, 2, axis=-1)
            h = second_norm(h) * (1 + scale) + shift
        h = nn.Dropout(self.dropout, deterministic=not train)(nn.silu(h))
        init = zeros if self.zero_last else fan_in_uniform
        h = conv3x3(self.width, "conv2", dtype=self.dtype, init=init)(h)
        if x.shape[-1] != self.width:
            x = conv1x1(self.width, "shortcut", dtype=self.dtype)(x)
        return x + h


def attend(query: Array, key: Array, value: Array, mask: Array | None = None) -> Array:
    """softmax(q k^T / sqrt(d)) v over "b n heads d" arrays; softmax in f32.

    Uses cuDNN's fused kernel where it applies: GPU, bf16 or f16, d a multiple of 8 and
    at most 128. `mask` "b heads n m" (broadcastable) is bool, True = may attend, or a
    weight in [0, 1] by which each token counts in the softmax's sum.
    """
    width = query.shape[-1]
    if mask is None and cpu_kernels.fits(query, key, value):
        return cpu_kernels.attention(query, key, value)
    on_gpu, half = jax.default_backend() == "gpu", (jnp.bfloat16, jnp.float16)
    fused = on_gpu and query.dtype in half and width % 8 == 0 and width <= 128
    kind, bias = "cudnn" if fused and mask is None else "xla", None
    if mask is not None and mask.dtype != bool:
        mask, bias = None, jnp.log(mask).astype(query.dtype)
    return jax.nn.dot_product_attention(
        query, key, value, bias, mask=mask, implementation=kind
    )


def normalize_heads(query: Array, key: Array, dtype: jnp.dtype) -> tuple[Array, Array]:
    """RMS norm of every head's queries and keys "b n heads d", each with its own gain.

    q g / sqrt(mean_d q^2 + 1e-6): what attention takes the softmax of stays bounded by
    sqrt(d) |g_q| |g_k| however the projections grow. For the body of a compact module.
    Source: Henry et al. 2020; as in Dehghani et al. 2023 and Esser et al. 2024.
    """
    options = dict(epsilon=1e-6, dtype=jnp.float32)
    query = nn.RMSNorm(name="q_norm", **options)(query).astype(dtype)
    return query, nn.RMSNorm(name="k_norm", **options)(key).astype(dtype)


class AttentionBlock(nn.Module):
    """Self-attention over positions with one qkv projection (UNet without context).

    QUIRK(qkv_per_head): the 3c outputs are ordered heads x [q | k | v].
    qk_norm: `normalize_heads`.
    """

    num_heads: int
    num_groups: int = 32
    qk_norm: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typecheck
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        normed = GroupNorm(num_groups=self.num_groups, name="norm")(x)
        qkv = conv1x1(3 * c, "qkv", dtype=self.dtype)(normed.reshape(b, h * w, c))
        qkv = qkv.reshape(b, h * w, self.num_heads, 3, c // self.num_heads)
        query, key, value = (qkv[:, :, :, i] for i in range(3))
        if self.qk_norm:
            query, key = normalize_heads(query, key, self.dtype)
        out = attend(query, key, value).reshape(b, h, w, c)
        return x + conv1x1(c, "proj_out", dtype=self.dtype, init=zeros)(out)


class Attention(nn.Module):
    """Multi-head attention of `x` to `context` (or to itself); q, k, v without bias.

    mask: True where position n may attend to token m, or a weight as in `attend`.
    qk_norm: `normalize_heads`.
    """

    num_heads: int
    head_width: int
    qk_norm: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typecheck
    def __call__(
        self,
        x: Float[Array, "b n d"],
        context: Float[Array, "b m d2"] | None = None,
        mask: Bool[Array, "b 1 n m"] | Float[Array, "b 1 n m"] | None = None,
    ) -> Float[Array, "b n d"]:
        context = x if context is None else context
        inner = self.num_heads * self.head_width

        def project(name: str, inputs: Array) -> Array:
            layer = conv1x1(inner, name, dtype=self.dtype, use_bias=False)
            return layer(inputs).reshape(*inputs.shape[:2], self.num_heads, -1)

        query = project("to_q", x)
        key, value = project("to_k", context), project("to_v", context)
        if self.qk_norm:
            query, key = normalize_heads(query, key, self.dtype)
        b, n, d = x.shape
        out = attend(query, key, value, mask).reshape(b, n, inner)
        return conv1x1(d, "to_out", dtype=self.dtype)(out)


class FeedForward(nn.Module):
    """GEGLU: split W x in [value | gate], value * gelu(gate), then a dense layer."""

    mult: int = 4
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typecheck
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        d = x.shape[-1]
        both = conv1x1(2 * self.mult * d, "proj", dtype=self.dtype)(x)
        value, gate = jnp.split(both, 2, axis=-1)
        return conv1x1(d, "out", dtype=self.dtype)(value * gelu(gate))


class TransformerBlock(nn.Module):
    """x += self(LN x); x += cross(LN x, context); x += GEGLU(LN x)."""

    num_heads: int
    head_width: int
    qk_norm: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typecheck
    def __call__(
        self,
        x: Float[Array, "b n d"],
        context: Float[Array, "b m d2"] | None = None,
        mask: Bool[Array, "b 1 n m"] | Float[Array, "b 1 n m"] | None = None,
    ) -> Float[Array, "b n d"]:
        fields = self.num_heads, self.head_width, self.qk_norm, self.dtype
        x = x + Attention(*fields, name="attn1")(LayerNorm(name="norm1")(x))
        cross = Attention(*fields, name="attn2")
        x = x + cross(LayerNorm(name="norm2")(x), context, mask)
        return x + FeedForward(dtype=self.dtype, name="ff")(LayerNorm(name="norm3")(x))


def region_mask(regions: Array, extent: tuple[int, int], tokens: int) -> Array:
    """Weights with which positions attend to the `tokens` of r texts: "b 1 hw tokens".

    regions "b H W r" in [0, 1], at a multiple of `extent`; a coarse position takes the
    maximum over its cells. A position outside all regions attends to every text.
    """
    b, height, width, r = regions.shape
    h, w = extent
    cells = regions.reshape(b, h, height // h, w, width // w, r).max(axis=(2, 4))
    cells = jnp.where(cells.max(axis=-1, keepdims=True) > 0, cells, 1)
    return jnp.repeat(cells.reshape(b, 1, h * w, r), tokens // r, axis=-1)


class SpatialTransformer(nn.Module):
    """Group norm (eps 1e-6), projection, `depth` blocks, projection, + x.

    regions: as in `Cond`, at the latents' extent.
    """

    num_heads: int
    depth: int = 1
    num_groups: int = 32
    qk_norm: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typecheck
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        context: Float[Array, "b n d"] | None = None,
        regions: Float[Array, "b H W r"] | None = None,
    ) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        mask = None
        if regions is not None:
            mask = region_mask(regions, (h, w), context.shape[1])
        norm = GroupNorm(eps=1e-6, num_groups=self.num_groups, name="norm")
        tokens = conv1x1(c, "proj_in", dtype=self.dtype)(norm(x).reshape(b, h * w, c))
        fields = self.num_heads, c // self.num_heads, self.qk_norm, self.dtype
        for index in range(self.depth):
            block = TransformerBlock(*fields, name=f"block_{index}")
            tokens = block(tokens, context, mask)
        out = conv1x1(c, "proj_out", dtype=self.dtype, init=zeros)(tokens)
        return x + out.reshape(b, h, w, c)
