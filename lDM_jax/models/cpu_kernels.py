"""3x3 convolution and attention for CPUs, faster than XLA's own.

Owns `convolution`, `doubled_convolution`, `attention` and the switch between them and
XLA's; they compute the same sums in another order. XLA's kernel gradient of a
convolution needs another layout than the forward pass, its attention writes all scores
to memory, and both run at a fraction of the matrix rate. Here kernels' gradients are
matrix products of shifted images, wide convolutions of many pixels and those of doubled
images take fewer products, and attention takes a head and a block of queries at a time,
which also stores no scores for the backward pass. Other platforms use XLA's own.

`python -m benchmarks.kernels` times both side by side. Reading order: the
switch, convolution (forward, by input, by kernel; Winograd's), convolution of a doubled
image, attention.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from lDM_jax.core.arrays import Array

FEW_PIXELS = 256  # up to these: one product with nine shifted images side by side
MANY_PIXELS = 2048  # above, and of few images: the kernel's gradient as nine products
FEW_PICTURES = 8
WINOGRAD_PIXELS = 1024  # Winograd's algorithm from these pixels and channels on, up to
WINOGRAD_CHANNELS = 192
WINOGRAD_SIZE = 2**23  # numbers: it takes eight times their memory
FEWEST_DOUBLED = 256  # pixels before doubling; below, the 2x2 kernels cost too much
FEW_DOUBLED = 1024  # up to these pixels, from these channels on, by matrix products
MANY_CHANNELS = 128
CHUNK_BYTES = 2**21  # of both operands of one product of the kernel's gradient
BLOCK_SCORES = 2**20  # of attention at a time
MIN_SCORES = 2**16  # of a head; below, XLA's own attention is as fast

_plain = contextvars.ContextVar("plain", default=False)


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Use XLA's own operations in this context, to compile for other platforms."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def applies(*operands: Array) -> bool:
    """Whether this module's algorithms apply: f32 on a CPU, outside `plain`."""
    if _plain.get() or jax.default_backend() != "cpu":
        return False
    return all(operand.dtype == jnp.float32 for operand in operands)


def conv_general_dilated(x: Array, kernel: Array, strides, padding, **options) -> Array:
    """lax.conv_general_dilated; `convolution` where that is equivalent and faster."""
    same = tuple(strides) == (1, 1) and list(padding) == [(1, 1), (1, 1)]
    if same and kernel.shape[:2] == (3, 3) and x.ndim == 4 and applies(x, kernel):
        return convolution(x, kernel)
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)


@jax.custom_vjp
def convolution(x: Array, kernel: Array) -> Array:
    """3x3 convolution of "b h w c" with "3 3 c d", stride 1, zeros around."""
    if _pixels(x) <= FEW_PIXELS:
        return shift_nine(x) @ kernel.reshape(-1, kernel.shape[-1])
    return winograd(x, kernel) if _fits_winograd(x, kernel) else _xla(x, kernel)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return convolution(x, kernel), (x, kernel)


def _backward(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    if _fits_winograd(x, kernel):
        return jax.vjp(winograd, x, kernel)[1](dy)  # 4/9 of the products here too
    return input_gradient(x, kernel, dy), kernel_gradient(x, dy)


convolution.defvjp(_forward, _backward)


def _xla(x: Array, kernel: Array, pad=((1, 1), (1, 1))) -> Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), pad, dimension_numbers=numbers)


def _pixels(x: Array) -> int:
    return x.shape[0] * x.shape[1] * x.shape[2]


def _pad_one(x: Array) -> Array:
    """One pixel of zeros on every side."""
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def shift_nine(x: Array) -> Array:
    """The nine shifted images side by side: "b h w 9c", rows of the kernel first."""
    return _stack_shifts(_pad_one(x), (3, 3))


def _stack_shifts(frame: Array, taps: tuple[int, int]) -> Array:
    """Shifts of the frame side by side: "b h w ijc"."""
    _, h, w, _ = frame.shape
    h, w = h - taps[0] + 1, w - taps[1] + 1
    parts = [
        frame[:, i : i + h, j : j + w] for i in range(taps[0]) for j in range(taps[1])
    ]
    return jnp.concatenate(parts, axis=-1)


def input_gradient(x: Array, kernel: Array, dy: Array) -> Array:
    """Gradient in x: the convolution of dy with the reversed, transposed kernel."""
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


def kernel_gradient(x: Array, dy: Array) -> Array:
    """Gradient in the kernel: sum over pixels of x(shifted by i, j)^T dy."""
    c, d = x.shape[-1], dy.shape[-1]
    if _pixels(x) <= FEW_PIXELS:
        product = shift_nine(x).reshape(-1, 9 * c).T @ dy.reshape(-1, d)
        return product.reshape(3, 3, c, d)
    if _pixels(x) <= MANY_PIXELS and len(x) >= FEW_PICTURES:
        kernel = jax.ShapeDtypeStruct((3, 3, c, d), x.dtype)
        return jax.linear_transpose(functools.partial(_xla, x), kernel)(dy)[0]
    return _tap_gradients(_pad_one(x), dy)


