"""Mathematical properties of the networks, and the sizes of the published ones.

Agreement with other programs is tested in test_parity_original and _diffusers; here
are identities, symmetries and limits. Published sizes are only shapes: nothing is
allocated.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lDM_jax.core.arrays import Cond
from lDM_jax.core.errors import UserError
from lDM_jax.interop import names as tables
from lDM_jax.interop import names_text
from lDM_jax.models import cpu_kernels, layers
from lDM_jax.models.autoencoder import (
    Autoencoder,
    DiagonalGaussian,
    FirstStageAttention,
    VectorQuantizer,
)
from lDM_jax.models.bert_text import TextTransformer
from lDM_jax.models.conditioners import ClassConditioner, Conditioner, TextConditioner
from lDM_jax.models.unet import UNet, check_extent
from lDM_jax.weights import name_maps
from tests.reference import rule

noise = rule.noise
FIRST_STAGES = {
    "vq-f4": Autoencoder(128, (1, 2, 4), 2, 3, 3, num_codes=8192),
    "kl-f8": Autoencoder(128, (1, 2, 4, 4), 2, 4, 4),
}
# The published models of tests/reference/state_dicts: UNet, first stage, text.
PUBLISHED = {
    "celeba256": (
        UNet(3, 224, (1, 2, 3, 4), 2, (8, 4, 2), head_channels=32),
        FIRST_STAGES["vq-f4"],
        None,
    ),
    "lsun_churches256": (
        UNet(
            4,
            192,
            (1, 2, 2, 4, 4),
            2,
            (1, 2, 4, 8),
            num_heads=8,
            scale_shift=True,
            res_resample=True,
        ),
        FIRST_STAGES["kl-f8"],
        None,
    ),
    "cin256-v2": (
        UNet(3, 192, (1, 2, 3, 5), 2, (8, 4, 2), num_heads=1, context_width=512),
        FIRST_STAGES["vq-f4"],
        None,
    ),
    "txt2img-1p4B-eval": (
        UNet(4, 320, (1, 2, 4, 4), 2, (4, 2, 1), num_heads=8, context_width=1280),
        FIRST_STAGES["kl-f8"],
        TextTransformer(1280, 32),
    ),
}


@functools.cache
def published_names(model: str) -> tuple[name_maps.Names, ...]:
    """The maps of a published UNet, first stage and text transformer."""
    unet, first_stage, text = PUBLISHED[model]
    text = {} if text is None else names_text.text_names(text)
    return tables.unet_names(unet), tables.autoencoder_names(first_stage), text


def millions(names: name_maps.Names, *, unused: bool = False) -> float:
    """Parameters in millions to three decimals, ours or with the unused entries."""
    entries = [e for e in names.values() if unused or e.path is not None]
    return round(sum(math.prod(e.shape) for e in entries) / 1e6, 3)


# Rombach et al. 2022, tables 12 to 15, and the released state dicts.
@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("celeba256", 274.056),
        ("lsun_churches256", 294.967),
        ("cin256-v2", 400.921),
        ("txt2img-1p4B-eval", 872.300),
    ],
)
def test_published_unet_sizes(model, expected):
    assert millions(published_names(model)[0]) == expected


# vq-f4 and kl-f8.
@pytest.mark.parametrize(
    ("model", "expected"), [("celeba256", 55.323), ("lsun_churches256", 83.654)]
)
def test_published_first_stage_sizes(model, expected):
    assert millions(published_names(model)[1]) == expected


def test_published_text_transformer_size():
    """581.994M as released, of which 39.1M predict words and do not exist here."""
    names = published_names("txt2img-1p4B-eval")[2]
    assert millions(names, unused=True) == 581.994
    logits = (1280 + 1) * 30_522 / 1e6
    assert millions(names) == round(581.994 - logits, 3)


@pytest.mark.parametrize("model", PUBLISHED)
def test_every_published_parameter_has_a_place(model):
    """Names and shapes of the whole released model, and nothing else."""
    prefixes = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
    names = {}
    for part, prefix in zip(published_names(model), prefixes, strict=True):
        names |= name_maps.prefixed(part, prefix)
    released = rule.read_shapes(rule.FOLDER / "state_dicts" / f"{model}.tsv.gz")
    if model == "cin256-v2":  # the class embedding has no map yet
        assert released.pop("cond_stage_model.embedding.weight") == (1001, 512)
    assert {name: entry.shape for name, entry in names.items()} == released


def test_unet_starts_at_zero():
    """The last layer starts at zero: eps_hat = 0 whatever the input, MSE 1."""
    unet = UNet(3, 32, (1,), 1, (1,), num_heads=2, context_width=8)
    context, concat = noise("context", (2, 5, 8)), noise("concat", (2, 4, 4, 1))
    cond = Cond(context=context, concat=concat, vector=noise("vector", (2, 128)))
    init = rule.fast_jit(unet.init_with_output)
    t = np.array([0, 999], np.int32)
    out, _ = init(jax.random.key(0), noise("z", (2, 4, 4, 3)), t, cond)
    assert out.shape == (2, 4, 4, 3) and not np.asarray(out).any()


def test_residual_branches_of_the_unet_start_at_zero():
    x = jnp.asarray(noise("x", (1, 4, 4, 32)))
    emb = jnp.asarray(noise("emb", (1, 8)))
    context = jnp.asarray(noise("context", (1, 3, 8)))
    key = jax.random.key(1)
    for module, *inputs in (
        (layers.ResBlock(32), x, emb),
        (layers.ResBlock(32, scale_shift=True), x, emb),
        (layers.AttentionBlock(2), x),
        (layers.SpatialTransformer(2), x, context),
    ):
        out, _ = rule.fast_jit(module.init_with_output)(key, *inputs)
        np.testing.assert_array_equal(out, x)


def test_resampling():
    """average2 undoes upsample2 exactly; the other way round is a projection."""
    small, large = (jnp.asarray(noise("x", (2, s, s + 2, 3))) for s in (4, 8))
    np.testing.assert_array_equal(layers.average2(layers.upsample2(small)), small)
    projected = layers.upsample2(layers.average2(large))
    again = layers.upsample2(layers.average2(projected))
    np.testing.assert_array_equal(again, projected)
    np.testing.assert_allclose(projected.mean(), large.mean(), atol=1e-6)
    # Nearest neighbor: position (i, j) comes from (i // 2, j // 2).
    np.testing.assert_array_equal(layers.upsample2(small)[:, 5, 2], small[:, 2, 1])


def test_time_features():
    """Cosines first; the product of two depends on the difference of times alone."""
    t = jnp.array([0, 1, 40, 41])
    features = np.asarray(layers.time_features(t, 64), np.float64)
    np.testing.assert_array_equal(features[0], [1.0] * 32 + [0.0] * 32)
    products = features @ features.T
    # Angles up to 41 radians are known to 41 * 2^-24.
    np.testing.assert_allclose(products[0, 1], products[2, 3], rtol=1e-5)
    np.testing.assert_allclose(np.diag(products), 32, rtol=1e-5)
    assert not np.asarray(layers.time_features(t, 65))[:, -1].any()
    # The first frequency is 1 and the last is nearly 1 / max_period.
    np.testing.assert_allclose(features[1, 0], math.cos(1.0), rtol=1e-5)


def drawn(module, *inputs):
    """Output function and variables by the rule, so that no layer is zero."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    leaves, tree = jax.tree.flatten(shapes)
    arrays = [noise(f"w{i}", leaf.shape) * 0.3 for i, leaf in enumerate(leaves)]
    variables = jax.tree.unflatten(tree, arrays)
    apply = rule.fast_jit(module.apply)
    return lambda *args: np.asarray(apply(variables, *args))


