"""The converter's command line: first stages from and to other programs.

The recorded files of tests/reference stand for the other programs: lists of names of
the released models, outputs of the original and of diffusers, a checkpoint that torch
wrote. The live tests run torch and diffusers. Tolerance 1e-4 on outputs of scale about
1, as in the parity tests; weights are compared bit for bit.
"""

import functools
import json
import re

import jax
import numpy as np
import pytest
import yaml
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from lDM_jax import architectures, build, convert, experiment, torch_file, weights
from lDM_jax import names as tables
from lDM_jax.arrays import UserError
from lDM_jax.models.autoencoder import Autoencoder
from lDM_jax.tools import convert as tool
from tests.reference import rule, toy
from tests.test_parity_original import ORIGINAL, arrays

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


class Recorded(dict):
    """A state dict of the right shapes, without memory."""

    @property
    def shapes(self):
        return {name: array.shape for name, array in self.items()}


def hollow(shapes) -> Recorded:
    zero = np.zeros((), np.float32)
    return Recorded({n: np.broadcast_to(zero, s) for n, s in shapes.items()})


def run(*flags: object) -> int:
    return tool.main([str(flag) for flag in flags])


def refusal(capsys, *flags: object) -> str:
    """The one-line error of the program, which exits with 2 and writes nothing."""
    capsys.readouterr()
    assert run(*flags) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err.removeprefix("convert: error: ").rstrip()


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
    return convert.from_original(state_dict, tables.autoencoder_names(network))


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
    network = build.autoencoder(section)
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
    config, params = build.load_trained(str(out))
    jax.tree.map(np.testing.assert_array_equal, params, toy_reference())
    assert config.stage == "autoencoder" and "latent_scale" not in config
    first_stage = ConfigDict({"first_stage": dict(path=str(out), scale=0.0)})
    codec, _ = build.first_stage(first_stage)
    assert codec.scale == 1.0 and experiment.needs_scale(first_stage)


def test_half_and_scale(tmp_path, capsys):
    flags = original(tmp_path, toy.YAML)
    assert run(*flags, "--half", "--scale", "0.18215") == 0
    out = tmp_path / "out"
    assert (out / "weights.safetensors").stat().st_size < 400_000
    config, params = build.load_trained(str(out))
    jax.tree.map(np.testing.assert_array_equal, params, toy_reference())  # was f16
    first_stage = ConfigDict({"first_stage": dict(path=str(out), scale=0.0)})
    assert build.first_stage(first_stage)[0].scale == 0.18215
    assert not experiment.needs_scale(first_stage)


def test_scale_factor_of_the_yaml(tmp_path):
    text = toy.YAML.replace("embed_dim: 4", "embed_dim: 4\n    scale_factor: 0.25")
    assert run(*original(tmp_path, text)) == 0
    assert build.load_trained(str(tmp_path / "out"))[0].latent_scale == 0.25


def check_original_outputs(folder: str, out) -> None:
    """What the directory computes is what the original program computed."""
    config, params = build.load_trained(str(out))
    network, io = build.autoencoder(config.autoencoder), arrays(folder)

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
    section = architectures.original_first_stage(config, is_kl=False)
    table = tables.autoencoder_names(build.autoencoder(section))
    state_dict = rule.draw({name: entry.shape for name, entry in table.items()})
    assert run(*original(tmp_path, text, state_dict)) == 0
    config, params = build.load_trained(str(tmp_path / "out"))
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
        params = build.load_trained(str(out))[1]
        back = convert.to_original(params, table)
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

    monkeypatch.setattr(weights, "save_lazily", fail)
    assert "No space left" in refusal(capsys, *original(tmp_path, toy.YAML))
    assert [path.name for path in tmp_path.iterdir()] == ["model.yaml"]


# diffusers
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
    config, params = build.load_trained(str(out))

    def compute(module: Autoencoder, image, z):
        moments = module.moments(image)
        if module.is_kl:
            return dict(moments=moments, recon=module.decode(z))
        quant = module.quantize(moments).z
        return dict(prequant=moments, quant=quant, recon=module.decode(quant))

    apply = functools.partial(build.autoencoder(config.autoencoder).apply)
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
    assert build.load_trained(str(tmp_path / "ours"))[0].get("latent_scale") == (
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
        architectures.to_diffusers_first_stage(section, scale=1.0, size_px=32)


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
    config, params = build.load_trained("emoji_kl_f8")
    assert model.config.scaling_factor == config.latent_scale
    assert model.config.sample_size == 64
    z = rule.noise("shipped", (1, 8, 8, 8))
    with torch.no_grad():
        theirs = model.decode(torch.from_numpy(z.transpose(0, 3, 1, 2).copy())).sample
    network = build.autoencoder(config.autoencoder)
    decode = rule.fast_jit(lambda v, z: network.apply(v, z, method="decode"))
    ours = decode(params, z)
    np.testing.assert_allclose(ours, rule.last(theirs.numpy()), rtol=0, atol=TOLERANCE)
