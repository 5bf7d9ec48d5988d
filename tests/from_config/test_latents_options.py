"""The latents cache: what must be equal to go on, what is drawn, what is left out.

Pictures of one colour under the first stage "identity" say by their moments which
example a row was made of.
"""

import json
import logging
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from configs import stable_diffusion_2_1
from lDM_jax.core.errors import UserError
from lDM_jax.data.latents_cache import LatentsSource
from lDM_jax.from_config import datasets, encode_latents, networks
from lDM_jax.training import experiment
from tests.from_config.encoding import digests, run, settings

BAD = (5, *range(16, 32), 40)  # one of shard 0, all of shard 1, one of shard 2


@pytest.fixture
def folder(tmp_path):
    """48 transparent pictures of as many greys, some of them empty files."""
    path = tmp_path / "pictures"
    path.mkdir()
    for i in range(48):
        colour = (5 * i, 5 * i, 5 * i, 128)
        Image.new("RGBA", (32, 32), colour).save(path / f"{i:02}.png")
    # "metadata.jsonl" sets the order, and that no picture is held out by its name
    lines = [json.dumps({"file_name": f"{i:02}.png"}) for i in range(48)]
    (path / "metadata.jsonl").write_text("\n".join(lines))
    return path


def encode(out, folder, *flags, config="configs/emoji_unconditional.py:smoke"):
    change = ["--set", f"data.path={folder}", "--splits", "train"]
    change += ["--set", "data.limit=0", "--set", "data.max_bad_share=0.9"]
    assert run(out, *change, *flags, config=config) == 0


def test_draws_belong_to_the_example_and_not_to_the_part(folder, tmp_path):
    """Shards that were lost are drawn again as they were; examples draw differently."""
    whole, flags = tmp_path / "whole", ("--set", "data.background=random")
    encode(whole, folder, *flags)
    before = digests(whole)
    shutil.rmtree(whole / "train" / "00001")
    encode(whole, folder, *flags)
    assert digests(whole) == before
    rows = [row["moments"] for row in LatentsSource(whole)]
    own = [5 * i / 127.5 - 1 for i in greys(folder)]
    behind = [2 * row[0, 0, 0, :3] - grey for row, grey in zip(rows, own, strict=True)]
    assert len({tuple(np.round(colour, 2)) for colour in behind}) == len(rows)


def greys(folder) -> list[int]:
    """The greys of the training split, in its order."""
    config = settings(folder, "unconditional", source="folder", limit=0)
    return [int(name[:2]) for name in datasets.source(config, "train").files]