@pytest.mark.parametrize(
    "module",
    [
        layers.AttentionBlock(4, num_groups=8),
        FirstStageAttention(num_groups=8),
        layers.SpatialTransformer(4, depth=2, num_groups=8),
    ],
)
def test_attention_over_positions_is_equivariant_to_permutations(module):
    """Permuting positions permutes the output; the norm sees all positions alike."""
    x = noise("x", (2, 4, 4, 32))
    order = np.random.default_rng(0).permutation(16)
    shuffled = x.reshape(2, 16, 32)[:, order].reshape(x.shape)
    apply = drawn(module, x)
    expected = apply(x).reshape(2, 16, 32)[:, order]
    np.testing.assert_allclose(apply(shuffled).reshape(2, 16, 32), expected, atol=1e-4)
    assert np.abs(apply(x) - x).max() > 0.1


def test_cross_attention_sees_a_set():
    """The order of context tokens does not matter; their number of copies neither."""
    x, context = noise("x", (2, 6, 16)), noise("context", (2, 5, 8))
    apply = drawn(layers.Attention(2, 8), x, context)
    expected = apply(x, context)
    np.testing.assert_allclose(apply(x, context[:, ::-1]), expected, atol=1e-5)
    twice = np.concatenate([context, context], axis=1)
    np.testing.assert_allclose(apply(x, twice), expected, atol=1e-5)


