"""The latents cache: the same latents as on the fly, the same files after a kill.

Expectations are the first stage's own output and numpy's rounding to half precision.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from configs import emoji_autoencoder, stable_diffusion_1_5
from lDM_jax.core.errors import UserError
from lDM_jax.data.latents_cache import LatentsSource, Pick, Plan, read_plan, write_shard
from lDM_jax.diffusion.codec import Codec
from lDM_jax.from_config import datasets, networks
from lDM_jax.from_config import encode_latents as encode_latents_lib
from lDM_jax.training import experiment
from lDM_jax.weights import directory as weights_directory
from tests.from_config.encoding import SMALL, SMOKE, digests, run, settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """(a weights directory, codec, parameters) of a small KL first stage."""
    config = emoji_autoencoder.get_config("smoke")
    network = networks.autoencoder(config.autoencoder)
    x, draw = jnp.zeros((1, 32, 32, 3)), np.random.default_rng(0).standard_normal
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: np.float32(0.1) * draw(leaf.shape, "f4"), shapes)
    path = tmp_path_factory.mktemp("first_stage") / "toy"
    weights_directory.save(path, config.to_dict(), params)
    return path, Codec(network), params


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """64 training and 64 held-out emoji, encoded by the tool, mirrored too."""
    out = tmp_path_factory.mktemp("latents") / "cache"
    assert run(out, "--set", "data.flip=0.5") == 0
    return out


def test_cached_latents_are_those_of_the_first_stage(toy, tmp_path):
    path, codec, params = toy
    change = ["--set", "data.flip=0.5", "--set", "data.limit=24", "--splits", "train"]
    assert run(tmp_path, *change, first_stage=path) == 0
    config = settings("", source="emoji", flip=0.0)
    source, found = datasets.source(config, "train"), LatentsSource(tmp_path)
    assert len(found) == 24 and found[0]["moments"].dtype == np.float16
    chosen = (0, 7, 15, 16, 23)
    for copy, flip in enumerate((0.0, 1.0)):
        row = datasets.transform(config, flip=flip)
        rows = [row(source[i], np.random.default_rng(0)) for i in chosen]
        images = np.stack([example["image"] for example in rows])
        moments = jax.jit(codec.moments)(params, images)
        cached = np.stack([found[i]["moments"][copy] for i in chosen])
        # f16 keeps 11 bits: half of 2^-10 of the value, and f32's own roundings
        np.testing.assert_allclose(cached, moments, rtol=2**-11, atol=1e-4)
        for i, example in zip(chosen, rows, strict=True):
            assert found[i]["label"][copy] == example["label"]


def test_training_reads_the_cache(cache):
    made = experiment.make(settings(cache, flip=0.5))
    batch = next(made.iterator)
    made.iterator.close()
    assert set(batch) == {"moments", "label"}
    assert batch["moments"].dtype == np.float32
    held_out = next(iter(made.eval_batches()))
    expected = LatentsSource(cache, split="validation")
    for i, row in enumerate(held_out["moments"]):
        np.testing.assert_array_equal(row, expected[i]["moments"][0])
    state = jax.eval_shape(made.stage.init, jax.random.key(0))
    _, scalars = jax.eval_shape(
        made.stage.step, state, made.frozen, batch, jax.random.key(0)
    )
    assert scalars["loss"].shape == ()


def test_in_memory_and_on_disk_are_one_thing(cache):
    on_disk = experiment.make(settings(cache, flip=0.5))
    config = settings("", source="emoji", flip=0.5)
    in_memory = experiment.make(config)
    for _ in range(3):
        a, b = next(on_disk.iterator), next(in_memory.iterator)
        np.testing.assert_array_equal(a["label"], b["label"])
        np.testing.assert_allclose(a["moments"], b["moments"], rtol=2**-11, atol=1e-4)
    on_disk.iterator.close()
    in_memory.iterator.close()


def test_mirroring_is_drawn_with_its_probability():
    rows = {"moments": np.array([[[[0.0]]], [[[1.0]]]], np.float16)}

    def share(pick):
        rngs = map(np.random.default_rng, range(2000))
        return np.mean([pick(rows, rng)["moments"].item() for rng in rngs])

    assert abs(share(Pick(flip=0.25, mirrored=True)) - 0.25) < 5 * 0.433 / 2000**0.5
    assert abs(share(Pick(draws=2)) - 0.5) < 5 * 0.5 / 2000**0.5
    with pytest.raises(UserError, match="no mirror images"):
        Pick(flip=0.5)


def test_what_is_missing_is_encoded_again_to_the_same_bytes(cache, tmp_path):
    again = tmp_path / "again"
    assert run(again, "--set", "data.flip=0.5", "--process", "1/2") == 0
    with pytest.raises(UserError, match="2 of 4 shards of 'train' are missing"):
        LatentsSource(again)
    # as a kill leaves it: half a shard under another name
    half = again / "train" / ".00000.partial"
    half.mkdir()
    (half / "moments.npy").write_bytes(b"half")
    assert run(again, "--set", "data.flip=0.5", "--process", "0/2") == 0
    assert digests(again) == digests(cache)


@pytest.mark.slow
def test_kill_and_resume_give_identical_files(cache, tmp_path):
    """SIGKILL after the first shard has appeared, then the same command again."""
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "lDM_jax.tools.encode_latents", "--out", str(out)]
    command += ["--config", SMOKE, "--set", "data.flip=0.5", *SMALL]
    command += ["--set", "first_stage.path=identity"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    while not (out / "train" / "00000").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert digests(out) == digests(cache)


def test_another_first_stage_or_transform_is_refused_with_both_shown(toy):
    config, (_, _, params) = settings("", source="emoji"), toy
    source, frozen = datasets.source(config, "train"), {"first_stage": params}
    plan = encode_latents_lib.plan(config, frozen, {"train": source}, embeddings=False)
    encode_latents_lib.check_cache(config, frozen, plan)
    moved = jax.tree.map(lambda leaf: leaf + 1e-3, params)
    with pytest.raises(UserError, match="first_stage: .* in the cache, now") as error:
        encode_latents_lib.check_cache(config, {"first_stage": moved}, plan)
    for tree in (params, moved):
        assert encode_latents_lib.fingerprint(tree) in str(error.value)
    assert "\n" not in str(error.value)
    config.data.background = "random"
    with pytest.raises(UserError, match="'white' in the cache, now 'random'"):
        encode_latents_lib.check_cache(config, frozen, plan)


def test_training_refuses_a_cache_that_does_not_fit(cache):
    with pytest.raises(UserError, match="crop: 'center' in the cache, now 'random'"):
        experiment.make(settings(cache, flip=0.5, crop="random"))


def test_a_cache_that_was_begun_otherwise_is_not_continued(cache, capsys):
    assert run(cache, "--set", "data.flip=0.0") == 2
    assert "mirrored: True in the cache, now False" in capsys.readouterr().err
    assert run(cache, "--set", "data.flip=0.5", "--set", "data.limit=32") == 2
    assert "lengths.train: 64 in the cache, now 32" in capsys.readouterr().err


def test_bfloat16_is_stored_and_read(tmp_path):
    values = np.random.default_rng(0).normal(size=(3, 1, 2, 2, 4)).astype(np.float32)
    rounded = values.astype(ml_dtypes.bfloat16)
    plan = Plan("x", {}, {"train": "y"}, {"train": 3}, dtype="bfloat16", shard_size=4)
    (tmp_path / "cache.json").write_text(json.dumps(plan.__dict__))
    write_shard(tmp_path / "train" / "00000", {"moments": rounded})
    found = Pick()(LatentsSource(tmp_path)[2], np.random.default_rng(0))["moments"]
    np.testing.assert_array_equal(found, rounded[2, 0].astype(np.float32))


def test_shards_of_unequal_lengths_are_found_by_position(tmp_path):
    plan = Plan("x", {}, {"train": "y"}, {"train": 10}, shard_size=4)
    (tmp_path / "cache.json").write_text(json.dumps(plan.__dict__))
    values = np.arange(10, dtype=np.float16).reshape(10, 1, 1, 1, 1)
    write_shard(tmp_path / "train" / "00000", {"moments": values[:3]})
    write_shard(tmp_path / "train" / "00001", {})  # nothing of it could be used
    write_shard(tmp_path / "train" / "00002", {"moments": values[3:5]})
    source = LatentsSource(tmp_path)
    found = [source[i]["moments"].item() for i in range(len(source))]
    assert found == [0, 1, 2, 3, 4]
    with pytest.raises(IndexError):
        source[5]


def test_bad_pictures_are_left_out_of_the_cache(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for i in range(12):
        Image.new("RGB", (32, 32), (i, i, i)).save(folder / f"{i:02}.png")
    (folder / "03.png").write_bytes(b"")
    change = ["--set", "data.source=folder", "--set", f"data.path={folder}"]
    change += ["--set", "data.max_bad_share=0.5", "--splits", "train"]
    out = tmp_path / "cache"
    assert run(out, *change, config="configs/emoji_unconditional.py:smoke") == 0
    assert len(LatentsSource(out)) == 11
    (line,) = (out / "train" / "bad_examples.jsonl").read_text().splitlines()
    assert json.loads(line)["index"] == 3


@pytest.mark.parametrize("name", ["cache", "memory"])
def test_inpainting_has_no_cache(tmp_path, name):
    config = settings(tmp_path, task="inpaint")
    if name == "memory":
        config.data.update(dict(source="emoji", cache_latents=True))
        with pytest.raises(UserError, match="task 'inpaint' encodes the masked"):
            experiment.make(config)
    else:
        flags = dict(config="configs/emoji_inpaint.py:smoke")
        assert run(tmp_path / "out", **flags) == 2


def test_user_errors_are_one_line(tmp_path, capsys):
    for flags in (
        ["--set", "data.nothing=1"],
        ["--set", "data.flip"],
        ["--process", "4/4"],
        ["--shard_size", "12"],
        ["--batch_size", "4"],  # does not split over eight devices
    ):
        assert run(tmp_path / "out", *flags) == 2
        assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(UserError, match="is not a latents cache: it has no cache"):
        experiment.make(settings(tmp_path))
    with pytest.raises(UserError, match="data.path is empty: give a latents cache"):
        experiment.make(settings(""))


def test_random_transforms_are_drawn_as_often_as_asked(tmp_path):
    change = ["--set", "data.background=random", "--draws", "3", "--splits", "train"]
    assert run(tmp_path, *change, "--set", "data.limit=8") == 0
    rows = LatentsSource(tmp_path)[0]["moments"]
    assert rows.shape[0] == 3
    assert len({row.tobytes() for row in rows}) == 3


@pytest.mark.slow
def test_embeddings_of_a_frozen_tower_are_those_it_makes_when_training(tmp_path):
    tokens = "text.path=random", "data.limit=8"
    change = [part for token in tokens for part in ("--set", token)]
    flags = dict(config="configs/stable_diffusion_1_5.py:smoke")
    assert run(tmp_path, *change, "--embeddings", "--splits", "train", **flags) == 0
    config = stable_diffusion_1_5.get_config("smoke").unlock()
    config.text.path, config.first_stage.path = "random", "identity"
    codec, params = networks.first_stage(config)
    frozen, model = networks.frozen(config, params), networks.model(config, codec)
    encode_latents_lib.check_cache(config, frozen, read_plan(tmp_path))
    rows = [Pick()(LatentsSource(tmp_path)[i], None) for i in range(4)]
    cached = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    assert set(cached) == {"moments", "tokens", "embeddings"}
    plain = {key: cached[key] for key in ("moments", "tokens")}
    drop = np.array([False, True, False, True])
    found, expected = (
        model.condition({"conditioner": {}}, frozen, batch, drop).context
        for batch in (cached, plain)
    )
    # half precision of values of order one
    np.testing.assert_allclose(found, expected, atol=4e-3)
    assert np.abs(expected[0] - expected[1]).max() > 0.1


def test_an_encoder_uses_all_devices_and_takes_copies():
    where, x = [], np.arange(32, dtype=np.float32).reshape(8, 2, 2)

    def apply(params, rows):
        jax.debug.inspect_array_sharding(rows, callback=where.append)
        return rows * params

    encode = encode_latents_lib.encoder(apply, np.float32(3), 8, ndim=2)
    np.testing.assert_array_equal(encode(x[:, 0]), 3 * x[:, 0])
    np.testing.assert_array_equal(encode(x), 3 * x)
    assert len(where[0].device_set) == len(jax.local_devices()) == 8
