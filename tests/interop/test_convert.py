"""The converter's command line: flags, and first stages of the original program.

The recorded files of tests/reference stand for the original: lists of names of the
released models, its outputs, a checkpoint that torch wrote. The live tests run torch.
Tolerance 1e-4 on outputs of scale about 1, as in the parity tests; weights are compared
bit for bit.
"""

import functools
import re

import jax
import numpy as np
import pytest
import yaml
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from lDM_jax.from_config import networks
from lDM_jax.interop import first_stage_settings
from lDM_jax.interop import names as tables
from lDM_jax.models.autoencoder import Autoencoder
from lDM_jax.tools import convert as tool
from lDM_jax.training import experiment
from lDM_jax.weights import directory as weights_directory
from lDM_jax.weights import name_maps, torch_file
from tests.interop.converting import hollow, refusal, run
from tests.reference import rule, toy
from tests.reference.rule import ORIGINAL

TOLERANCE = 1e-4
TOY = str(rule.FOLDER / "torch" / "toy_kl.ckpt")

# The released first stages: ch_mult, z_channels = embed_dim, n_embed (0: KL),
# attn_resolutions; all with ch 128, two blocks a level, resolution 256.
RELEASED = {
    "kl-f4": ([1, 2, 4], 3, 0, []),
    "kl-f8": ([1, 2, 4, 4], 4, 0, []),
    "kl-f16": ([1, 1, 2, 2, 4], 16, 0, [16]),
    "kl-f32": ([1, 1, 2, 2, 4, 4], 64, 0, [16, 8]),
    "vq-f4": ([1, 2, 4], 3, 8192, []),
    "vq-f4-noattn": ([1, 2, 4], 3, 8192, []),
    "vq-f8": ([1, 2, 2, 4], 4, 16384, [32]),
    "vq-f8-n256": ([1, 2, 2, 4], 4, 256, [32]),
    "vq-f16": ([1, 1, 2, 2, 4], 8, 16384, [16]),
}


def released_yaml(model: str) -> str:
    """The YAML that was released beside the weights, without data and loss."""
    mults, channels, codes, resolutions = RELEASED[model]
    ddconfig = dict(
        double_z=not codes,
        z_channels=channels,
        resolution=256,
        in_channels=3,
        out_ch=3,
        ch=128,
        ch_mult=mults,
        num_res_blocks=2,
        attn_resolutions=resolutions,
        dropout=0.0,
    )
    if model.endswith("noattn"):
        ddconfig["attn_type"] = "none"
    params = dict(embed_dim=channels, ddconfig=ddconfig, monitor="val/rec_loss")
    if codes:
        params["n_embed"] = codes
    kind = "VQModel" if codes else "AutoencoderKL"
    target = f"ldm.models.autoencoder.{kind}"
    return yaml.safe_dump({"model": {"target": target, "params": params}})


def original(tmp_path, text: str, state_dict: dict | None = None) -> tuple:
    """The flags for a YAML and a state dict (or the recorded toy), into tmp_path."""
    (tmp_path / "model.yaml").write_text(text)
    file = TOY
    if state_dict is not None:
        file = tmp_path / "model.safetensors"
        save_file(state_dict, file)
    flags = "--checkpoint", file, "--config", tmp_path / "model.yaml"
    return *flags, "--out", tmp_path / "out"


@functools.cache
def toy_reference() -> dict:
    """The toy's variables by the name map alone, which other tests verify."""
    network = Autoencoder(32, (1,), 2, 4, 4)
    shapes = toy.network_shapes()
    state_dict = {name: toy.entry(shape) for name, shape in shapes.items()}
    return name_maps.from_original(state_dict, tables.autoencoder_names(network))


