"""Whole pipelines of diffusers, there and back, and our models for other programs.

The live tests build tiny random pipelines with diffusers itself, save them, convert
them, and compare what both programs draw from the same noise: 50 steps of DDIM, in f32
on a CPU. Tolerance 1e-4 of the latents' deviation: fifty evaluations, each of which
agrees to about 1e-6, and random networks let latents grow.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lDM_jax.core import rng
from lDM_jax.core.arrays import Cond
from lDM_jax.data.tokenizers import BERT_VOCAB
from lDM_jax.diffusion import guidance as guide
from lDM_jax.diffusion import samplers
from lDM_jax.from_config import networks
from lDM_jax.interop.diffusers import read as from_diffusers
from lDM_jax.interop.diffusers import settings as diffusers_settings
from lDM_jax.interop.diffusers import write as to_diffusers
from lDM_jax.models.clip_text import ClipText
from lDM_jax.pipeline import Pipeline
from lDM_jax.weights import directory as weights_directory
from tests.interop.converting import opened, refusal, run
from tests.reference import rule

STEPS, GUIDANCE, TOLERANCE = 50, 5.0, 1e-4
SIDE = 8

# A prompt without "!", which transformers reads as padding in Stable Diffusion 2.
PROMPTS = ["a red heart", "Two dogs in 1 hat, 8k"]


@pytest.fixture
def others():
    """The module that calls diffusers, quietly."""
    for library in ("torch", "diffusers", "transformers"):
        pytest.importorskip(library, reason="needs requirements-dev.txt")
    from tests.reference import pipelines

    pipelines.quiet()
    return pipelines


def ours(out, noise, low=None, steps: int = STEPS):
    """(latents, scaled as diffusers passes them to decode; pixels in [0, 1])."""
    model, params, frozen = opened(out)
    cond = null = Cond(concat=low)
    guidance = 1.0
    if model.denoiser.context_width:
        tokenizer = networks.tokenizer(networks.load_trained(str(out))[0])
        tokens = (tokenizer(PROMPTS), tokenizer([""] * len(PROMPTS)))
        cond, null = (
            model.condition(params, frozen, {"tokens": jnp.asarray(t)}) for t in tokens
        )
        guidance = GUIDANCE
    grid = model.process.grid(steps)

    @rule.fast_jit
    def draw(params, first, noise, cond, null):
        def network(z, t, cond):
            return model.denoise(params, z, t, cond)

        denoise = guide.classifier_free(network, cond, null, guidance)
        z = samplers.sample(denoise, noise, model.process, grid=grid, sampler="ddim")
        return z / model.codec.scale, model.codec.decode(first, z)

    z, x = draw(params, frozen["first_stage"], noise, cond, null)
    return np.asarray(z), np.clip(np.asarray(x) / 2 + 0.5, 0, 1)


def assert_same_arrays(before, after):
    """Both weights directories, every part of them, bit for bit."""
    folders = [path.parent.relative_to(before) for path in before.rglob("config.json")]
    assert len(folders) > 1
    for folder in folders:
        expected = weights_directory.load(before / folder)[1]
        found = weights_directory.load(after / folder)[1]
        jax.tree.map(np.testing.assert_array_equal, found, expected)


KINDS = ["ldm_vq"]
KINDS += [
    pytest.param(kind, marks=pytest.mark.slow)
    for kind in ("ldm_kl", "ldm_super", "ldm_text", "stable_1", "stable_2")
]


@pytest.mark.live
@pytest.mark.parametrize("kind", KINDS)
def test_live_pipelines_there_and_back(kind, others, tmp_path):
    """The same pictures here, in diffusers again, and the same bits once more."""
    pipe = others.build(kind, tmp_path / "tokenizer")
    pipe.save_pretrained(tmp_path / "theirs")
    out, back, again = (tmp_path / name for name in ("ours", "back", "again"))
    assert run("--from", "diffusers", tmp_path / "theirs", "--out", out) == 0
    channels = pipe.unet.config.out_channels
    noise = rule.noise(f"pipelines/{kind}", (2, SIDE, SIDE, channels))
    low = (
        np.tanh(rule.noise("low", (2, SIDE, SIDE, 3))) if kind == "ldm_super" else None
    )
    text = pipe.unet.config.get("cross_attention_dim")
    options = dict(steps=STEPS, low=low)
    if text:
        options |= dict(prompts=PROMPTS, guidance=GUIDANCE)
    z, x = others.draw(pipe, noise, **options)
    our_z, our_x = ours(out, noise, low)
    np.testing.assert_allclose(our_z, z, rtol=0, atol=TOLERANCE * z.std())
    assert 0.1 < our_x.mean() < 0.9 and our_x.std() > 0.01
    # A latent between two codes may fall to the other one.
    close = np.abs(our_x - x) < 1e-4
    assert close.all() if kind not in ("ldm_vq", "ldm_super") else close.mean() > 0.99
    assert run("--to", "diffusers", back, "--model", out) == 0
    returned = type(pipe).from_pretrained(str(back))
    same_z, same_x = others.draw(returned, noise, **options)
    np.testing.assert_array_equal(same_z, z)
    np.testing.assert_array_equal(same_x, x)
    assert run("--from", "diffusers", back, "--out", again) == 0
    assert_same_arrays(out, again)
    for key in ("unet", "process", "data", "first_stage", "text", "task"):
        before, after = (
            weights_directory.read_config(path)[key] for path in (out, again)
        )
        assert before == after


@pytest.mark.live
@pytest.mark.slow
def test_live_shipped_model_draws_the_same_in_diffusers(others, tmp_path):
    """emoji: width 64, 16 groups, v, 24 tokens; the picture within rounding."""
    import diffusers

    assert run("--to", "diffusers", tmp_path / "x", "--model", "emoji") == 0
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(str(tmp_path / "x"))
    pipe, seeds = Pipeline.load("emoji"), (0, 1)
    noise = np.asarray(
        rng.normal_per_seed(rng.seed_keys(seeds), pipe.trained.latent_shape)
    )
    prompts, options = ["red heart"] * 2, dict(steps=STEPS, guidance=3.0)
    z, x = others.draw(theirs, noise, prompts=prompts, **options)
    *_, last = pipe.stream("red heart", seeds=seeds, **options)
    our_z = np.asarray(last.z) / pipe.model.codec.scale
    np.testing.assert_allclose(our_z, z, rtol=0, atol=1e-3)
    pixels = pipe.sample("red heart", seeds=seeds, **options)
    # diffusers gives reals here, we round; half a level, and what 1e-3 can move.
    np.testing.assert_allclose(pixels, 255 * x, rtol=0, atol=0.6)
    assert pixels.std() > 50  # a picture, not a plain surface


# Directories, without diffusers: a pipeline is written here and damaged.
@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    """The shipped model as diffusers has it."""
    path = tmp_path_factory.mktemp("export") / "emoji"
    assert run("--to", "diffusers", path, "--model", "emoji") == 0
    return path


def copied(source, path):
    """A copy that may be changed; weights are linked."""
    for file in source.rglob("*"):
        if file.is_file():
            target = path / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".safetensors":
                target.symlink_to(file)
            else:
                target.write_text(file.read_text())
    return path


def test_shipped_model_returns_from_its_export(emoji, tmp_path, capsys):
    """Weights, tokens, process and scale survive the way through diffusers' form."""
    index = json.loads((emoji / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert run("--from", "diffusers", emoji, "--out", tmp_path / "x") == 0
    before, after = Pipeline.load("emoji"), Pipeline.load(str(tmp_path / "x"))
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    jax.tree.map(np.testing.assert_array_equal, after.frozen, before.frozen)
    assert after.model.codec.scale == before.model.codec.scale
    assert after.config.process.to_dict() == before.config.process.to_dict()
    for text in ("a red heart", ""):
        tokens = [networks.tokenizer(pipe.config)([text]) for pipe in (after, before)]
        np.testing.assert_array_equal(*tokens)


def change(file, **changes) -> None:
    values = json.loads(file.read_text())
    values |= changes
    file.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


@pytest.mark.parametrize(
    "file, changes, reason",
    [
        ("model_index.json", dict(_class_name="FluxPipeline"), "'FluxPipeline' is not"),
        ("model_index.json", None, "holds no readable config.json"),
        ("scheduler/scheduler_config.json", None, "no readable scheduler_config.json"),
        (
            "scheduler/scheduler_config.json",
            dict(beta_end=-1),
            "beta_end = -1 should be",
        ),
        ("unet/config.json", None, "unet holds no readable config.json"),
        ("unet/config.json", dict(in_channels=9), "9 channels in and 8 out, but the"),
        (
            "unet/config.json",
            dict(cross_attention_dim=64),
            "unet: weights do not fit the",
        ),
        (
            "unet/config.json",
            dict(_class_name="UNet2DModel"),
            "mid_block_type = 'UNetMid",
        ),
        (
            "unet/config.json",
            dict(layers_per_block=3),
            "missing down_blocks.0.resnets.2",
        ),
        ("vae/config.json", dict(latent_channels=4), "mismatched decoder.conv_in"),
        (
            "vae/config.json",
            dict(_class_name="VQ"),
            "_class_name = 'VQ' is not supported",
        ),
        ("vae/config.json", dict(scaling_factor="a"), "scaling_factor must be a pos"),
        (
            "text_encoder/config.json",
            dict(head_dim=16),
            "mismatched model.layers.0.self",
        ),
        (
            "text_encoder/config.json",
            dict(d_model=64, encoder_ffn_dim=256),
            "text_encoder is 64 wide, but the UNet attends to 128",
        ),
        ("text_encoder/config.json", dict(encoder_ffn_dim=8), "is not 4 x d_model"),
        (
            "tokenizer/tokenizer_config.json",
            dict(model_max_length=77),
            "have 77 tokens",
        ),
        ("tokenizer/vocab.txt", None, "has no vocabulary: vocab.txt"),
        (
            "unet/diffusion_pytorch_model.safetensors",
            None,
            "unet has none of diffusion",
        ),
        ("text_encoder/model.safetensors", None, "text_encoder has none of model.safe"),
    ],
)
def test_bad_pipelines(file, changes, reason, emoji, tmp_path, capsys):
    path = copied(emoji, tmp_path / "theirs")
    if changes is None:
        (path / file).unlink()
    else:
        change(path / file, **changes)
    message = refusal(capsys, "--from", "diffusers", path, "--out", tmp_path / "x")
    assert reason in message
    assert not (tmp_path / "x").exists() and not list(tmp_path.glob(".*"))


def test_other_vocabularies_and_broken_files(emoji, tmp_path, capsys):
    path = copied(emoji, tmp_path / "theirs")
    flags = "--from", "diffusers", path, "--out", tmp_path / "x"
    vocabulary = path / "tokenizer" / "vocab.txt"
    vocabulary.write_text(BERT_VOCAB.read_text().replace("\nheart\n", "\nhaert\n"))
    assert "another vocabulary than ours" in refusal(capsys, *flags)
    vocabulary.write_text(BERT_VOCAB.read_text())
    (path / "unet" / "config.json").write_text("[1]")
    assert "config.json should be a table of values" in refusal(capsys, *flags)
    (path / "unet" / "config.json").write_text("{")
    assert "config.json is not valid JSON" in refusal(capsys, *flags)
    flags = "--from", "diffusers", path / "unet", "--out", tmp_path / "x"
    (path / "unet" / "config.json").write_text(
        json.dumps(dict(_class_name="UNet2DModel"))
    )
    assert "is a UNet alone: give the pipeline" in refusal(capsys, *flags)
    assert not (tmp_path / "x").exists()


def test_sharded_components(emoji, tmp_path, capsys):
    """`diffusion_pytorch_model.safetensors.index.json` and its files; and bad ones."""
    path = copied(emoji, tmp_path / "theirs")
    file = path / "unet" / "diffusion_pytorch_model.safetensors"
    found = from_diffusers.read_weights(path / "unet", from_diffusers.MODEL_FILES)
    names = sorted(found)
    arrays = {name: to_diffusers.Lazy(found.shapes[name], None) for name in names}
    arrays = {n: a._replace(make=lambda n=n: found[n]) for n, a in arrays.items()}
    places = {n: f"part{i % 2}.safetensors" for i, n in enumerate(names)}
    for part in set(places.values()):
        chosen = {n: arrays[n] for n in names if places[n] == part}
        weights_directory.write_tensors(path / "unet" / part, chosen)
    file.unlink()
    index = path / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    flags = "--from", "diffusers", path, "--out", tmp_path / "x"
    assert run(*flags) == 0
    before = Pipeline.load("emoji").params
    after = networks.load_trained(str(tmp_path / "x"))[1]
    jax.tree.map(np.testing.assert_array_equal, after, before)
    flags = *flags[:-1], tmp_path / "y"
    for broken, reason in (
        ({}, "names no files beside it"),
        (dict.fromkeys(names, "../x"), "names no files beside it"),
        (dict.fromkeys(names, "part7.safetensors"), "part7.safetensors cannot be read"),
        (dict.fromkeys(names, "part0.safetensors"), "and its files disagree about"),
        ([], "is no index of weights"),
    ):
        index.write_text(json.dumps({"weight_map": broken}))
        assert reason in refusal(capsys, *flags)


def test_clip_models_return_as_their_tower(tmp_path, capsys):
    """A tower alone; SD 2's "penultimate" is written as one layer less."""
    network = dict(width=32, depth=3, num_heads=2, activation="gelu")
    network |= dict(output_layer="penultimate", max_length=77)
    module = networks.construct(ClipText, network, "text.network")
    tokens = jnp.zeros((1, 77), jnp.int32)
    params = jax.jit(module.init)(jax.random.key(0), tokens)
    config = dict(stage="text", text=dict(kind="clip", network=network, pad="zero"))
    weights_directory.save(tmp_path / "tower", config, params)
    out = tmp_path / "x"
    assert run("--to", "diffusers", out, "--model", tmp_path / "tower") == 0
    written = json.loads((out / "config.json").read_text())
    assert written["num_hidden_layers"] == 2 and written["hidden_act"] == "gelu"
    inner = diffusers_settings.clip(written)
    assert inner == dict(
        width=32,
        depth=2,
        num_heads=2,
        activation="gelu",
        max_length=77,
        vocab_size=49_408,
    )
