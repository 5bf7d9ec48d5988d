"""Convolution and attention for CPUs against XLA's own operations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lDM_jax.models import cpu_kernels, layers
from lDM_jax.training import flops

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
        monkeypatch.setattr(cpu_kernels, "CHUNK_BYTES", chunk)
    x, kernel = normal(0, *shape), normal(1, 3, 3, shape[-1], 7)
    result = jax.jit(lambda *a: with_gradients(cpu_kernels.convolution, *a))(x, kernel)
    expected = with_gradients(xla, x, kernel)
    for one, other in zip(result, expected, strict=True):
        np.testing.assert_allclose(one, other, **CLOSE)


@pytest.mark.parametrize("shape", [(2, 4, 6, 5), (1, 16, 2, 3)])
def test_winograds_convolution_and_its_gradients_are_xla_s(shape, monkeypatch):
    for name in ("FEW_PIXELS", "WINOGRAD_PIXELS", "WINOGRAD_CHANNELS"):
        monkeypatch.setattr(cpu_kernels, name, 1)
    x, kernel = normal(0, *shape), normal(1, 3, 3, shape[-1], 7)
    result = jax.jit(lambda *a: with_gradients(cpu_kernels.convolution, *a))(x, kernel)
    products = str(jax.make_jaxpr(cpu_kernels.convolution)(x, kernel)).count(
        "dot_general"
    )
    assert products == 1, "Winograd's way was not taken"
    for one, other in zip(result, with_gradients(xla, x, kernel), strict=True):
        np.testing.assert_allclose(one, other, **CLOSE)


@pytest.mark.parametrize(
    ("h", "w", "c", "taken"),
    [
        (32, 32, 192, True),
        (33, 32, 192, False),  # odd
        (32, 33, 192, False),
        (30, 30, 192, False),  # few pixels
        (32, 32, 191, False),  # few channels
        (512, 512, 192, False),  # too much memory
    ],
)
def test_winograds_way_is_for_wide_pictures_of_even_extents(
    h, w, c, taken, monkeypatch
):
    calls = []
    own = cpu_kernels.winograd
    monkeypatch.setattr(cpu_kernels, "winograd", lambda *a: calls.append(a) or own(*a))
    x, kernel = jnp.zeros((1, h, w, c)), jnp.zeros((3, 3, c, 200))
    jax.eval_shape(lambda *a: with_gradients(cpu_kernels.convolution, *a), x, kernel)
    assert len(calls) == 2 * taken  # forward and backward


@pytest.mark.parametrize("few", [0, 2**20], ids=["xla", "products"])
@pytest.mark.parametrize("shape", [(2, 4, 6, 5), (1, 3, 1, 2), (1, 16, 48, 3)])
def test_convolution_of_doubled_pictures_and_its_gradients_are_xla_s(
    shape, few, monkeypatch
):
    monkeypatch.setattr(cpu_kernels, "FEW_DOUBLED", few)
    monkeypatch.setattr(cpu_kernels, "MANY_CHANNELS", 1)
    monkeypatch.setattr(cpu_kernels, "CHUNK_BYTES", 2**13)
    x, kernel = normal(0, *shape), normal(1, 3, 3, shape[-1], 7)
    ours = jax.jit(lambda *a: with_gradients(cpu_kernels.doubled_convolution, *a))
    expected = with_gradients(lambda x, k: xla(layers.upsample2(x), k), x, kernel)
    for one, other in zip(ours(x, kernel), expected, strict=True):
        np.testing.assert_allclose(one, other, **CLOSE)


def test_upsampling_takes_it_from_sixteen_by_sixteen_on():
    upsample = layers.Upsample()
    x, small = normal(0, 1, 16, 16, 4), normal(0, 1, 8, 8, 4)
    params = upsample.init(jax.random.key(0), x)
    with cpu_kernels.plain():
        expected = upsample.apply(params, x), upsample.apply(params, small)
    for picture, plain in zip((x, small), expected, strict=True):
        result = upsample.apply(params, picture)
        np.testing.assert_allclose(result, plain, **CLOSE)
    text = str(jax.make_jaxpr(upsample.apply)(params, x))
    assert "doubled_convolution" in text
    text = str(jax.make_jaxpr(upsample.apply)(params, small))
    assert "doubled_convolution" not in text


@pytest.mark.parametrize(("c", "groups"), [(12, 4), (6, 6), (8, 1), (4, 32)])
def test_group_norm_is_flax_s(c, groups):
    x = 3 * normal(0, 2, 5, 4, c) + 2
    norm = layers.GroupNorm(num_groups=groups, eps=1e-3)
    own = norm.init(jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, own) == {"norm": {"scale": (c,), "bias": (c,)}}
    params = {"scale": normal(1, c), "bias": normal(2, c)}
    flax = nn.GroupNorm(min(groups, c), epsilon=1e-3, use_fast_variance=False)
    ours = with_gradients(
        lambda p, x: norm.apply({"params": {"norm": p}}, x), params, x
    )
    theirs = with_gradients(lambda p, x: flax.apply({"params": p}, x), params, x)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("scores", [2**20, 96 * 16, 1])
def test_attention_and_its_gradients_are_xla_s(scores, monkeypatch):
    """In one block, in blocks of sixteen queries, and of one."""
    monkeypatch.setattr(cpu_kernels, "BLOCK_SCORES", scores)
    sizes = enumerate((64, 96, 96))
    query, key, value = (normal(seed, 2, n, 3, 8) for seed, n in sizes)
    ours = jax.jit(lambda *a: with_gradients(cpu_kernels.attention, *a))
    result = ours(query, key, value)
    expected = with_gradients(jax.nn.dot_product_attention, query, key, value)
    for one, other in zip(result, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_layers_take_this_way_unless_told_otherwise():
    query = normal(0, 1, 512, 1, 4)
    conv = layers.conv3x3(8, "conv")
    x = normal(1, 1, 8, 8, 4)
    params = conv.init(jax.random.key(0), x)
    for function, operands in ((layers.attend, [query] * 3), (conv.apply, [params, x])):
        own = str(jax.make_jaxpr(function)(*operands))
        with cpu_kernels.plain():  # another function, as traces are kept
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
    step = jax.jit(lambda *a: with_gradients(cpu_kernels.convolution, *a))
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
