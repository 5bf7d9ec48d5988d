"""A newcomer's folder: `data.path` alone makes a data set of it, for every task.

Expectations are what lies in the folders that the tests write.
"""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import (
    emoji,
    emoji_autoencoder,
    emoji_class,
    emoji_classifier,
    emoji_layout,
    emoji_unconditional,
)
from lDM_jax.core import image
from lDM_jax.core.errors import UserError
from lDM_jax.data.folder import FolderSource
from lDM_jax.data.latents_cache import Pick
from lDM_jax.data.tokenizers import BertTokenizer, ClipTokenizer
from lDM_jax.from_config import datasets, encode_latents, networks
from lDM_jax.from_config.config_file import read_config
from lDM_jax.sampling import request as request_lib
from lDM_jax.training import experiment
from lDM_jax.training.workdir import compare
from tests.forks import call

ROOT = Path(__file__).parents[2]
KINDS = {
    "unconditional": emoji_unconditional,
    "class": emoji_class,
    "text": emoji,
    "classifier": emoji_classifier,
}
CONFIGS = {**KINDS, "layout": emoji_layout}


def write(folder, names, *, size=(48, 40), caption="a {}"):
    """Noise under these names, each with a caption beside it."""
    draw = np.random.default_rng(0).integers
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = draw(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(file)
        file.with_suffix(".txt").write_text(caption.format(file.parent.name))
    return folder


@pytest.fixture
def photos(tmp_path):
    names = [f"{kind}/{i}.png" for kind in ("cat", "dog", "owl") for i in range(10)]
    return write(tmp_path / "photos", names)


def settings(task, path, **data):
    """The smoke size of a task's emoji config with that path; moments are pixels."""
    config = CONFIGS[task].get_config("smoke").unlock()
    config.data.update(dict(path=str(path), limit=0, **data))
    config.first_stage.path = "identity"
    config.first_stage.scale = 1.0
    return config


@pytest.mark.parametrize("task", sorted(KINDS))
def test_the_path_alone_trains_on_the_folder(task, photos):
    config = settings(task, photos)
    made = experiment.make(config)
    made.iterator.close()
    assert made.config.data.source == "folder"
    batch = next(iter(made.eval_batches()))
    (expected,) = FolderSource(photos, split="validation").files
    assert int(batch["weight"].sum()) == 1
    known = {"class": "label", "classifier": "label", "text": "tokens"}
    assert set(batch) == {"moments", "weight"} | {known.get(task, "weight")}
    if "label" in batch:
        assert config.num_classes == 3
        assert tuple(config.data.classes) == ("cat", "dog", "owl")
        assert config.data.classes[batch["label"][0]] == expected.split("/")[0]
    if "tokens" in batch:
        tokens = BertTokenizer(max_length=24)(["a " + expected.split("/")[0]])
        np.testing.assert_array_equal(batch["tokens"][:1], tokens)


def test_a_first_stage_trains_on_the_folder_too(photos):
    config = emoji_autoencoder.get_config("smoke").unlock()
    config.data.update(dict(path=str(photos), limit=0))
    made = experiment.make(config)
    made.iterator.close()
    assert config.data.source == "folder"
    (file,) = FolderSource(photos, split="validation").files
    batch = next(iter(made.eval_batches()))
    pixels = np.asarray(Image.open(photos / file).convert("RGB"))
    square = image.resize(pixels[:, 4:44], 32)  # 48 x 40, the middle
    np.testing.assert_allclose(batch["image"][0], square / 127.5 - 1, atol=1e-6)


def test_without_a_path_the_embedded_data_stay(photos):
    config = settings("class", "")
    assert datasets.resolve(config).data.source == "emoji"
    assert config.num_classes == 99
    assert datasets.resolve(settings("text", "")).num_classes == 0
    for kind in ("latents", "array_record"):
        config = settings("text", photos, source=kind)
        assert datasets.resolve(config).data.source == kind


def test_a_number_of_classes_that_is_given_stays(photos):
    for given in (3, 5):
        config = settings("class", photos)
        config.num_classes = given
        assert datasets.resolve(datasets.resolve(config)).num_classes == given
        assert datasets.source(config, "train").num_classes == 3
    config.num_classes = 2
    with pytest.raises(UserError, match="num_classes = 2, but .* has 3 classes .0 tak"):
        experiment.make(config)


def test_classes_that_cannot_be_counted_are_asked_for(tmp_path):
    write(tmp_path, ["a.png", "cat/b.png"])
    with pytest.raises(UserError, match="every image in a sub-folder"):
        datasets.resolve(settings("class", tmp_path))
    text = '{{"file_name": "{}.png", "label": {}}}\n'
    lines = "".join(text.format(*pair) for pair in (("a", 0), ("cat/b", 4)))
    (tmp_path / "metadata.jsonl").write_text(lines)
    assert datasets.resolve(settings("class", tmp_path)).num_classes == 5


def test_tools_resolve_too(photos):
    change = [f"data.path={photos}"]
    found = read_config(str(ROOT / "configs/emoji_class.py"), change)
    assert (found.data.source, found.num_classes) == ("folder", 3)


def test_labels_that_would_mean_something_else_are_refused(photos):
    config = settings("class", photos)
    experiment.make(config).iterator.close()
    write(photos, ["bat/0.png"])
    config.num_classes = 4
    with pytest.raises(UserError, match="differs was 'cat' and is 'bat'"):
        datasets.source(config, "train")


def test_a_run_is_not_continued_on_other_classes():
    """Runs from before the names were stored are."""
    old = {"data": {"classes": ["cat", "dog"]}}
    new = {"data": {"classes": ["bat", "cat"]}}
    assert compare(old, new) == ["data.classes: ['cat', 'dog'] -> ['bat', 'cat']"]
    assert compare({"data": {}}, new) == []
    (line,) = compare(old, {"data": {"classes": [str(i) for i in range(1000)]}})
    assert len(line) < 300 and "'999'" in line


@pytest.mark.parametrize("count", [1, 3, 19])
def test_folders_smaller_than_a_batch_train(tmp_path, count, caplog):
    write(tmp_path, [f"{i}.png" for i in range(count)])
    config = settings("unconditional", tmp_path)
    config.train.batch_size = 32
    with caplog.at_level(logging.INFO):
        made = experiment.make(config)
    assert next(made.iterator)["moments"].shape[0] == 32
    made.iterator.close()
    weights = [batch["weight"].sum() for batch in made.eval_batches()]
    assert sum(weights) == count
    assert "a batch of 32 holds pictures more than once" in caplog.text
    assert "held-out pictures are the training pictures" in caplog.text


def test_what_there_is_is_told_before_training(photos, caplog):
    with caplog.at_level(logging.INFO):
        config = settings("class", photos)
        experiment.make(config).iterator.close()
    parts = [len(FolderSource(photos, split=s)) for s in ("train", "validation")]
    counts = "data: {} training, {} held-out pictures".format(*parts)
    assert counts in caplog.text and sum(parts) < 30
    assert "classes: 3 (cat, dog, owl)" in caplog.text
    assert "held-out pictures are the training" not in caplog.text
    assert "more than once" not in caplog.text


def test_a_first_stage_of_emoji_is_named_as_such(photos, caplog):
    config = datasets.resolve(settings("unconditional", photos))
    config.first_stage.path = "emoji_kl_f8"
    config.data.size_px = 64
    with caplog.at_level(logging.INFO):
        experiment.splits(config)
    assert "emoji_kl_f8 knows only embedded pictures" in caplog.text
    assert not datasets.foreign_first_stage(settings("text", ""))
    own = settings("text", photos, source="folder")
    assert not datasets.foreign_first_stage(own)  # "identity" was not trained
    config.data.source = "emoji"
    assert not datasets.foreign_first_stage(config)


def test_captions_that_lose_their_end_are_counted(tmp_path, caplog):
    """[CLS] and [SEP] leave 22 of 24 tokens; "red" is one."""
    for name, words in (("a", 22), ("b", 23), ("c", 40)):
        write(tmp_path, [f"{name}.png"], caption=" ".join(["red"] * words))
    config = settings("text", tmp_path, max_bad_share=0.5)
    write(tmp_path, ["d.png"])
    (tmp_path / "d.txt").write_bytes(b"\xff")  # no UTF-8: not looked at
    source = datasets.source(datasets.resolve(config), "train")
    assert datasets.cut_captions(config, source) == (2, 3)
    with caplog.at_level(logging.INFO):
        experiment.make(config).iterator.close()
    assert "d.txt is not UTF-8" in caplog.text
    assert "2 of 3 captions are longer than config.text.max_length = 24" in caplog.text
    clip = ClipTokenizer(max_length=6)
    assert [clip.loses("red " * n) for n in (4, 5)] == [False, True]


def test_train_alone_is_no_class(tmp_path):
    names = [f"train/{kind}/{i}.png" for kind in ("cat", "dog") for i in range(15)]
    write(tmp_path, names)
    parts = [FolderSource(tmp_path, split=s) for s in ("train", "validation", "test")]
    assert parts[0].classes == ["cat", "dog"]
    assert sorted(file for part in parts for file in part.files) == sorted(names)
    assert all(len(part) for part in parts)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("cache.json", "config.data.source = 'latents'"),
        ("train-00000.array_record", "config.data.source = 'array_record'"),
        ("00000.tar", "convert_webdataset"),
    ],
)
def test_a_folder_of_another_kind_says_what_to_set(tmp_path, name, word):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=word):
        experiment.make(settings("unconditional", tmp_path))


