"""Nearest training picture: against a brute-force search, and chance by counting."""

import numpy as np
import pytest

from lDM_jax.arrays import UserError
from lDM_jax.evaluation.prompts import draw_captions
from lDM_jax.metrics.recognition import nearest, recognise


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


def test_training_pictures_recognise_themselves():
    references = np.random.default_rng(1).integers(0, 256, (9, 4, 4, 3), np.uint8)
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
    result = recognise(references, labels, references=references, labels=labels)
    assert result.accuracy == 1.0
    # sum of squared shares: a picture of share p is guessed with probability p
    assert result.chance == pytest.approx((3 / 9) ** 2 + (2 / 9) ** 2 + (4 / 9) ** 2)
    wrong = recognise(references, 2 - labels, references=references, labels=labels)
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