@pytest.mark.parametrize("model", RELEASED)
def test_released_first_stages(model, tmp_path, monkeypatch):
    """The released YAML and the released names fit each other exactly."""
    shapes = rule.read_shapes(rule.FOLDER / "state_dicts" / f"{model}.tsv.gz")
    everything = dict.fromkeys(toy.loss_names(), (1,)) | shapes
    assert (shapes.pop("loss.logvar", None) is None) == model.startswith("vq")
    monkeypatch.setattr(torch_file, "read", lambda path: hollow(everything))
    (tmp_path / "model.yaml").write_text(released_yaml(model))
    found = tool.read_original("", str(tmp_path / "model.yaml"), weights="")
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    assert found.report == [
        f"used: {len(shapes)} entries, {count:,} parameters",
        f"not used: {len(toy.loss_names())} entries of loss.*",
    ]
    section = found.config["autoencoder"]
    network = networks.autoencoder(section)
    entries = tables.autoencoder_names(network).items()
    assert {name: entry.shape for name, entry in entries} == shapes
    assert network.factor == int(re.search(r"-f(\d+)", model)[1])
    # Resolutions are not in the names where all levels are equally wide: by the table.
    attended = RELEASED[model][3]
    assert section["attn_factors"] == [256 // side for side in attended]
    assert section["legacy_beta"] == model.startswith("vq")
    assert found.config["data"]["size_px"] == 256 and network.num_groups == 32


def test_toy_checkpoint_becomes_a_weights_directory(tmp_path, capsys):
    """A file that torch wrote, f16, with a training loss and an optimizer in it."""
    assert run(*original(tmp_path, toy.YAML)) == 0
    lines = capsys.readouterr().out.splitlines()
    network, loss = toy.network_shapes(), toy.loss_names()
    assert lines[0].startswith(f"used: {len(network)} entries")
    assert lines[1] == f"not used: {len(loss)} entries of loss.*"
    assert lines[2] == (
        "first stage: KL, f = 1, 4 latent channels; latent scale: not known "
        "(a second stage will measure it)"
    )
    out = tmp_path / "out"
    assert lines[3:] == [f"wrote {out}"]
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "weights.safetensors",
    ]
    assert not list(tmp_path.glob(".*"))
    config, params = networks.load_trained(str(out))
    jax.tree.map(np.testing.assert_array_equal, params, toy_reference())
    assert config.stage == "autoencoder" and "latent_scale" not in config
    first_stage = ConfigDict({"first_stage": dict(path=str(out), scale=0.0)})
    codec, _ = networks.first_stage(first_stage)
    assert codec.scale == 1.0 and experiment.needs_scale(first_stage)


def test_half_and_scale(tmp_path, capsys):
    flags = original(tmp_path, toy.YAML)
    assert run(*flags, "--half", "--scale", "0.18215") == 0
    out = tmp_path / "out"
    assert (out / "weights.safetensors").stat().st_size < 400_000
    config, params = networks.load_trained(str(out))
    jax.tree.map(np.testing.assert_array_equal, params, toy_reference())  # was f16
    first_stage = ConfigDict({"first_stage": dict(path=str(out), scale=0.0)})
    assert networks.first_stage(first_stage)[0].scale == 0.18215
    assert not experiment.needs_scale(first_stage)


def test_scale_factor_of_the_yaml(tmp_path):
    text = toy.YAML.replace("embed_dim: 4", "embed_dim: 4\n    scale_factor: 0.25")
    assert run(*original(tmp_path, text)) == 0
    assert networks.load_trained(str(tmp_path / "out"))[0].latent_scale == 0.25