# Latents in memory


def moments(config):
    """Rows of training and held-out data, held in memory."""
    codec, params = networks.first_stage(datasets.resolve(config))
    return experiment.in_memory(config, codec, params)


def test_cached_photographs_are_those_that_are_encoded(photos):
    config = settings("unconditional", photos, cache_latents=True, flip=0.5)
    cached = moments(config)
    source, row = datasets.source(config, "train"), datasets.transform(config, flip=0.0)
    assert len(cached.data) == len(source)
    chosen = {True: 0, False: 0}
    for i in range(len(source)):
        plain = row(source[i], np.random.default_rng(0))["image"]
        pair = plain, plain[:, ::-1]
        # moments of the identity are pixels
        np.testing.assert_array_equal(cached.data[i]["moments"], pair)
        drawn = cached.row(cached.data[i], np.random.default_rng(i))["moments"]
        chosen[bool((drawn == plain).all())] += 1
        held = cached.held_out_row(cached.data[i], None)["moments"]
        np.testing.assert_array_equal(held, plain)
    assert min(chosen.values()) > 4  # of 26; fewer has a chance of 1e-3


def test_random_crops_are_drawn_as_often_as_asked(photos, caplog):
    config = settings("unconditional", photos, cache_latents=True, crop="random")
    config.data.cache_draws = 3
    cached = moments(config)
    shapes = {cached.data[i]["moments"].shape for i in range(len(cached.data))}
    assert shapes == {(3, 32, 32, 3)}
    different = [len({r.tobytes() for r in cached.data[i]["moments"]}) for i in (0, 1)]
    assert max(different) > 1  # a place of 7, three times
    assert isinstance(cached.row, Pick) and cached.row.draws == 3
    assert "crop 'random'): 3 times for each picture" in caplog.text