def test_attend_limits():
    """Equal keys give the mean of the values; a much larger product gives one value."""
    query, value = (jnp.asarray(noise(n, (1, 3, 2, 4))) for n in ("q", "v"))
    mean = layers.attend(query, jnp.ones_like(query), value)
    expected = jnp.broadcast_to(value.mean(axis=1, keepdims=True), value.shape)
    np.testing.assert_allclose(mean, expected, atol=1e-6)
    axes = jnp.eye(4)[None, :3, None, :].repeat(2, axis=2)
    np.testing.assert_allclose(
        layers.attend(1000 * axes, axes, value), value, atol=1e-6
    )
    # A mask that leaves one key leaves its value.
    only = jnp.zeros((1, 1, 3, 3), bool).at[..., 1].set(True)
    out = layers.attend(query, query, value, only)
    np.testing.assert_allclose(out, value[:, [1, 1, 1]], atol=1e-6)


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (layers.Attention(2, 8, qk_norm=True), (noise("x", (2, 5, 16)),)),
        (layers.AttentionBlock(2, qk_norm=True), (noise("x", (2, 2, 3, 32)),)),
    ],
)
def test_normed_heads_do_not_depend_on_the_size_of_queries_and_keys(module, inputs):
    """RMS norm is scale free up to its eps of 1e-6, here beside 1e4 and more."""
    params = module.init(jax.random.key(0), *inputs)["params"]
    if "proj_out" in params:  # starts at zero
        params["proj_out"]["kernel"] = jnp.asarray(noise("out", (32, 32)))
        params["qkv"] = {"kernel": noise("qkv", (32, 96)), "bias": jnp.zeros(96)}
        # heads x [q | k | v]: the values keep their size
        factors = np.tile(np.array([1e3, 1e2, 1], np.float32).repeat(16), 2)
        changed = params | {"qkv": jax.tree.map(lambda x: x * factors, params["qkv"])}
    else:
        factors = {"to_q": 1e3, "to_k": 1e2}
        changed = params | {
            name: {"kernel": factor * params[name]["kernel"]}
            for name, factor in factors.items()
        }
    apply = rule.fast_jit(module.apply)
    small, large = (apply({"params": p}, *inputs) for p in (params, changed))
    np.testing.assert_allclose(large, small, atol=1e-4)
    gained = {**params, "q_norm": {"scale": 3 * params["q_norm"]["scale"]}}
    assert np.abs(apply({"params": gained}, *inputs) - small).max() > 1e-2


@pytest.mark.parametrize("context_width", [None, 8])
def test_every_attention_layer_of_the_unet_has_its_norms(context_width):
    def norms(qk_norm: bool) -> list[str]:
        unet = UNet(3, 32, (1, 2), 1, (1, 2), 2, context_width=context_width)
        cond = Cond(context=noise("context", (2, 5, 8)) if context_width else None)
        shapes = jax.eval_shape(
            unet.clone(qk_norm=qk_norm).init,
            *(jax.random.key(0), noise("z", (2, 4, 4, 3)), np.zeros(2, np.int32), cond),
        )
        leaves = jax.tree.leaves_with_path(shapes)
        names = [jax.tree_util.keystr(path) for path, _ in leaves]
        return [name for name in names if re.search("[qk]_norm", name)]

    # two levels: one layer each down, two up, and the middle; in a spatial
    # transformer's block there are two
    assert norms(False) == []
    assert len(norms(True)) == 2 * (7 if context_width is None else 14)


