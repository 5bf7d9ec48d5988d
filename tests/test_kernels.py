"""Convolution and attention for CPUs against XLA's own operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lDM_jax import flops
from lDM_jax.models import kernels, layers

# Sums of up to 9 x 48 (kernels: 8192) products in another order, in f32.
CLOSE = dict(rtol=2e-5, atol=2e-4)


def normal(seed: int, *shape: int) -> jax.Array:
    draw = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(draw, jnp.float32)


def xla(x, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    pad = [(1, 1), (1, 1)]
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), pad, dimension_numbers=numbers
    )


def with_gradients(function, *operands):
    out, pull = jax.vjp(function, *operands)
    weights = jnp.cos(jnp.arange(out.size, dtype=out.dtype))
    return (out, *pull(weights.reshape(out.shape)))


@pytest.mark.parametrize(
    ("shape", "chunk"),
    [
        ((2, 4, 6, 5), None),  # few pixels: side by side
        ((2, 16, 16, 5), None),  # XLA's own
        ((2, 64, 32, 5), None),  # nine products
        ((2, 64, 32, 5), 2**15),  # the same in chunks of rows
        ((1, 3, 800, 4), 1),  # a row at a time
    ],
)
def test_convolution_and_its_gradients_are_xla_s(shape, chunk, monkeypatch):
    if chunk:
        monkeypatch.setattr(kernels, "CHUNK_BYTES", chunk)
    x, kernel = normal(0, *shape), normal(1, 3, 3, shape[-1], 7)
    found = jax.jit(lambda *a: with_gradients(kernels.convolution, *a))(x, kernel)
    expected = with_gradients(xla, x, kernel)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, **CLOSE)


@pytest.mark.parametrize("scores", [2**20, 96 * 16, 1])
def test_attention_and_its_gradients_are_xla_s(scores, monkeypatch):
    """In one block, in blocks of sixteen queries, and of one."""
    monkeypatch.setattr(kernels, "BLOCK_SCORES", scores)
    sizes = enumerate((64, 96, 96))
    query, key, value = (normal(seed, 2, n, 3, 8) for seed, n in sizes)
    ours = jax.jit(lambda *a: with_gradients(kernels.attention, *a))
    found = ours(query, key, value)
    expected = with_gradients(jax.nn.dot_product_attention, query, key, value)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_layers_take_this_way_unless_told_otherwise():
    query = normal(0, 1, 512, 1, 4)
    conv = layers.conv3x3(8, "conv")
    x = normal(1, 1, 8, 8, 4)
    params = conv.init(jax.random.key(0), x)
    for function, operands in ((layers.attend, [query] * 3), (conv.apply, [params, x])):
        own = str(jax.make_jaxpr(function)(*operands))
        with kernels.plain():  # another function, as traces are kept
            plain = str(jax.make_jaxpr(lambda *a: function(*a))(*operands))  # noqa: B023
        assert "custom_vjp" in own
        assert "custom_vjp" not in plain
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), operands)
        if function is layers.attend:
            assert "custom_vjp" not in str(jax.make_jaxpr(function)(*half))


def test_on_a_sharded_batch_nothing_changes():
    """Batches of eight devices, gradient by the kernel summed over all of them."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x, kernel = normal(0, 16, 32, 16, 3), normal(1, 3, 3, 3, 4)
    there = jax.device_put(x, NamedSharding(mesh, P("data")))
    step = jax.jit(lambda *a: with_gradients(kernels.convolution, *a))
    expected = with_gradients(xla, x, kernel)
    for one, other in zip(step(there, kernel), expected, strict=True):
        np.testing.assert_allclose(one, other, **CLOSE)


def test_operations_are_counted_as_xla_s_on_every_platform():
    """Recomputed scores and fewer taps of the CPU's way are no work of the network."""
    query, x = normal(0, 1, 512, 1, 4), normal(1, 1, 8, 8, 4)
    conv = layers.conv3x3(8, "conv")
    params = conv.init(jax.random.key(0), x)
    assert flops.count(layers.attend, query, query, query) == 4 * 512 * 512 * 4
    assert flops.count(conv.apply, params, x) == 2 * 64 * 8 * 9 * 4
