"""Our networks and trajectories against recorded outputs of the original program.

tests/reference/original holds outputs of latent-diffusion and taming-transformers
(PyTorch, CPU, f32) on small networks whose weights follow `rule.weight`; its README
says what each folder is. The lists of names come from the original too, so reading its
weights is a test of `convert` by exact cover. Tolerance 1e-4 on outputs of scale about
1: f32 sums in another order differ by about 1e-5.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lDM_jax.core.arrays import Cond
from lDM_jax.core.errors import UserError
from lDM_jax.diffusion import guidance, samplers
from lDM_jax.diffusion.codec import Codec
from lDM_jax.diffusion.process import Process
from lDM_jax.interop import names as tables
from lDM_jax.interop import names_text
from lDM_jax.models.autoencoder import Autoencoder, VectorQuantizer
from lDM_jax.models.bert_text import TextTransformer
from lDM_jax.models.unet import UNet
from lDM_jax.weights import name_maps
from tests.reference import rule
from tests.reference.rule import ORIGINAL

TOLERANCE = 1e-4
UNET_PREFIX = "model.diffusion_model."

AUTOENCODERS = {
    "fs_kl-f8": Autoencoder(64, (1, 2, 4, 4), 2, 4, 4),
    "fs_vq-f4": Autoencoder(64, (1, 2, 4), 2, 3, 3, num_codes=64),
    "fs_vq-f16": Autoencoder(
        64, (1, 1, 2, 2, 4), 2, 8, 8, num_codes=64, attn_factors=(4,)
    ),
    "ldm_celeba": Autoencoder(32, (1, 2, 4), 1, 3, 3, num_codes=64),
    "ldm_txt2img": Autoencoder(32, (1, 2, 4, 4), 1, 4, 4),
}
cin = dict(attn_factors=(4, 2, 1), context_width=64)
UNETS = {
    "ldm_celeba": UNet(3, 32, (1, 2, 3, 4), 1, (8, 4, 2), head_channels=32),
    "ldm_churches": UNet(
        4,
        32,
        (1, 2, 2, 4, 4),
        1,
        (1, 2, 4, 8),
        num_heads=8,
        scale_shift=True,
        res_resample=True,
    ),
    "ldm_cin_f8_head": UNet(4, 64, (1, 2, 4), 1, head_channels=32, **cin),
    "ldm_cin_f8_onehead": UNet(4, 64, (1, 2, 4), 1, num_heads=1, **cin),
    "ldm_txt2img": UNet(4, 32, (1, 2, 4, 4), 1, num_heads=8, **cin),
    "ldm_sr": UNet(3, 64, (1, 2, 2, 4), 1, (16, 8), head_channels=32),
}


def weights(folder: str, prefix: str, names, draw=rule.weight) -> dict:
    """Variables from the original's own list of names, drawn by the rule."""
    shapes = rule.read_shapes(ORIGINAL / folder / "keys.tsv.gz", prefix)
    return name_maps.from_original(rule.draw(shapes, prefix, draw), names)


@functools.cache
def unet_names(folder: str) -> name_maps.Names:
    # The super-resolution network sees the low-resolution image beside z_t.
    return tables.unet_names(UNETS[folder], 6 if folder == "ldm_sr" else None)


def unet_weights(folder: str, draw=rule.weight) -> dict:
    return weights(folder, UNET_PREFIX, unet_names(folder), draw)


@functools.cache
def compiled_unet(folder: str):
    """The network compiled once for (variables, z, t, cond), which all tests share.

    Guided trajectories evaluate [null, cond]: for them the rows stand twice.
    """
    io = rule.original_arrays(folder)
    twice = 2 if folder == "ldm_txt2img" else 1

    def rows(a):
        return None if a is None else np.concatenate([a] * twice)

    t = rows(io["t"].astype(np.int32))
    cond = Cond(concat=rows(io.get("concat")), context=rows(io.get("context")))
    args = unet_weights(folder), rows(io["z"]), t, cond
    apply = rule.fast_jit(UNETS[folder].apply)

    def call(*args):
        with jax.disable_jit(False):  # see `run`
            return apply(*args)

    return call, args


def assert_close(ours, theirs, tolerance=TOLERANCE):
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=tolerance)


def assert_close_in_scale(ours, theirs):
    """For trajectories: under random weights latents grow to a deviation of 80."""
    scale = theirs.std()
    assert_close(ours / scale, theirs / scale)