def check_original_outputs(folder: str, out) -> None:
    """What the directory computes is what the original program computed."""
    config, params = networks.load_trained(str(out))
    network, io = networks.autoencoder(config.autoencoder), rule.original_arrays(folder)

    def compute(network: Autoencoder, image):
        moments = network.moments(image)
        if network.is_kl:
            return moments, network.decode(moments[..., : moments.shape[-1] // 2])
        return moments, network.decode(network.quantize(moments).z)

    ours = rule.fast_jit(lambda v, x: network.apply(v, x, method=compute))(
        params, io["image"]
    )
    names = ("moments", "recon_mode") if network.is_kl else ("prequant", "recon")
    for name, value in zip(names, ours, strict=True):
        np.testing.assert_allclose(value, io[name], rtol=0, atol=TOLERANCE)


def recorded_original(folder: str) -> tuple[str, dict]:
    """YAML and state dict of a first stage of tests/reference/original."""
    shapes = rule.read_shapes(ORIGINAL / folder / "keys.tsv.gz")
    return (ORIGINAL / folder / "config.yaml").read_text(), rule.draw(shapes)


def test_outputs_of_the_original(tmp_path):
    text, state_dict = recorded_original("fs_vq-f4")
    assert run(*original(tmp_path, text, state_dict)) == 0
    check_original_outputs("fs_vq-f4", tmp_path / "out")


@pytest.mark.live
@pytest.mark.parametrize("folder", ["fs_kl-f8", "fs_vq-f4", "fs_vq-f16"])
def test_live_outputs_of_the_original(folder, tmp_path):
    """Through a checkpoint of torch; the VQ one in the older format."""
    torch = pytest.importorskip("torch", reason="needs requirements-dev.txt")
    text, state_dict = recorded_original(folder)
    state_dict = {name: torch.from_numpy(a) for name, a in state_dict.items()}
    state_dict["loss.logvar"] = torch.zeros(())
    new = folder != "fs_vq-f4"
    checkpoint = {"state_dict": state_dict, "global_step": 7}
    path = tmp_path / "model.ckpt"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=new)
    flags = original(tmp_path, text)
    assert run("--checkpoint", path, *flags[2:]) == 0
    check_original_outputs(folder, tmp_path / "out")


def test_many_codes(tmp_path):
    """A codebook of 16384 codes; VQModelInterface has the YAML of VQModel."""
    text = toy.YAML.replace("AutoencoderKL", "VQModelInterface")
    text = text.replace("double_z: true", "double_z: false")
    text = text.replace("embed_dim: 4", "embed_dim: 4\n    n_embed: 16384")
    config = yaml.safe_load(text)["model"]["params"]
    section = first_stage_settings.original_first_stage(config, is_kl=False)
    table = tables.autoencoder_names(networks.autoencoder(section))
    state_dict = rule.draw({name: entry.shape for name, entry in table.items()})
    assert run(*original(tmp_path, text, state_dict)) == 0
    config, params = networks.load_trained(str(tmp_path / "out"))
    codebook = params["params"]["quantizer"]["codebook"]
    np.testing.assert_array_equal(codebook, state_dict["quantize.embedding.weight"])
    assert config.autoencoder.num_codes == 16384 and config.autoencoder.legacy_beta


def test_averaged_weights_of_vq_models(tmp_path, capsys):
    """use_ema: LitEma holds every trained parameter under its name without dots."""
    text, state_dict = recorded_original("fs_vq-f4")
    shapes = {name: array.shape for name, array in state_dict.items()}
    ema = rule.draw(shapes, rule=rule.ema_weight)
    whole = state_dict | {
        "model_ema." + name.replace(".", ""): array for name, array in ema.items()
    }
    whole["model_ema.decay"] = np.float32([0.9999])
    whole["model_ema.num_updates"] = np.int32([12])
    whole["model_ema.lossdiscriminatormain0weight"] = np.zeros(3, np.float32)
    whole["loss.discriminator.main.0.weight"] = np.zeros(3, np.float32)
    text = text.replace("embed_dim: 3", "embed_dim: 3\n    use_ema: true")
    flags = original(tmp_path, text, whole)
    table = tables.autoencoder_names(Autoencoder(64, (1, 2, 4), 2, 3, 3, num_codes=64))
    for extra, source in ((), ema), (("--weights", "raw"), state_dict):
        out = tmp_path / f"out{len(extra)}"
        assert run(*flags[:-1], out, *extra) == 0
        params = networks.load_trained(str(out))[1]
        back = name_maps.to_original(params, table)
        jax.tree.map(np.testing.assert_array_equal, back, source)
    del whole["model_ema.quant_convweight"]
    flags = original(tmp_path, text, whole)
    assert "missing model_ema.quant_convweight;" in refusal(capsys, *flags)


def test_misfits_are_refused_with_three_lists(tmp_path, capsys):
    _, state_dict = recorded_original("fs_vq-f4")
    text = (ORIGINAL / "fs_vq-f4" / "config.yaml").read_text()
    del state_dict["encoder.conv_in.bias"]
    state_dict["loss.extra"] = np.zeros(1, np.float32)
    state_dict["loss.logvar"] = np.zeros(1, np.float32)
    state_dict["quantize.embedding.weight"] = np.zeros((65, 3), np.float32)
    assert refusal(capsys, *original(tmp_path, text, state_dict)) == (
        "weights do not fit the network: missing encoder.conv_in.bias; "
        "unexpected loss.extra; "
        "mismatched quantize.embedding.weight (65, 3) instead of (64, 3)"
    )
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "old, new, reason",
    [
        ("AutoencoderKL", "VQModel", "ddconfig.double_z = True is not supported"),
        ("ldm.models.autoencoder", "os", "model.target = 'os.AutoencoderKL' is not"),
        ("ch: 32", "ch: 33", "33 channels do not divide into 32 groups"),
        ("ch: 32", "ch: '32'", "ch = '32' should be a positive integer"),
        ("ch: 32", "chan: 32", "ddconfig has unknown keys: chan"),
        ("[1]", "[]", "ch_mult = a list should be a list of positive integers"),
        ("[1]", "[1, 1, 1, 1, 1, 1, 1, 1, 1]", "more than 8 levels"),
        ("[1]", "[4096]", "131072 channels are more than a network has"),
        ("in_channels: 3", "in_channels: 1", "in_channels = 1 is not supported"),
        ("embed_dim: 4", "embed: 4", "embed_dim = None should be"),
        ("dropout: 0.0", "dropout: 1", "dropout = 1 should be a number in [0, 1)"),
        ("dropout: 0.0", "attn_type: linear", "attn_type = 'linear' is not supported"),
        ("dropout: 0.0", "tanh_out: [1]", "tanh_out = a list is not supported"),
        ("ddconfig: {", "other: {", "ddconfig = None should be a table of values"),
        ("  params:", "  parms:", "has no model.target and model.params"),
        ("model:\n", "model: !!python/object:os.x\n", "cannot be read as YAML"),
        ("model:\n", "{{{", "cannot be read as YAML"),
    ],
)
def test_bad_yaml(old, new, reason, tmp_path, capsys):
    assert toy.YAML.count(old) == 1
    flags = original(tmp_path, toy.YAML.replace(old, new))
    assert reason in refusal(capsys, *flags)
    assert not (tmp_path / "out").exists()


