"""Layouts to tokens and back, beside the published formula of taming-transformers.

There a corner's token is round(y (s - 1)) s + round(x (s - 1)), s the whole part of the
root of the vocabulary, an object is its category and two corners, an absent one three
times the last token, and the crop's two corners end the row.
"""

import pickle

import numpy as np
import pytest

from lDM_jax.core.errors import UserError
from lDM_jax.data.box_tokens import BoxTokenizer

NONE = 8191


def taming_row(layout, crop=(0.0, 0.0, 1.0, 1.0)):
    """The 92 numbers, by arrays: rounding of halves is to even in both programs."""
    row = np.full(92, NONE)
    boxes = np.array([crop, *(box for _, box in layout)])
    x0, y0, width, height = boxes.T
    corners = [(x0, y0), (x0 + width, y0 + height)]
    first, second = (np.rint(89 * y) * 90 + np.rint(89 * x) for x, y in corners)
    row[0 : 3 * len(layout) : 3] = [label for label, _ in layout]
    row[1 : 3 * len(layout) : 3] = first[1:]
    row[2 : 3 * len(layout) : 3] = second[1:]
    row[90], row[91] = first[0], second[0]
    return row


def random_layout(rng, count):
    left, top = rng.uniform(0, 0.7, (2, count))
    width, height = rng.uniform(0.01, 0.3, (2, count))
    labels = rng.integers(0, 8000, count).tolist()
    return list(zip(labels, zip(left, top, width, height, strict=True), strict=True))


@pytest.mark.parametrize("count", [0, 1, 7, 30])
def test_rows_are_those_of_the_published_formula(count):
    rng = np.random.default_rng(count)
    layouts = [random_layout(rng, count) for _ in range(20)]
    crops = [box for _, box in random_layout(rng, 20)]
    tokens = BoxTokenizer()(layouts, crops)
    assert tokens.shape == (20, 92) and tokens.dtype == np.int32
    expected = [taming_row(*pair) for pair in zip(layouts, crops, strict=True)]
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_array_equal(
        BoxTokenizer()(layouts), [taming_row(layout) for layout in layouts]
    )


def test_the_picture_in_the_original_s_docstring():
    """16 tokens are a 4 x 4 grid: row 1, column 2 is token 6, the last corner 15."""
    tokenizer = BoxTokenizer(max_length=5, vocab_size=16)
    assert tokenizer.corner(2 / 3, 1 / 3) == 6
    assert tokenizer.corner(1, 1) == 15
    assert tokenizer.corner(0, 0) == 0


def test_a_row_written_by_hand():
    # The left half: corners (0, 0) and (0.5, 1), 89 / 2 = 44.5 rounds to the even 44.
    (row,) = BoxTokenizer(max_length=8)([[(5, (0.0, 0.0, 0.5, 1.0))]])
    assert row.tolist() == [5, 0, 89 * 90 + 44, NONE, NONE, NONE, 0, 8099]


def test_layouts_come_back_up_to_rounding():
    rng = np.random.default_rng(1)
    tokenizer = BoxTokenizer()
    layouts = [random_layout(rng, count) for count in (0, 3, 30)]
    again = tokenizer.layouts(tokenizer(layouts))
    assert [len(layout) for layout in again] == [0, 3, 30]
    for layout, result in zip(layouts, again, strict=True):
        for (label, box), (same_label, near) in zip(layout, result, strict=True):
            assert label == same_label
            # A corner moves by half a step of 1/89, an extent by two of them.
            np.testing.assert_allclose(near[:2], box[:2], atol=0.5 / 89 + 1e-9)
            np.testing.assert_allclose(near[2:], box[2:], atol=1 / 89 + 1e-9)
    np.testing.assert_array_equal(tokenizer(again), tokenizer(layouts))


def test_no_layouts_are_no_rows():
    assert BoxTokenizer()([]).shape == (0, 92)


BOX = (0.1, 0.1, 0.2, 0.2)


@pytest.mark.parametrize(
    "layout",
    [
        [(-1, BOX)],
        [(NONE, BOX)],
        [(2.5, BOX)],
        [(float("nan"), BOX)],
        [(0, (0.9, 0.1, 0.2, 0.2))],
        [(0, (0.1, 0.9, 0.2, 0.2))],
        [(0, (-0.1, 0.1, 0.2, 0.2))],
        [(0, (0.1, 0.1, -0.05, 0.2))],
        [(0, (0.1, 0.1, 0.2, -0.05))],
        [(0, (0.1, float("nan"), 0.2, 0.2))],
        [(0, (0.1, 0.1, 0.2, float("nan")))],
        [(0, (0.1, 0.1, float("inf"), 0.2))],
        [(0, BOX[:3])],
        [(0, BOX)] * 31,
    ],
)
def test_impossible_layouts_are_refused_in_one_line(layout):
    with pytest.raises(UserError, match="give|at most 30") as caught:
        BoxTokenizer()([layout])
    assert "\n" not in str(caught.value)


def test_rounding_errors_at_the_border_are_forgiven():
    (row,) = BoxTokenizer(max_length=5)([[(0, (0.1 + 0.2, 0.7, 0.7, 0.3 + 1e-9))]])
    assert row[2] == 8099


@pytest.mark.parametrize("length", [0, 2, 4, 6, 91])
def test_lengths_hold_whole_objects(length):
    with pytest.raises(UserError, match=f"max_length is {length}"):
        BoxTokenizer(max_length=length)


def test_tokenizers_survive_pickling():
    tokenizer = pickle.loads(pickle.dumps(BoxTokenizer(max_length=8)))
    assert tokenizer([[(5, BOX)]]).shape == (1, 8)