def test_group_norm_standardises_groups_and_narrow_layers_work():
    x = 5 + 3 * noise("x", (2, 8, 8, 12))
    module = layers.GroupNorm(num_groups=4)
    out, _ = module.init_with_output(jax.random.key(0), jnp.asarray(x))
    groups = np.asarray(out, np.float64).reshape(2, 64, 4, 3)
    np.testing.assert_allclose(groups.mean(axis=(1, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(groups.std(axis=(1, 3)), 1, atol=1e-5)
    # 32 groups in 12 channels become 12.
    out, _ = layers.GroupNorm().init_with_output(jax.random.key(0), jnp.asarray(x))
    np.testing.assert_allclose(np.asarray(out).std(axis=(1, 2)), 1, atol=1e-5)


@pytest.mark.parametrize("policy", ["nothing", "products", "dots"])
def test_remat_changes_no_gradient_and_keeps_what_its_policy_says(policy):
    z, t = jnp.asarray(noise("z", (1, 4, 4, 3))), jnp.zeros(1, jnp.int32)
    plain = UNet(3, 32, (1,), 1, (1,), num_heads=2)
    shapes = jax.eval_shape(plain.init, jax.random.key(0), z, t)
    variables = jax.tree.map(lambda a: 0.1 * noise("w", a.shape), shapes)

    def gradient(unet):
        def total(z):
            return jnp.sin(unet.apply(variables, z, t)).sum()

        return rule.fast_jit(jax.grad(total))(z)

    expected = gradient(plain)
    assert np.abs(expected).max() > 1e-2
    again = plain.clone(remat=True, remat_policy=policy)
    np.testing.assert_allclose(gradient(again), expected, rtol=1e-4, atol=1e-5)

    def kept(unet) -> int:
        """Numbers that the forward pass leaves to the backward pass; with XLA's own
        attention, whose scores are what "dots" keeps."""

        def backward(z):
            times = jnp.zeros(len(z), jnp.int32)
            return jax.vjp(lambda z: unet.apply(variables, z, times), z)[1]

        large = jax.ShapeDtypeStruct((8, 16, 16, 3), jnp.float32)
        with cpu_kernels.plain():
            left = jax.eval_shape(backward, large)
        return sum(leaf.size for leaf in jax.tree.leaves(left))

    order = [again.clone(remat_policy=name) for name in ("nothing", "products", "dots")]
    sizes = [kept(unet) for unet in (*order, plain)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[1] < sizes[3]


def test_extent_that_cannot_be_halved():
    check_extent((16, 8), 3)
    with pytest.raises(UserError, match=r"12 x 16 .* 3 times.* multiples of 8"):
        check_extent((12, 16), 3)
    with pytest.raises(UserError, match="4 x 0"):
        check_extent((4, 0), 2)
    unet = UNet(3, 32, (1, 2), 1, num_heads=1)
    with pytest.raises(UserError, match="5 x 4 cannot be halved 1 times"):
        jax.eval_shape(
            unet.init, jax.random.key(0), jnp.zeros((1, 5, 4, 3)), jnp.zeros(1)
        )


def test_kl_is_the_integral_of_its_definition():
    """KL = E_q[log q - log p], here by Gauss-Hermite quadrature in float64."""
    moments = jnp.asarray(noise("moments", (3, 2, 2, 4)))
    posterior = DiagonalGaussian.from_moments(moments)
    mean = np.asarray(posterior.mean, np.float64)[..., None]
    deviation = np.exp(0.5 * np.asarray(posterior.logvar, np.float64))[..., None]
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    z = mean + deviation * nodes
    log_ratio = -0.5 * nodes**2 - np.log(deviation) + 0.5 * z**2
    integral = (log_ratio * weights).sum(axis=-1) / np.sqrt(2 * np.pi)
    expected = integral.sum(axis=(1, 2, 3))
    np.testing.assert_allclose(posterior.kl(), expected, rtol=1e-5)
    standard = DiagonalGaussian.from_moments(jnp.zeros((1, 2, 2, 4)))
    np.testing.assert_array_equal(standard.kl(), 0)


def test_posterior_samples_and_clipped_variance():
    moments = jnp.concatenate(
        [jnp.full((1, 64, 64, 1), 2.0), jnp.full((1, 64, 64, 1), math.log(9.0))], -1
    )
    z = DiagonalGaussian.from_moments(moments).sample(jax.random.key(0))
    # 4096 draws: the mean errs by 3/64, the deviation by 3/91.
    assert abs(float(z.mean()) - 2) < 4 * 3 / 64
    assert abs(float(z.std()) - 3) < 4 * 3 / 91
    wild = DiagonalGaussian.from_moments(jnp.array([[[[0.0, 99.0]], [[0.0, -99.0]]]]))
    np.testing.assert_array_equal(wild.logvar.reshape(-1), [20.0, -30.0])


def test_quantizer_finds_the_nearest_code_and_copies_gradients():
    network = VectorQuantizer(16, 3)
    codebook, z = noise("codebook", (16, 3)), noise("z", (2, 4, 5, 3))
    variables = {"params": {"codebook": jnp.asarray(codebook)}}
    out = network.apply(variables, jnp.asarray(z))
    distances = ((z[..., None, :] - codebook) ** 2).sum(axis=-1)
    np.testing.assert_array_equal(out.codes, distances.argmin(axis=-1))
    np.testing.assert_allclose(out.z, codebook[np.asarray(out.codes)], atol=1e-6)
    again = network.apply(variables, out.z)
    np.testing.assert_array_equal(again.codes, out.codes)
    # With (1 + beta) |z_q - z|^2 as its value, whichever term beta stands on.
    np.testing.assert_allclose(out.loss, 1.25 * np.mean((out.z - z) ** 2), rtol=1e-5)
    cotangent = noise("cotangent", z.shape)
    _, pullback = jax.vjp(lambda z: network.apply(variables, z).z, jnp.asarray(z))
    np.testing.assert_array_equal(pullback(jnp.asarray(cotangent))[0], cotangent)


def test_gelu_is_x_times_the_normal_distribution():
    x = np.linspace(-6, 6, 997, dtype=np.float32)
    share = np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x.tolist()])
    np.testing.assert_allclose(layers.gelu(jnp.asarray(x)), x * share, atol=1e-6)
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    slope = jax.vmap(jax.grad(layers.gelu))(jnp.asarray(x))
    np.testing.assert_allclose(slope, share + x * density, atol=1e-6)
    half = jnp.asarray(x, jnp.bfloat16)
    rounded = layers.gelu(half.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(layers.gelu(half), rounded)


def test_dropped_conditions_are_the_null_condition():
    tokens = jnp.array([[1, 2, 3], [4, 5, 6]], jnp.int32)
    label = jnp.array([0, 2], jnp.int32)
    transformer = TextTransformer(8, 1, vocab_size=8, max_length=3)
    text = TextConditioner(transformer, (7, 0, 0))
    network = Conditioner(
        routes=(("tokens", "text", "context"), ("label", "class", "vector")),
        encoders={"text": text, "class": ClassVector()},
    )
    batch = {"tokens": tokens, "label": label}
    variables = rule.fast_jit(network.init)(jax.random.key(0), batch)
    apply = rule.fast_jit(network.apply)
    kept = apply(variables, batch)
    mixed = apply(variables, batch, jnp.array([False, True]))
    null = dict(tokens=jnp.array([[7, 0, 0]] * 2), label=jnp.array([3, 3]))
    null = apply(variables, null)
    for field in ("context", "vector"):
        ours = getattr(mixed, field)
        np.testing.assert_allclose(ours[0], getattr(kept, field)[0], atol=1e-6)
        np.testing.assert_allclose(ours[1], getattr(null, field)[0], atol=1e-6)
        assert np.abs(ours[1] - getattr(kept, field)[1]).max() > 1e-3
    assert kept.concat is None


class ClassVector(ClassConditioner):
    """The class token as a vector, to fill another field of `Cond`."""

    num_classes: int = 3
    width: int = 4

    def __call__(self, label, drop, train=False):
        return super().__call__(label, drop, train)[:, 0]