def test_shards_without_a_usable_picture_and_lists_by_index(folder, tmp_path):
    names = greys(folder)
    bad = [i for i in BAD if i < len(names)]
    for i in bad:
        (folder / f"{names[i]:02}.png").write_bytes(b"")
    out = tmp_path / "cache"
    encode(out, folder)
    assert [len(list(f.glob("*.npy"))) for f in sorted((out / "train").iterdir())][
        :3
    ] == [1, 0, 1]
    good = [grey for i, grey in enumerate(names) if i not in bad]
    found = LatentsSource(out)
    assert len(found) == len(good)
    for i, grey in enumerate(good):  # white behind half of it
        expected = 0.5 * (5 * grey / 127.5 - 1) + 0.5
        value = found[i]["moments"][0, 0, 0, 0]
        assert value == pytest.approx(expected, abs=0.01)  # 128 is not quite a half
    listed = (out / "train" / "bad_examples.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["index"] for line in listed) == sorted(bad)
    # a shard again: its bad examples have the indices of the source still
    (out / "train" / "bad_examples.jsonl").unlink()
    shutil.rmtree(out / "train" / "00002")
    encode(out, folder)
    listed = (out / "train" / "bad_examples.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in listed] == [i for i in bad if i > 31]


def test_empty_shards_at_the_end_are_there_too(folder, tmp_path):
    names = greys(folder)
    for grey in names[16:]:
        (folder / f"{grey:02}.png").write_bytes(b"")
    encode(tmp_path / "cache", folder)
    assert len(LatentsSource(tmp_path / "cache")) == 16  # which asks for every shard
    assert len(names) > 32


def test_the_padding_of_a_frozen_tower_s_tokens_counts():
    config = stable_diffusion_2_1.get_config("smoke").unlock()
    before = encode_latents.options(config)
    config.text.pad = "eos"
    assert encode_latents.options(config)["tokens"] != before["tokens"]


CHANGES = {
    "size_px": ("class", lambda c: c.data.update(size_px=64)),
    "filter": ("class", lambda c: c.data.update(filter="linear")),
    "resize_px": ("class", lambda c: c.data.update(resize_px=48)),
    "min_px": ("class", lambda c: c.data.update(min_px=8)),
    "task": ("class", lambda c: c.update(task="unconditional")),
    "tokens": ("text", lambda c: c.text.update(max_length=30)),
    "num_classes": ("semantic", lambda c: c.update(num_classes=7)),
    "low_res": ("super_resolution", lambda c: c.low_res.update(factor=2)),
}


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_every_option_of_the_transform_must_be_equal(name):
    task, apply = CHANGES[name]
    config = settings("", task, source="emoji")
    frozen = {"first_stage": {"a": np.ones(3, np.float32)}}
    source = datasets.source(settings("", "class", source="emoji"), "train")
    plan = encode_latents.plan(config, frozen, {"train": source}, embeddings=False)
    encode_latents.check_cache(config, frozen, plan)
    apply(config)
    with pytest.raises(UserError, match=f"transform.{name}: .* in the cache, now"):
        encode_latents.check_cache(config, frozen, plan)


def test_what_may_differ_does_not_refuse():
    """How training reads the cache is not the cache's affair."""
    config = settings("", "class", source="emoji")
    frozen = {"first_stage": {}}
    source = datasets.source(config, "train")
    plan = encode_latents.plan(config, frozen, {"train": source}, embeddings=False)
    config.data.update(dict(num_workers=3, limit=7, path="elsewhere"))
    config.train.batch_size = 5
    encode_latents.check_cache(config, frozen, plan)


def test_another_text_tower_is_refused():
    config = settings("", "unconditional", source="emoji")
    one = {"first_stage": {}, "text": {"a": np.zeros(2)}}
    other = {"first_stage": {}, "text": {"a": np.ones(2)}}
    source = datasets.source(config, "train")
    plan = encode_latents.plan(config, one, {"train": source}, embeddings=True)
    encode_latents.check_cache(config, one, plan)
    with pytest.raises(UserError, match="text_tower: .* in the cache, now"):
        encode_latents.check_cache(config, other, plan)
    with pytest.raises(UserError, match="only a frozen text tower"):
        encode_latents.plan(config, {"first_stage": {}}, {}, embeddings=True)


def test_a_fingerprint_knows_names_types_shapes_and_values():
    given = [
        {"a": np.zeros(4, np.float32)},
        {"b": np.zeros(4, np.float32)},
        {"a": np.zeros(4, np.int32)},
        {"a": np.zeros((2, 2), np.float32)},
        {"a": np.ones(4, np.float32)},
        {"a": {"b": np.zeros(4, np.float32)}},
    ]
    assert len({encode_latents.fingerprint(tree) for tree in given}) == len(given)
    order = {"x": np.ones(1), "y": np.zeros(1)}, {"y": np.zeros(1), "x": np.ones(1)}
    assert encode_latents.fingerprint(order[0]) == encode_latents.fingerprint(order[1])


def test_classes_are_stored_with_the_cache_and_trained_on(tmp_path):
    """The path of a cache is enough for the number and the names of its classes."""
    assert run(tmp_path, "--set", "data.limit=16") == 0
    plan = LatentsSource(tmp_path).plan
    emoji = datasets.source(settings("", source="emoji"), "train")
    assert plan.num_classes == 99 and plan.classes == emoji.classes
    config = settings(tmp_path)
    config.num_classes = 0
    made = experiment.make(config)
    made.iterator.close()
    assert config.num_classes == 99
    assert list(config.data.classes) == emoji.classes
    config = settings(tmp_path)
    config.num_classes = 98
    with pytest.raises(UserError, match="num_classes = 98, but .* has 99 classes"):
        experiment.make(config)


def test_encoding_in_memory_stops_at_the_limit_and_tells_how_far(caplog):
    config = settings("", "unconditional", source="emoji", limit=0)
    codec, params = networks.first_stage(config)
    data, row = datasets.source(config, "train"), encode_latents.copies(config)
    found = encode_latents.encode(codec, params, data, row, limit=40)["moments"]
    assert len(found) == 64  # two batches of 32
    assert "encoding" not in caplog.text
    first = datasets.source(settings("", "unconditional", source="emoji"), "train")
    with caplog.at_level(logging.INFO):
        encode_latents.encode(codec, params, first, row, name="train")
    assert "encoding train: 64/64 (100 %)" in caplog.text


def test_progress_counts_the_time_that_is_left(monkeypatch, caplog):
    """100 of 1,000 in 20 s: 5 a second, 900 / 5 = 180 s."""
    now = [0.0]
    monkeypatch.setattr(encode_latents.time, "perf_counter", lambda: now[0])
    progress = encode_latents.Progress("train", 1000)
    with caplog.at_level(logging.INFO):
        now[0] = 5.0
        progress.add(25)
        assert not caplog.text  # at most a line in ten seconds
        now[0] = 20.0
        progress.add(75)
    assert "train 100/1000 (10 %) 5.0 img/s eta 3m00s" in caplog.text


def test_all_devices_are_asked_for_and_none_is_left():
    with pytest.raises(UserError, match="a batch of 12 does not split over 8 devices"):
        encode_latents.encoder(lambda params, x: x, np.zeros(1), 12)
    assert len(jax.local_devices()) == 8