@pytest.mark.parametrize("folder", ["fs_kl-f8", "fs_vq-f4", "fs_vq-f16"])
def test_autoencoder(folder):
    network, io = AUTOENCODERS[folder], rule.original_arrays(folder)
    variables = weights(folder, "", tables.autoencoder_names(network))

    def run(network: Autoencoder, image):
        moments = network.moments(image)
        if network.is_kl:
            return {
                "moments": moments,
                "recon_mode": network.decode(moments[..., : moments.shape[-1] // 2]),
            }
        quantized = network.quantize(moments)
        recon = network.decode(quantized.z)
        result = dict(quant=quantized.z, codes=quantized.codes)
        return dict(prequant=moments, recon=recon, **result)

    ours = rule.fast_jit(lambda v, x: network.apply(v, x, method=run))(
        variables, io["image"]
    )
    if "codes" in ours:
        np.testing.assert_array_equal(ours.pop("codes"), io["codes"])
    for name, value in ours.items():
        assert_close(value, io[name])


@pytest.mark.parametrize("folder", UNETS)
def test_unet(folder):
    io = rule.original_arrays(folder)
    apply, (variables, *inputs) = compiled_unet(folder)
    assert_close(apply(variables, *inputs)[: len(io["eps"])], io["eps"])
    if "eps_ema" in io:
        ema = unet_weights(folder, rule.ema_weight)
        assert_close(apply(ema, *inputs), io["eps_ema"])


def test_head_conventions_are_told_apart():
    """The two ImageNet networks fit the same entries and differ in heads alone."""
    one, (variables, *_) = compiled_unet("ldm_cin_f8_onehead")
    _, (same, *inputs) = compiled_unet("ldm_cin_f8_head")
    jax.tree.map(np.testing.assert_array_equal, variables, same)
    difference = (
        one(variables, *inputs) - rule.original_arrays("ldm_cin_f8_head")["eps"]
    )
    assert np.abs(difference).max() > 100 * TOLERANCE


@pytest.fixture(scope="module")
def transformer():
    network = TextTransformer(64, 2)
    names = names_text.text_names(network)
    variables = weights("ldm_txt2img", "cond_stage_model.", names)
    return rule.fast_jit(network.apply), variables


def test_text_transformer(transformer):
    io = rule.original_arrays("ldm_txt2img")
    apply, variables = transformer
    assert_close(apply(variables, io["tokens"].astype(np.int32)), io["context"])


@pytest.mark.parametrize("legacy", [True, False])
def test_quantizer_loss_and_gradients(legacy):
    io = rule.read_arrays(ORIGINAL / "quantizer" / f"legacy_{legacy}.npz")
    network = VectorQuantizer(64, 4, beta=0.25, legacy_beta=legacy)
    upstream = rule.last(io["upstream"])

    def loss(codebook, z):
        out = network.apply({"params": {"codebook": codebook}}, z)
        return out.loss + jnp.sum(out.z * upstream), out

    z = rule.last(io["z"])
    grad = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    (grad_codebook, grad_z), out = grad(io["codebook"], z)
    np.testing.assert_array_equal(np.asarray(out.codes).reshape(-1), io["codes"])
    assert_close(out.loss, io["loss"], 1e-6)
    assert_close(out.z, rule.last(io["z_q"]), 1e-6)
    assert_close(grad_z, rule.last(io["grad_z"]), 1e-6)
    assert_close(grad_codebook, io["grad_codebook"], 1e-8)  # of scale 1e-3


def decode(folder: str, z, scale: float = 1.0):
    network = AUTOENCODERS[folder]
    names = tables.autoencoder_names(network)
    variables = weights(folder, "first_stage_model.", names)
    return rule.fast_jit(Codec(network, scale).decode)(variables, z)


def run(denoise, z, process, steps: int, sampler: str):
    """`samplers.sample` with Python's loop, so that only the network is compiled."""
    grid = process.grid(steps)
    with jax.disable_jit():
        return samplers.sample(
            denoise, jnp.asarray(z), process, grid=grid, sampler=sampler
        )


def test_ddim_trajectory_of_ema_weights_and_its_pixels():
    io = rule.original_arrays("ldm_celeba")
    apply, _ = compiled_unet("ldm_celeba")
    variables = unet_weights("ldm_celeba", rule.ema_weight)
    process = Process.discrete(linear_start=0.0015, linear_end=0.0195)
    z = run(lambda z, t: apply(variables, z, t, Cond()), io["xT"], process, 50, "ddim")
    assert_close_in_scale(z, io["ddim50_ema"])
    # Quantisation is discontinuous: decode what the original decoded.
    assert_close(decode("ldm_celeba", io["ddim50_ema"]), io["decoded"])


@pytest.mark.parametrize("sampler", ["ddim", "plms"])
def test_guided_text_trajectory(sampler, transformer):
    """20 steps, guidance 3 against all-zero tokens."""
    io = rule.original_arrays("ldm_txt2img")
    apply, (variables, *_) = compiled_unet("ldm_txt2img")
    encode, text = transformer
    cond = Cond(context=encode(text, io["tokens"].astype(np.int32)))
    null = Cond(context=encode(text, np.zeros_like(io["tokens"], np.int32)))
    denoise = guidance.classifier_free(
        lambda z, t, cond: apply(variables, z, t, cond), cond, null, 3.0
    )
    process = Process.discrete(linear_start=0.00085, linear_end=0.012)
    z = run(denoise, io["xT"], process, 20, sampler)
    assert_close_in_scale(z, io[f"{sampler}20_cfg3"])
    if sampler == "ddim":
        rows = len(io["decoded"])
        assert_close(decode("ldm_txt2img", z[:rows], 0.18215), io["decoded"])


def test_round_trip_is_exact():
    """from_original, then to_original: every array is back, bit for bit."""
    network = AUTOENCODERS["fs_vq-f4"]
    shapes = rule.read_shapes(ORIGINAL / "fs_vq-f4" / "keys.tsv.gz")
    state_dict, names = rule.draw(shapes), tables.autoencoder_names(network)
    back = name_maps.to_original(name_maps.from_original(state_dict, names), names)
    assert back.keys() == state_dict.keys()
    for name, array in state_dict.items():
        np.testing.assert_array_equal(back[name], array)


def test_misfit_names_all_three_lists():
    network = AUTOENCODERS["fs_vq-f4"]
    names = tables.autoencoder_names(network)
    state_dict = rule.draw({name: entry.shape for name, entry in names.items()})
    variables = name_maps.from_original(state_dict, names)
    del state_dict["encoder.conv_in.bias"]
    state_dict["loss.logvar"] = np.zeros(())
    state_dict["quantize.embedding.weight"] = np.zeros((65, 3), np.float32)
    with pytest.raises(UserError) as error:
        name_maps.from_original(state_dict, names)
    assert str(error.value) == (
        "weights do not fit the network: missing encoder.conv_in.bias; "
        "unexpected loss.logvar; "
        "mismatched quantize.embedding.weight (65, 3) instead of (64, 3)"
    )
    params = variables["params"]
    del params["quantizer"]
    params["extra"] = {"kernel": np.zeros(1)}
    params["quant_conv"]["bias"] = np.zeros(5)
    with pytest.raises(UserError) as error:
        name_maps.to_original(variables, names)
    assert str(error.value) == (
        "weights do not fit the network: missing quantizer/codebook; "
        "unexpected extra/kernel; mismatched quant_conv.bias from (5,) instead of (3,)"
    )


def test_unused_entries_may_be_absent_but_not_misshapen():
    network = TextTransformer(8, 1, vocab_size=12, max_length=4)
    names = names_text.text_names(network)
    state_dict = rule.draw({name: entry.shape for name, entry in names.items()})
    assert "transformer.to_logits.weight" in state_dict
    whole = name_maps.from_original(state_dict, names)
    del state_dict["transformer.to_logits.weight"]
    less = name_maps.from_original(state_dict, names)
    jax.tree.map(np.testing.assert_array_equal, whole, less)
    state_dict["transformer.to_logits.bias"] = np.zeros(3)
    with pytest.raises(UserError, match=r"mismatched transformer.to_logits.bias"):
        name_maps.from_original(state_dict, names)


def test_ema_names_are_those_of_the_original():
    """LitEma drops the dots: a name with indices, as the original stores it."""
    names = name_maps.ema_names({"input_blocks.10.in_layers.0.weight": None})
    assert list(names) == ["model_ema.diffusion_modelinput_blocks10in_layers0weight"]
