"""The converter's command line: first stages from and to diffusers.

The recorded files of tests/reference stand for diffusers; the live tests run it.
Tolerance 1e-4 on outputs of scale about 1, as in the parity tests; weights are compared
bit for bit.
"""

import functools
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from lDM_jax.core.errors import UserError
from lDM_jax.from_config import networks
from lDM_jax.interop import first_stage_settings
from lDM_jax.models.autoencoder import Autoencoder
from lDM_jax.weights import torch_file
from tests.interop.converting import refusal, run
from tests.reference import rule

TOLERANCE = 1e-4

DIFFUSERS_CONFIGS = {
    "kl": dict(
        _class_name="AutoencoderKL",
        _diffusers_version="0.42.1",
        block_out_channels=[32, 64],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=32,
        sample_size=32,
        scaling_factor=0.5,
        some_new_key=None,
    ),
    "vq": dict(
        _class_name="VQModel",
        block_out_channels=[32, 64, 64],
        down_block_types=["DownEncoderBlock2D"] * 2 + ["AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 2,
        latent_channels=3,
        layers_per_block=2,
        norm_num_groups=32,
        num_vq_embeddings=32,
        vq_embed_dim=5,
    ),
}


def recorded_diffusers(network: str) -> tuple[dict, dict]:
    """State dict of the recorded network, and its recorded answers."""
    theirs = rule.read_arrays(rule.FOLDER / f"diffusers_{network}.npz")
    entries = [entry.split(" ") for entry in theirs.pop("entries")]
    shapes = {name: tuple(map(int, sides.split(","))) for name, sides in entries}
    return rule.draw(shapes, f"{network}/"), theirs


def write_model(path, config: dict, state_dict: dict):
    """A model directory in diffusers' form."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    save_file(state_dict, path / "diffusion_pytorch_model.safetensors")
    return path


def answers(network: str, out, inputs: dict) -> dict:
    """What a converted directory answers to `rule.diffusers_inputs`."""
    config, params = networks.load_trained(str(out))

    def compute(module: Autoencoder, image, z):
        moments = module.moments(image)
        if module.is_kl:
            return dict(moments=moments, recon=module.decode(z))
        quant = module.quantize(moments).z
        return dict(prequant=moments, quant=quant, recon=module.decode(quant))

    apply = functools.partial(networks.autoencoder(config.autoencoder).apply)
    return rule.fast_jit(lambda v, *args: apply(v, *args, method=compute))(
        params, inputs["image"], inputs["z"]
    )


def assert_close(ours: dict, theirs: dict):
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("network", DIFFUSERS_CONFIGS)
def test_recorded_diffusers_there_and_back(network, tmp_path, capsys):
    """Their weights answer as recorded, and return bit for bit with their config."""
    state_dict, theirs = recorded_diffusers(network)
    config = DIFFUSERS_CONFIGS[network]
    source = write_model(tmp_path / "theirs", config, state_dict)
    assert run("--from", "diffusers", source, "--out", tmp_path / "ours") == 0
    inputs = rule.diffusers_inputs(network, f"{network}/")
    assert_close(answers(network, tmp_path / "ours", inputs), theirs)
    back = tmp_path / "back"
    assert run("--to", "diffusers", back, "--model", tmp_path / "ours") == 0
    found = torch_file.read(back / "diffusion_pytorch_model.safetensors")
    assert found.keys() == state_dict.keys()
    for name, array in state_dict.items():
        np.testing.assert_array_equal(found[name], array)
    written = json.loads((back / "config.json").read_text())
    for key in config.keys() - {"_diffusers_version", "some_new_key"}:
        assert written[key] == config[key]
    known = network == "kl"
    assert networks.load_trained(str(tmp_path / "ours"))[0].get("latent_scale") == (
        0.5 if known else None
    )
    said = "the latent scale is not known here" in capsys.readouterr().out
    assert said != known and written["scaling_factor"] == (0.5 if known else 1.0)


def test_attention_names_before_diffusers_0_15(tmp_path):
    state_dict, theirs = recorded_diffusers("vq")
    renames = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value."}
    renames["to_out.0."] = "proj_attn."
    old = {}
    for name, array in state_dict.items():
        for new, before in renames.items():
            name = name.replace(new, before)
        old[name] = array
    assert len(old.keys() - state_dict.keys()) == 7 * 8  # attentions x entries
    source = write_model(tmp_path / "theirs", DIFFUSERS_CONFIGS["vq"], old)
    assert run("--from", "diffusers", source, "--out", tmp_path / "ours") == 0
    inputs = rule.diffusers_inputs("vq", "vq/")
    assert_close(answers("vq", tmp_path / "ours", inputs), theirs)


@pytest.mark.parametrize(
    "changes, reason",
    [
        (dict(_class_name="Flux"), "_class_name = 'Flux' is not supported; valid: Aut"),
        (dict(_class_name=["VQModel"]), "_class_name = a list is not supported"),
        (dict(use_quant_conv=False), "use_quant_conv = False is not supported"),
        (dict(shift_factor=0.1), "shift_factor = 0.1 is not supported"),
        (dict(latents_mean=[0.0]), "latents_mean = a list is not supported"),
        (dict(act_fn="relu"), "act_fn = 'relu' is not supported; supported: 'silu'"),
        (dict(extra=1), "config.json has unknown keys: extra"),
        (dict(block_out_channels=[32, 48]), "are no multiples of the first"),
        (dict(block_out_channels=[]), "should be a list of positive integers"),
        (dict(norm_num_groups=24), "32 channels do not divide into 24 groups"),
        (dict(down_block_types=["X", "Y"]), "down_block_types should be 2 of Down"),
        (
            dict(down_block_types=["AttnDownEncoderBlock2D", "DownEncoderBlock2D"]),
            "attend at different resolutions",
        ),
        (dict(scaling_factor=-1), "scaling_factor must be a positive number"),
        (dict(latent_channels=5), "mismatched decoder.conv_in.weight"),
    ],
)
def test_bad_diffusers_configs(changes, reason, tmp_path, capsys):
    state_dict, _ = recorded_diffusers("kl")
    config = DIFFUSERS_CONFIGS["kl"] | changes
    source = write_model(tmp_path / "theirs", config, state_dict)
    out = tmp_path / "ours"
    assert reason in refusal(capsys, "--from", "diffusers", source, "--out", out)
    assert not out.exists()


def test_diffusers_directories_without_weights(tmp_path, capsys):
    flags = "--from", "diffusers", tmp_path, "--out", tmp_path / "out"
    (tmp_path / "config.json").write_text(json.dumps(DIFFUSERS_CONFIGS["kl"]))
    assert "has none of diffusion_pytorch_model.safe" in refusal(capsys, *flags)
    (tmp_path / "config.json").write_text("[]")
    assert "should be a table of values" in refusal(capsys, *flags)
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{}")
    message = refusal(capsys, *flags)
    assert "_class_name = '' is not supported; valid: LDMPipeline, " in message
    assert message.endswith(f"; alone: {tmp_path / 'vae'}")


def test_what_diffusers_cannot_hold():
    section = dict(num_codes=0, z_channels=4, latent_channels=3)
    with pytest.raises(UserError, match="no place for z_channels"):
        first_stage_settings.to_diffusers_first_stage(section, scale=1.0, size_px=32)


@pytest.mark.live
@pytest.mark.parametrize("network, safe", [("kl", True), ("vq", False)])
def test_live_diffusers_there_and_back(network, safe, tmp_path):
    """save_pretrained -> ours -> from_pretrained: same outputs, same bits."""
    pytest.importorskip("torch", reason="needs requirements-dev.txt")
    pytest.importorskip("diffusers", reason="needs requirements-dev.txt")
    from tests.reference import record_diffusers

    salt = f"live/convert/{network}/{safe}/"
    model = record_diffusers.build(network)
    record_diffusers.set_weights(model, salt)
    model.save_pretrained(tmp_path / "theirs", safe_serialization=safe)
    endings = {path.suffix for path in (tmp_path / "theirs").iterdir()}
    assert endings == {".json", ".safetensors" if safe else ".bin"}
    flags = "--from", "diffusers", tmp_path / "theirs", "--out", tmp_path / "ours"
    assert run(*flags) == 0
    inputs = rule.diffusers_inputs(network, salt)
    theirs = record_diffusers.answer(network, model, inputs)
    assert_close(answers(network, tmp_path / "ours", inputs), theirs)
    back = tmp_path / "back"
    assert run("--to", "diffusers", back, "--model", tmp_path / "ours") == 0
    again = type(model).from_pretrained(back).eval()
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], array)
    assert_close(record_diffusers.answer(network, again, inputs), theirs)
    for key in (key for key in model.config if not key.startswith("_")):
        before, after = model.config[key], again.config[key]
        assert after == (list(before) if isinstance(before, tuple) else before)


@pytest.mark.live
def test_live_shipped_first_stage_in_diffusers(tmp_path):
    """What we trained decodes alike in diffusers: width 16, 8 groups."""
    torch = pytest.importorskip("torch", reason="needs requirements-dev.txt")
    diffusers = pytest.importorskip("diffusers", reason="needs requirements-dev.txt")
    assert run("--to", "diffusers", tmp_path / "x", "--model", "emoji_kl_f8") == 0
    model = diffusers.AutoencoderKL.from_pretrained(tmp_path / "x").eval()
    config, params = networks.load_trained("emoji_kl_f8")
    assert model.config.scaling_factor == config.latent_scale
    assert model.config.sample_size == 64
    z = rule.noise("shipped", (1, 8, 8, 8))
    with torch.no_grad():
        theirs = model.decode(torch.from_numpy(z.transpose(0, 3, 1, 2).copy())).sample
    network = networks.autoencoder(config.autoencoder)
    decode = rule.fast_jit(lambda v, z: network.apply(v, z, method="decode"))
    ours = decode(params, z)
    np.testing.assert_allclose(ours, rule.last(theirs.numpy()), rtol=0, atol=TOLERANCE)