def _tap_gradients(frame: Array, dy: Array) -> Array:
    """sum over pixels of frame(shifted by i, j)^T dy: "i j c d", for every tap."""
    (b, h, w, d), c = dy.shape, frame.shape[-1]
    taps = frame.shape[1] - h + 1, frame.shape[2] - w + 1
    rows = max(1, CHUNK_BYTES // (4 * b * w * (c + d)))
    rows = max(n for n in range(1, h + 1) if h % n == 0 and n <= rows)
    if rows == h:
        return _products(frame, dy, taps)

    def add(total: Array, start: Array):
        piece = lax.dynamic_slice_in_dim(frame, start, rows + taps[0] - 1, axis=1)
        gradient = lax.dynamic_slice_in_dim(dy, start, rows, axis=1)
        return total + _products(piece, gradient, taps), None

    start = jnp.zeros((*taps, c, d))
    return lax.scan(add, start, rows * jnp.arange(h // rows))[0]


def _products(frame: Array, dy: Array, taps: tuple[int, int]) -> Array:
    _, h, w, d = dy.shape
    c, dy = frame.shape[-1], dy.reshape(-1, d)
    parts = [
        frame[:, i : i + h, j : j + w].reshape(-1, c).T @ dy
        for i in range(taps[0])
        for j in range(taps[1])
    ]
    return jnp.stack(parts).reshape(*taps, c, d)


def fits_doubled(x: Array, kernel: Array) -> bool:
    """Whether `doubled_convolution` is faster."""
    return _pixels(x) >= FEWEST_DOUBLED and applies(x, kernel)


def _fits_winograd(x: Array, kernel: Array) -> bool:
    """Whether Winograd's sums cost less than the products that it saves."""
    (_, h, w, c), d = x.shape, kernel.shape[-1]
    even, wide = h % 2 == w % 2 == 0, min(c, d) >= WINOGRAD_CHANNELS
    many = _pixels(x) >= WINOGRAD_PIXELS
    return even and wide and many and _pixels(x) * max(c, d) <= WINOGRAD_SIZE


def winograd(x: Array, kernel: Array) -> Array:
    """3x3 convolution by F(2x2, 3x3) of Lavin and Gray (arXiv 1509.09308).

    y = A^T ((G g G^T) * (B^T d B)) A for tiles d of 4x4 pixels that overlap by two: 16
    products a tile and pair of channels for four outputs, where the sum itself has 36.
    Extents must be even.
    """
    b, h, w, c = x.shape
    d = kernel.shape[-1]
    frame = _pad_one(x)
    rows = [frame[:, i : i + h : 2] for i in range(4)]
    tiles = [[row[:, :, j : j + w : 2] for j in range(4)] for row in rows]
    tiles = [tile.reshape(-1, c) for row in _both_axes(_tile, tiles) for tile in row]
    taps = [tap for row in _both_axes(_taps, kernel) for tap in row]
    products = jnp.stack(tiles) @ jnp.stack(taps)
    products = products.reshape(4, 4, b, h // 2, w // 2, d)
    return _interleave(_both_axes(_outputs, products))


def _tile(d) -> tuple[Array, ...]:
    """B^T d along one axis."""
    return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]


def _taps(g) -> tuple[Array, ...]:
    """G g along one axis."""
    ends = g[0] + g[2]
    return g[0], (ends + g[1]) / 2, (ends - g[1]) / 2, g[2]


def _outputs(m) -> tuple[Array, ...]:
    """A^T m along one axis."""
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def _both_axes(transform, grid) -> list[tuple[Array, ...]]:
    """A transform of rows, then of columns, of a grid of arrays."""
    columns = [transform(column) for column in zip(*grid, strict=True)]
    return [transform(row) for row in zip(*columns, strict=True)]


def _interleave(parts) -> Array:
    """Pixels by the parity of row and column, four "b h w d" -> "b 2h 2w d"."""
    b, h, w, d = parts[0][0].shape
    rows = [jnp.stack(row, axis=3) for row in parts]
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, d)


@jax.custom_vjp
def doubled_convolution(x: Array, kernel: Array) -> Array:
    """`convolution` of x "b h w c" with each pixel doubled both ways: "b 2h 2w d".

    Under a pixel of the doubled image two rows of the kernel meet the same row of x,
    and so with columns: pixels of parity (p, q) are a convolution of x with a 2x2
    kernel, four of nine products.
    """
    c, d = kernel.shape[2:]
    frame = _pad_one(x)
    few = _pixels(x) <= FEW_DOUBLED and c >= MANY_CHANNELS

    def part(p: int, q: int, corner: Array) -> Array:
        if few:
            shifts = _stack_shifts(_parity_frame(frame, p, q), (2, 2))
            return shifts @ corner.reshape(4 * c, d)
        return _xla(x, corner, ((1 - p, p), (1 - q, q)))

    return _interleave(_each_parity(part, _corner_kernels(kernel)))


def _corner_kernels(kernel: Array) -> list[list[Array]]:
    """The 2x2 kernels of the four parities."""
    rows = kernel[:2].at[1].add(kernel[2]), kernel[1:].at[0].add(kernel[0])
    return [
        [k[:, :2].at[:, 1].add(k[:, 2]), k[:, 1:].at[:, 0].add(k[:, 0])] for k in rows
    ]


def _each_parity(function, *operands) -> list[list]:
    """function(p, q, *operands[p][q]) for both parities."""
    return [
        [function(p, q, *(operand[p][q] for operand in operands)) for q in (0, 1)]
        for p in (0, 1)
    ]


def _parity_frame(frame: Array, p: int, q: int) -> Array:
    """The frame under pixels of parity (p, q): all but a row and a column."""
    _, h, w, _ = frame.shape
    return frame[:, p : p + h - 1, q : q + w - 1]


def _doubled_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return doubled_convolution(x, kernel), (x, kernel)


def _doubled_backward(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    b, h, w, _ = x.shape
    frame, cells = _pad_one(x), dy.reshape(b, h, 2, w, 2, dy.shape[-1])
    dys = _each_parity(lambda p, q: cells[:, :, p, :, q])

    def by_x(p: int, q: int, dy: Array, corner: Array) -> Array:
        kernel = corner[::-1, ::-1].swapaxes(2, 3)
        return _xla(dy, kernel, ((p, 1 - p), (q, 1 - q)))

    def by_corner(p: int, q: int, dy: Array) -> Array:
        return _tap_gradients(_parity_frame(frame, p, q), dy)

    dx = sum(sum(row) for row in _each_parity(by_x, dys, _corner_kernels(kernel)))
    (dk,) = jax.linear_transpose(_corner_kernels, kernel)(_each_parity(by_corner, dys))
    return dx, dk


doubled_convolution.defvjp(_doubled_forward, _doubled_backward)


def fits(query: Array, key: Array, value: Array) -> bool:
    """Whether `attention` is faster than XLA's."""
    scores = query.shape[1] * key.shape[1]
    return scores >= MIN_SCORES and applies(query, key, value)


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
    return _attend(query, key, value)[0]


def _blocks(query: Array, key: Array) -> Array:
    """Queries in equal blocks: "k n/k d"."""
    n, d = query.shape
    most = max(1, BLOCK_SCORES // key.shape[0])
    rows = max(r for r in range(1, n + 1) if n % r == 0 and r <= most)
    return query.reshape(n // rows, rows, d)


def _attend(query: Array, key: Array, value: Array) -> tuple[Array, Array]:
    """(the head "n d", l = log sum_j exp(s_ij) of its scores s "n")."""
    scale = query.shape[-1] ** -0.5

    def block(q: Array) -> tuple[Array, Array]:
        scores = (q * scale) @ key.T
        most = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - most)
        total = weights.sum(axis=-1, keepdims=True)
        return (weights @ value) / total, (most + jnp.log(total))[:, 0]

    out, log_total = lax.map(block, _blocks(query, key))
    return out.reshape(query.shape), log_total.reshape(-1)


def _head_forward(query: Array, key: Array, value: Array):
    out, log_total = _attend(query, key, value)
    return out, (query, key, value, out, log_total)


def _head_backward(residuals: tuple, dy: Array) -> tuple[Array, Array, Array]:
    """Weights again, p = exp(s - l), then dv = p^T dy and ds = p (dy v^T - dy . out).

    Keys lie along the rows, so that two of the three products need no transposition,
    and what is subtracted is one more column of the products.
    """
    query, key, value, out, log_total = residuals
    scale = query.shape[-1] ** -0.5
    blocks = _blocks(query, key)
    shared = functools.partial(jnp.reshape, shape=blocks.shape)
    keys, values = (_with_column(x, -jnp.ones(len(x), x.dtype)) for x in (key, value))

    def block(totals: tuple[Array, Array], parts: tuple[Array, Array, Array, Array]):
        q, dy, out, log_total = parts
        q = q * scale
        p = jnp.exp(keys @ _with_column(q, log_total).T)
        ds = p * (values @ _with_column(dy, (dy * out).sum(axis=-1)).T)
        dk, dv = totals
        return (dk + ds @ q, dv + p @ dy), (ds.T @ key) * scale

    start = jnp.zeros_like(key), jnp.zeros_like(value)
    parts = blocks, shared(dy), shared(out), log_total.reshape(blocks.shape[:2])
    (dk, dv), dq = lax.scan(block, start, parts)
    return dq.reshape(query.shape), dk, dv


def _with_column(x: Array, column: Array) -> Array:
    return jnp.concatenate([x, column[:, None]], axis=1)


head.defvjp(_head_forward, _head_backward)