def test_what_a_cache_freezes_is_named(photos, tmp_path):
    def frozen(task, path=photos, **data):
        config = settings(task, path, **data)
        return encode_latents.frozen_choices(config, datasets.source(config, "train"))

    assert frozen("text", source="folder") == []
    assert frozen("unconditional", source="folder", crop="share") == ["crop 'share'"]
    found = frozen("text", source="folder", background="random")
    assert found == ["background 'random'"]
    several = write(tmp_path / "several", ["a.png"])
    line = {"file_name": "a.png", "text": ["one", "two"]}
    (several / "metadata.jsonl").write_text(json.dumps(line))
    assert frozen("text", several, source="folder") == ["one of several captions"]


# Labels by name


def test_a_label_is_a_name_or_a_number():
    names, labels = ("10", "cat", "dog"), ("dog", "10", "2", 1, None)
    numbers = [request_lib.label_number(label, names) for label in labels]
    assert numbers == [2, 0, 2, 1, None]
    with pytest.raises(UserError, match=r"label is 'cow' \(10, cat, dog\)"):
        request_lib.label_number("cow", names)
    layout = [("cat", (0, 0, 1, 1)), (2, (0, 0, 0.5, 1))]
    assert request_lib.numbered(layout, names) == [(1, (0, 0, 1, 1)), layout[1]]
    with pytest.raises(UserError, match="have no names: give a number"):
        request_lib.label_number("cow", ())


def test_a_layout_model_knows_its_labels_by_name(tmp_path):
    def folder(name, label):
        path = write(tmp_path / name, ["a.png"])
        line = {"file_name": "a.png", "boxes": [[0, 0, 1, 1]], "labels": [label]}
        (path / "metadata.jsonl").write_text(json.dumps(line))
        return settings("layout", path, source="folder")

    config = folder("cups", "cup")
    for limit in (0, 1):
        config.data.update(limit=limit, classes=())
        datasets.note_classes(config, datasets.source(config, "train"))
        assert config.data.classes == ("cup",)
    datasets.source(config, "train")  # the same names
    config.data.path = folder("cats", "cat").data.path
    with pytest.raises(UserError, match="first that differs was 'cup' and is 'cat'"):
        datasets.source(config, "train")


def test_scenes_name_the_labels_of_their_boxes():
    config = settings("layout", "", source="scenes")
    datasets.note_classes(config, datasets.source(config, "train"))
    assert config.data.classes[:3] == ("Activities", "Animals & Nature", "Flags")


@pytest.mark.slow
def test_the_readme_s_class_command_at_toy_size(photos, tmp_path):
    """train.py on the folder, its stored config, sample.py by a class's name."""
    run = tmp_path / "run"
    command = ["train.py", "--config=configs/emoji_class.py:smoke", f"--workdir={run}"]
    command += [f"--config.data.path={photos}", "--config.train.num_steps=2"]
    done = call(*command)
    assert done.returncode == 0, done.stderr
    stored = json.loads((run / "config.json").read_text())
    assert stored["data"]["source"] == "folder" and stored["num_classes"] == 3
    assert stored["data"]["classes"] == ["cat", "dog", "owl"]
    out = tmp_path / "out"
    draw = ["sample.py", f"--model={run}", "--seeds=0", f"--out={out}", "--steps=2"]
    done = call(*draw, "--label=owl")
    assert done.returncode == 0, done.stderr
    assert image.read_request(out / "000000.png")["label"] == 2
    write(photos, ["bat/0.png"])
    done = call(*command)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "num_classes: 3 -> 4" in done.stderr
