"""FLOPs read off a jaxpr: closed forms, nesting, and PyTorch's own counter."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from lDM_jax.core.arrays import Cond
from lDM_jax.models.layers import AttentionBlock, attend
from lDM_jax.models.unet import UNet
from lDM_jax.training import flops
from tests.reference import rule


def floats(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def of_module(module, *inputs) -> int:
    params = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return flops.count(module.apply, params, *inputs)


def test_dense_layer():
    """2 x rows x inputs x outputs; the bias is free."""
    assert of_module(nn.Dense(7), floats(2, 3, 5)) == 2 * (2 * 3) * 5 * 7


@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 3), (2, 0)), "VALID"])
@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (2, 4)])
def test_convolution(padding, stride, groups):
    """Every one of the 3 x 2 taps at every output position, padded or not."""
    conv = nn.Conv(
        12, (3, 2), strides=stride, padding=padding, feature_group_count=groups
    )
    x = floats(2, 9, 8, 4)
    out, _ = jax.eval_shape(conv.init_with_output, jax.random.key(0), x)
    positions = out.shape[0] * out.shape[1] * out.shape[2]
    assert of_module(conv, x) == 2 * positions * 12 * (3 * 2 * 4 // groups)


def attention_flops(rows, queries, keys, heads, width):
    return 2 * (2 * rows * heads * queries * keys * width)


def test_attention():
    """Two products of queries x keys x width a head: scores and their mean."""
    q, k = floats(2, 6, 3, 8), floats(2, 5, 3, 8)
    found = flops.count(attend, q, k, k)
    assert found == attention_flops(2, 6, 5, 3, 8)
    block = of_module(AttentionBlock(4, num_groups=8), floats(2, 4, 4, 32))
    dense = 2 * (2 * 16) * (32 * 3 * 32 + 32 * 32)
    assert block == dense + attention_flops(2, 16, 16, 4, 8)


@pytest.mark.parametrize("layout", ["BTNH", "BNTH"])
def test_fused_attention_counts_like_its_two_products(layout, monkeypatch):
    """cuDNN's kernel, traced where there is none."""
    kernel = pytest.importorskip(
        "jax._src.cudnn.fused_attention_stablehlo",
        reason="this jax keeps its cuDNN attention elsewhere",
    )
    monkeypatch.setattr(kernel, "check_cudnn_version", lambda: 92_000)
    monkeypatch.setattr(kernel, "check_compute_capability", lambda *_: True)
    shapes = [(2, 6, 3, 8), (2, 5, 3, 8)]
    if layout == "BNTH":
        shapes = [(b, h, n, d) for b, n, h, d in shapes]
    q, k = (floats(*shape, dtype=jnp.bfloat16) for shape in shapes)

    def fused(q, k):
        return kernel.dot_product_attention(q, k, k, qkv_layout=layout)

    assert flops.count(fused, q, k) == attention_flops(2, 6, 5, 3, 8)


def test_nesting():
    """Through jit, checkpoint, vmap, custom rules; a scan counts once a step."""
    a = floats(4, 4)
    once = 2 * 4**3

    def product(x):
        return x @ x

    custom = jax.custom_vjp(product)
    custom.defvjp(lambda x: (product(x), x), lambda x, bar: (bar @ x,))

    def looped(x):
        return jax.lax.scan(lambda x, _: (x @ x, None), x, length=7)[0]

    def branch(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x, lambda x: x @ x @ x, x)

    def endless(x):
        return jax.lax.while_loop(lambda x: x[0, 0] > 0, product, x)

    def draw(x):  # a while loop without products inside is nothing
        return x @ jax.lax.fori_loop(0, x.shape[0], lambda i, x: x + 1, x)

    assert flops.count(product, a) == once
    assert flops.count(jax.jit(jax.checkpoint(product)), a) == once
    assert flops.count(jax.vmap(product), floats(3, 4, 4)) == 3 * once
    assert flops.count(jax.nn.silu, a) == 0  # a custom rule
    assert flops.count(custom, a) == once
    assert flops.count(jax.jit(looped), a) == 7 * once
    assert flops.count(branch, a) == 2 * once
    assert flops.count(draw, a) == once
    with pytest.raises(ValueError, match="while"):
        flops.count(endless, a)


def test_a_gradient_of_dense_layers_costs_twice_the_forward_pass():
    """The rule behind "training = 3 x forward": one product each for x and W."""
    module, x = nn.Dense(16), floats(4, 8)
    params = jax.eval_shape(module.init, jax.random.key(0), x)
    forward = flops.count(module.apply, params, x)
    gradient = jax.grad(lambda p, x: (module.apply(p, x) ** 2).sum(), argnums=(0, 1))
    assert flops.count(gradient, params, x) == 3 * forward


def test_batch_independent():
    unet = UNet(3, 32, (1, 2), 1, (1, 2), num_heads=2)

    def count(rows):
        return of_module(unet, floats(rows, 8, 8, 3), floats(rows))

    assert count(6) == 6 * count(1)


@pytest.mark.live
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("network", "unet", "context"),
    [
        pytest.param(
            "unet",
            UNet(4, 32, (1, 2), 1, (1,), num_heads=4, context_width=48),
            48,
            marks=pytest.mark.slow,
        ),
        ("unet_plain", UNet(4, 32, (1, 2, 3), 1, (2, 4), head_channels=16), 0),
    ],
)
def test_torchs_counter(network, unet, context):
    """torch.utils.flop_counter has the same conventions: equal to the last digit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch = pytest.importorskip("torch", reason="needs requirements-dev.txt")
        pytest.importorskip("diffusers", reason="needs requirements-dev.txt")
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        from tests.reference import record_diffusers
    model = record_diffusers.build(network)
    inputs = rule.diffusers_inputs(network, "")
    z, t = record_diffusers.first(inputs["z"]), torch.from_numpy(inputs["t"])
    kwargs = {}
    if context:
        kwargs["encoder_hidden_states"] = torch.from_numpy(inputs["context"])
    # It does not know the CPU's fused attention, so that one is switched off.
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        with sdpa_kernel(SDPBackend.MATH):
            model(z, t, **kwargs)
    cond = Cond(context=floats(2, 7, context) if context else None)
    ours = of_module(unet, floats(2, 16, 16, 4), floats(2), cond)
    assert ours == counter.get_total_flops()