def test_bad_flags(tmp_path, capsys):
    flags = original(tmp_path, toy.YAML)
    where = "--out", tmp_path / "out"
    here = tmp_path / "here"
    here.mkdir()
    (here / "file").touch()
    to = "--to", "diffusers", tmp_path / "out"
    ours = "--to", "original", tmp_path / "out"
    for bad, reason in (
        ((), "give exactly one of --checkpoint, --from and --to"),
        ((*flags, "--from", "diffusers", here), "give exactly one"),
        (flags[:4], "give --out"),
        ((*flags[:2], *where), "--checkpoint needs --config"),
        ((*flags, "--scale", "-1"), "--scale=-1.0 should be a positive number"),
        (("--from", "mars", here, *where), "program 'mars' is unknown"),
        ((*flags[:4], "--out", here), "exists already"),
        (("--to", "diffusers", here, "--model", "emoji_kl_f8"), "exists already"),
        (to, "--to needs --model"),
        ((*to, "--model", "nothing"), "no weights at 'nothing'"),
        ((*ours, "--model", "emoji"), "has 8 heads of 64, this one 4 of 32"),
        (("--from", "original", here, *where), "program 'original' is unknown"),
        (("--from", "diffusers", here, *where), "no readable config.json"),
        (("--checkpoint", here / "file", *flags[2:]), "file is empty"),
    ):
        assert reason in refusal(capsys, *bad)
    assert not (tmp_path / "out").exists() and list(here.iterdir()) == [here / "file"]


def test_numbers_that_do_not_fit_are_refused(tmp_path, capsys):
    state_dict = {n: toy.entry(s) for n, s in toy.network_shapes().items()}
    state_dict = {n: array.astype(np.float32) for n, array in state_dict.items()}
    state_dict["quant_conv.bias"] = np.full(8, 1e5, np.float32)
    flags = original(tmp_path, toy.YAML, state_dict)
    message = refusal(capsys, *flags, "--half")
    assert "params/quant_conv/bias holds numbers that are not finite in f16" in message
    assert not (tmp_path / "out").exists()
    state_dict["quant_conv.bias"][3] = np.nan
    flags = original(tmp_path, toy.YAML, state_dict)
    assert refusal(capsys, *flags).endswith("holds numbers that are not finite")


def test_nothing_is_left_half_written(tmp_path, capsys, monkeypatch):
    def fail(path, *args, **options):
        (path / "weights.safetensors").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights_directory, "save_lazily", fail)
    assert "No space left" in refusal(capsys, *original(tmp_path, toy.YAML))
    assert [path.name for path in tmp_path.iterdir()] == ["model.yaml"]
