"""evaluate task: with a perfect and with a useless model, the figures are known."""

import json

import numpy as np
import pytest

from lDM_jax.core import image
from lDM_jax.data import pipeline as data_pipeline
from lDM_jax.data.sources import EmojiSource
from lDM_jax.evaluation.commands import prompts, task
from lDM_jax.evaluation.metrics import objects
from lDM_jax.from_config import datasets
from lDM_jax.tools import evaluate
from tests.toys import drawn, saved

PLAIN = (0.25, 0.5, 0.5, 0.25)


def run(model: str, *flags: str, capsys) -> dict:
    assert evaluate.main(["task", "--model", model, *flags]) == 0
    return json.loads(capsys.readouterr().out)


def truth(monkeypatch, key: str = "image"):
    """A model that draws what the held-out pictures are; other seeds, nearly."""

    def draw(pipe, fields, args, first_seed=0):
        row = datasets.transform(pipe.config, "validation")
        source = datasets.source(pipe.config, "validation")
        batches = data_pipeline.batches_once(source, row, batch_size=len(fields))
        off = first_seed // len(fields) % 2  # one grey level in every second turn
        return image.to_uint8(next(iter(batches))[key]) ^ off

    monkeypatch.setattr(task, "draw", draw)


def test_a_perfect_enlargement_and_pils(tmp_path, capsys, monkeypatch):
    truth(monkeypatch)
    model = saved("emoji_super_resolution", tmp_path)
    result = run(model, "--num", "4", "--out", str(tmp_path / "s"), capsys=capsys)
    assert result["psnr"] == np.inf and result["ssim"] == 1
    assert 10 < result["psnr_bicubic"] < 40 and result["ssim_bicubic"] < 1
    assert (tmp_path / "s" / "super_resolution.png").is_file()


def test_holes_and_their_mean(tmp_path, capsys, monkeypatch):
    truth(monkeypatch)
    result = run(saved("emoji_inpaint", tmp_path), "--num", "4", capsys=capsys)
    assert result["psnr_hole"] == np.inf and 0 < result["hole"] < 1
    half_a_level = 20 * np.log10(255 / 0.5)
    assert result["psnr_hole_average"] == pytest.approx(half_a_level, abs=1e-3)
    # the picture's error is the holes' alone, spread over all pixels
    assert result["psnr_hole_mean_fill"] < result["psnr_mean_fill"] < 40
    mask = np.zeros((1, 4, 4), bool)
    mask[0, :2] = True
    x = np.full((1, 4, 4, 3), 100, np.uint8)
    off = np.where(mask[..., None], np.uint8(110), x)
    expected = 20 * np.log10(255 / 10)
    assert task.psnr_inside(off, x, mask) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["emoji_layout", "emoji_semantic"])
def test_objects_of_scenes_are_recognised(tmp_path, capsys, monkeypatch, name):
    """Of known emoji nearly all, although at 32 px; of others more than by chance."""
    truth(monkeypatch)
    result = run(saved(name, tmp_path), "--num", "32", capsys=capsys)
    assert result["accuracy_known"] > 0.8
    assert 1.5 * result["chance"] < result["accuracy"] < result["accuracy_known"]
    useless = max(result["accuracy_unrelated"], result["accuracy_blank"])
    assert result["chance"] / 3 < useless < result["accuracy"]
    assert result["objects"] >= 64  # at least two a scene


@pytest.mark.slow
def test_a_random_model_is_at_chance(tmp_path, capsys):
    model = saved("emoji_class", tmp_path, num_classes=99)
    result = run(model, "--num", "8", "--steps", "1", capsys=capsys)
    assert result["accuracy"] <= 0.5


def test_models_without_a_figure_name_the_other_commands(capsys):
    assert evaluate.main(["task", "--model", "emoji"]) == 2
    assert "evaluate generate" in capsys.readouterr().err


def test_copies_are_nearer_to_training_images_than_held_out_ones(
    tmp_path, capsys, monkeypatch
):
    """Training pictures lie at 0; grey added to one is its distance, in levels."""
    model = saved("emoji_unconditional", tmp_path)
    size_px = drawn("emoji_unconditional").config.data.size_px
    source = EmojiSource(split="train", size_px=size_px)
    copies = prompts.training_images(source)[[3, 5]]
    for off in (0, 4):
        x = np.where(copies > 127, copies - off, copies + off).astype(np.uint8)
        monkeypatch.setattr(task, "draw", lambda pipe, fields, args, x=x: x)
        result = run(model, "--num", "2", capsys=capsys)
        assert result["rms_nearest"] == off
        assert result["rms_nearest_held_out"] > 10


def test_a_crop_is_its_box():
    picture = np.zeros((40, 20, 3), np.uint8)
    picture[20:30, 5:15] = 200
    np.testing.assert_array_equal(objects.crop(picture, PLAIN), 200)
    assert objects.crop(picture, (0.99, 0.99, 0.5, 0.5)).shape == (24, 24, 3)


def test_objects_are_told_by_their_nearest_picture():
    source = EmojiSource(split="validation", size_px=32)
    pictures = [source[i]["image"] for i in range(12)]
    references = objects.make_references(pictures)
    scene = np.full((64, 64, 3), 255, np.uint8)
    layout = [(3, (0.0, 0.0, 0.5, 0.5)), (7, (0.5, 0.5, 0.5, 0.5))]
    for label, (left, top, _, _) in layout:
        one = pictures[label].astype(float)
        alpha = one[:, :, 3:] / 255
        laid = np.rint(alpha * one[:, :, :3] + (1 - alpha) * 255).astype(np.uint8)
        y, x = int(64 * top), int(64 * left)
        scene[y : y + 32, x : x + 32] = laid
    judge = dict(references=references, labels=np.arange(12))
    assert objects.accuracy(scene[None], [layout], **judge) == 1
    swapped = [(7, layout[0][1]), (3, layout[1][1])]
    assert objects.accuracy(scene[None], [swapped], **judge) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "figure", "simple", "factor"),
    [
        ("emoji_super_resolution", "psnr", "psnr_bicubic", 1.0),
        ("emoji_semantic", "accuracy", "chance", 3.0),
    ],
)
def test_shipped_models_do_better_than_simple_ways(
    name, figure, simple, factor, capsys
):
    """On held-out scenes: bicubic enlargement, and three times a guess of the group."""
    result = run(name, "--num", "16", "--steps", "20", capsys=capsys)
    assert result[figure] > factor * result[simple]
