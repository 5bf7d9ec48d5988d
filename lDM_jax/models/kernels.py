"""3x3 convolution and attention for CPUs, where XLA's own leave speed on the table.

Owns `convolution`, `attention` and the switch between them and XLA's; the same sums in
another order. XLA's gradient of a convolution by its kernel wants another layout than
the forward pass, its attention writes all scores to memory, and both run at a fraction
of the matrix rate. Here kernels' gradients are matrix products of shifted pictures,
and attention takes a head and a block of queries at a time, which also keeps no scores
for the backward pass. Other platforms keep what their compilers know best.

`python -m benchmarks.kernels` prints both ways side by side. Reading order: the
switch, convolution (forward, by input, by kernel), attention.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from lDM_jax.arrays import Array

FEW_PIXELS = 256  # up to these: one product with nine shifted pictures side by side
MANY_PIXELS = 2048  # above: the kernel's gradient as nine products
CHUNK_BYTES = 2**21  # of both operands of one product of the kernel's gradient
BLOCK_SCORES = 2**20  # of attention at a time
MIN_SCORES = 2**18  # a head; below XLA's own attention is as fast

_plain = contextvars.ContextVar("plain", default=False)


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Within: XLA's own operations, as on other platforms (to compile for those)."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def chosen(*operands: Array) -> bool:
    """True where this module's ways are taken: f32 on a CPU."""
    if _plain.get() or jax.default_backend() != "cpu":
        return False
    return all(operand.dtype == jnp.float32 for operand in operands)


def conv_general_dilated(x: Array, kernel: Array, strides, padding, **options) -> Array:
    """lax.conv_general_dilated; `convolution` where that is the same and faster."""
    same = tuple(strides) == (1, 1) and list(padding) == [(1, 1), (1, 1)]
    if same and kernel.shape[:2] == (3, 3) and x.ndim == 4 and chosen(x, kernel):
        return convolution(x, kernel)
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)


@jax.custom_vjp
def convolution(x: Array, kernel: Array) -> Array:
    """3x3 convolution of "b h w c" with "3 3 c d", stride 1, zeros around."""
    if _pixels(x) <= FEW_PIXELS:
        return shifted(x) @ kernel.reshape(-1, kernel.shape[-1])
    return _xla(x, kernel)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return convolution(x, kernel), (x, kernel)


def _backward(kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = kept
    return by_input(x, kernel, dy), by_kernel(x, dy)


convolution.defvjp(_forward, _backward)


def _xla(x: Array, kernel: Array) -> Array:
    pad = ((1, 1), (1, 1))
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), pad, dimension_numbers=numbers)


def _pixels(x: Array) -> int:
    return x.shape[0] * x.shape[1] * x.shape[2]


