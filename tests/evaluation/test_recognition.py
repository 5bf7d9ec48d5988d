"""Nearest training picture: against a brute-force search, and chance by counting.

And `evaluate regions`, whose figures are known for a model that draws what it is asked.
"""

import argparse
import json
from types import SimpleNamespace

import numpy as np
import pytest

from lDM_jax.core.errors import UserError
from lDM_jax.data.sources import EmojiSource
from lDM_jax.evaluation.commands import prompts, regions
from lDM_jax.evaluation.commands.prompts import draw_captions
from lDM_jax.evaluation.metrics.recognition import nearest, recognize
from lDM_jax.tools import evaluate


def test_nearest_is_the_brute_force_minimum():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 4, 4, 3), np.uint8)
    references = rng.integers(0, 256, (11, 4, 4, 3), np.uint8)
    expected = [
        min(
            range(11),
            key=lambda j: np.linalg.norm(picture.astype(float) - references[j]),
        )
        for picture in images
    ]
    np.testing.assert_array_equal(nearest(images, references), expected)


def test_training_images_recognize_themselves():
    references = np.random.default_rng(1).integers(0, 256, (9, 4, 4, 3), np.uint8)
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
    result = recognize(references, labels, references=references, labels=labels)
    assert result.accuracy == 1.0
    # sum of squared shares: a picture of share p is guessed with probability p
    assert result.chance == pytest.approx((3 / 9) ** 2 + (2 / 9) ** 2 + (4 / 9) ** 2)
    wrong = recognize(references, 2 - labels, references=references, labels=labels)
    assert wrong.accuracy == pytest.approx(2 / 9)  # only label 1 maps to itself


def test_different_sizes_are_refused():
    small, large = np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(UserError, match="cannot be compared"):
        nearest(small, large)


class Labelled:
    """A source of which only the labels are read."""

    labels = np.repeat(np.arange(10), [1, 2, 3, 4, 5, 6, 7, 8, 9, 55])

    def __len__(self):
        return len(self.labels)


def test_draw_of_subgroups_takes_each_subgroup_once():
    source = Labelled()
    chosen = draw_captions(source, 10, draw="subgroups", seed=3)
    assert sorted(source.labels[chosen]) == list(range(10))
    with pytest.raises(UserError, match="10 subgroups"):
        draw_captions(source, 11, draw="subgroups", seed=3)


def test_draw_of_captions_repeats_none():
    chosen = draw_captions(Labelled(), 100, draw="captions", seed=0)
    assert sorted(chosen) == list(range(100))


def flags(**changes) -> argparse.Namespace:
    given = dict(pairs=3, draw_seed=0, left=None, right=None)
    return argparse.Namespace(**(given | changes))


def test_pairs_are_of_different_subgroups_and_the_same_for_a_seed():
    source = Labelled()
    pairs = regions.choose_pairs(flags(pairs=5), source)
    assert sorted(source.labels[pairs].reshape(-1)) == list(range(10))
    np.testing.assert_array_equal(pairs, regions.choose_pairs(flags(pairs=5), source))
    assert (pairs != regions.choose_pairs(flags(pairs=5, draw_seed=1), source)).any()
    with pytest.raises(UserError, match="12 captions .* there are 10 subgroups"):
        regions.choose_pairs(flags(pairs=6), source)
    with pytest.raises(UserError, match="at least 1"):
        regions.choose_pairs(flags(pairs=0), source)


def test_the_interval_is_over_pairs():
    """Pairs that all succeed or all fail: of 16 with half of them the deviation of the
    mean is 1 / 8, however many seeds there are; 2,000 replicates know it to a few %."""
    left = np.repeat(np.arange(16) < 8, 4).reshape(16, 4)
    result = regions.shares(left, np.ones_like(left), 2000)
    assert result["accuracy_both"] == 0.5 and result["accuracy_right"] == 1
    low, high = result["accuracy_left_95"]
    assert (high - low) / 2 == pytest.approx(1.96 / 8, rel=0.1)
    assert "accuracy_left_95" not in regions.shares(left[:1], left[:1], 2000)


def test_a_model_that_draws_what_each_half_was_told(tmp_path, capsys, monkeypatch):
    """All halves are recognized; none where the model puts them the other way round."""
    source = EmojiSource(split="train", size_px=64)
    pictures, turned = prompts.training_images(source), []

    def draw(pipe, args, *captions):
        i, j = (source.captions.index(caption) for caption in captions)
        i, j = (j, i) if turned else (i, j)
        halves = [pictures[i, :, :56], pictures[j, :, -56:]]
        return np.stack([np.concatenate(halves, axis=1)] * args.seeds)

    config = SimpleNamespace(data=SimpleNamespace(size_px=64))
    pipe = SimpleNamespace(config=config, resolved_defaults=lambda **options: {})
    monkeypatch.setattr(regions.Pipeline, "load", lambda name: pipe)
    monkeypatch.setattr(regions, "training_images", lambda source: pictures)
    monkeypatch.setattr(regions, "draw", draw)

    def draw_alone(pipe, args, caption):
        return np.stack([pictures[source.captions.index(caption)]] * args.seeds)

    monkeypatch.setattr(regions, "draw_alone", draw_alone)
    command = f"regions --model emoji --pairs 3 --seeds 2 --out {tmp_path}".split()
    for accuracy in (1.0, 0.0):
        assert evaluate.main(command) == 0
        line = json.loads(capsys.readouterr().out)
        assert line["accuracy_both"] == line["accuracy_left"] == accuracy
        assert line["alone_both"] == 1 and len(line["alone_both_95"]) == 2
        assert line["pairs"] == 3 and line["draw_seed"] == 0
        assert [share for *_, share in line["both_of_pairs"]] == [accuracy] * 3
        turned.append(True)
    assert (tmp_path / "regions.png").is_file()
    one = ["--left", "pizza", "--right", "no such thing"]
    assert evaluate.main(["regions", "--model", "emoji", *one]) == 2
    assert "'no such thing' is not a caption" in capsys.readouterr().err