def _framed(x: Array) -> Array:
    """One pixel of zeros on every side."""
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def shifted(x: Array) -> Array:
    """The nine shifted pictures side by side: "b h w 9c", rows of the kernel first."""
    _, h, w, _ = x.shape
    frame = _framed(x)
    parts = [frame[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    return jnp.concatenate(parts, axis=-1)


def by_input(x: Array, kernel: Array, dy: Array) -> Array:
    """Gradient by x: the convolution of dy with the reversed, transposed kernel."""
    if _pixels(x) > FEW_PIXELS:
        return _xla(dy, kernel[::-1, ::-1].swapaxes(2, 3))
    b, h, w, c = x.shape
    d = kernel.shape[-1]
    parts = dy.reshape(-1, d) @ kernel.reshape(-1, d).T
    parts = parts.reshape(b, h, w, 3, 3, c)
    total = 0.0
    for i in range(3):
        for j in range(3):
            pad = ((0, 0), (i, 2 - i), (j, 2 - j), (0, 0))
            total = total + jnp.pad(parts[:, :, :, i, j], pad)
    return total[:, 1:-1, 1:-1]


def by_kernel(x: Array, dy: Array) -> Array:
    """Gradient by the kernel: sum over pixels of x(shifted by i, j)^T dy."""
    c, d = x.shape[-1], dy.shape[-1]
    if _pixels(x) <= FEW_PIXELS:
        product = shifted(x).reshape(-1, 9 * c).T @ dy.reshape(-1, d)
        return product.reshape(3, 3, c, d)
    if _pixels(x) <= MANY_PIXELS:
        kernel = jax.ShapeDtypeStruct((3, 3, c, d), x.dtype)
        return jax.linear_transpose(functools.partial(_xla, x), kernel)(dy)[0]
    b, h, w, _ = x.shape
    rows = max(1, CHUNK_BYTES // (4 * b * w * (c + d)))
    rows = max(n for n in range(1, h + 1) if h % n == 0 and n <= rows)
    frame = _framed(x)
    if rows == h:
        return _nine_products(frame, dy).reshape(3, 3, c, d)

    def add(total: Array, start: Array):
        piece = lax.dynamic_slice_in_dim(frame, start, rows + 2, axis=1)
        gradient = lax.dynamic_slice_in_dim(dy, start, rows, axis=1)
        return total + _nine_products(piece, gradient), None

    total, _ = lax.scan(add, jnp.zeros((9, c, d)), rows * jnp.arange(h // rows))
    return total.reshape(3, 3, c, d)


def _nine_products(frame: Array, dy: Array) -> Array:
    _, h, w, d = dy.shape
    c, dy = frame.shape[-1], dy.reshape(-1, d)
    parts = [
        frame[:, i : i + h, j : j + w].reshape(-1, c).T @ dy
        for i in range(3)
        for j in range(3)
    ]
    return jnp.stack(parts)


def fits(query: Array, key: Array, value: Array) -> bool:
    """True where `attention` is the better way."""
    scores = query.shape[1] * key.shape[1]
    return scores >= MIN_SCORES and chosen(query, key, value)


def attention(query: Array, key: Array, value: Array) -> Array:
    """softmax(q k^T / sqrt(d)) v over "b n heads d", "b m heads d" arrays."""
    b, n, heads, d = query.shape

    def apart(x: Array) -> Array:
        return x.transpose(0, 2, 1, 3).reshape(b * heads, x.shape[1], d)

    out = lax.map(lambda one: head(*one), (apart(query), apart(key), apart(value)))
    return out.reshape(b, heads, n, d).transpose(0, 2, 1, 3)


@jax.custom_vjp
def head(query: Array, key: Array, value: Array) -> Array:
    """Attention of one head: "n d" from "n d", "m d", "m d"."""
    blocks = _blocks(query, key)
    out = lax.map(lambda q: _weights(q, key) @ value, blocks)
    return out.reshape(query.shape)


def _blocks(query: Array, key: Array) -> Array:
    """Queries in equal blocks: "k n/k d"."""
    n, d = query.shape
    most = max(1, BLOCK_SCORES // key.shape[0])
    rows = max(r for r in range(1, n + 1) if n % r == 0 and r <= most)
    return query.reshape(n // rows, rows, d)


def _weights(query: Array, key: Array) -> Array:
    scale = query.shape[-1] ** -0.5
    return jax.nn.softmax((query * scale) @ key.T, axis=-1)


def _head_forward(query: Array, key: Array, value: Array):
    out = head(query, key, value)
    return out, (query, key, value, out)


def _head_backward(kept: tuple, dy: Array) -> tuple[Array, Array, Array]:
    """Weights again, then dv = p^T dy and ds = p (dy v^T - sum(dy out))."""
    query, key, value, out = kept
    scale = query.shape[-1] ** -0.5
    blocks = _blocks(query, key)
    shared = functools.partial(jnp.reshape, shape=blocks.shape)

    def block(totals: tuple[Array, Array], parts: tuple[Array, Array, Array]):
        q, dy, out = parts
        p = _weights(q, key)
        centre = (dy * out).sum(axis=-1, keepdims=True)
        ds = p * (dy @ value.T - centre) * scale
        dk, dv = totals
        return (dk + ds.T @ q, dv + p.T @ dy), ds @ key

    start = jnp.zeros_like(key), jnp.zeros_like(value)
    (dk, dv), dq = lax.scan(block, start, (blocks, shared(dy), shared(out)))
    return dq.reshape(query.shape), dk, dv


head.defvjp(_head_forward, _head_backward)
