"""Boxes of a layout as where its tokens are read: `config.layout.within_boxes`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from lDM_jax.core.arrays import Cond
from lDM_jax.core.errors import UserError
from lDM_jax.data.box_tokens import BoxTokenizer
from lDM_jax.diffusion.windows import in_windows
from lDM_jax.from_config import networks, older
from lDM_jax.from_config.task_settings import task_of, task_settings
from lDM_jax.interop.diffusers import write as to_diffusers
from lDM_jax.models import boxes
from lDM_jax.models.layers import SpatialTransformer
from tests.reference import rule
from tests.toys import small

# on the corners' grid of 300 tokens: 16 cells a side
LEFT, RIGHT = (0.0, 0.25, 0.5, 0.5), (0.5, 0.0, 0.25, 1.0)
LAYOUT = [(3, LEFT), (7, RIGHT)]


def token_boxes(layouts, drop=None):
    """Each token's box, of layouts through the tokenizer."""
    tokenizer = BoxTokenizer(20, 300)
    tokens = tokenizer(layouts)
    drop = np.zeros(len(layouts), bool) if drop is None else drop
    network = boxes.TokenBoxes(300)
    return np.asarray(network.apply({}, jnp.asarray(tokens), jnp.asarray(drop)))


def test_a_token_s_box_is_its_object_s():
    result = token_boxes([LAYOUT, []])
    assert result.shape == (2, 20, 4)
    for k, (_, (left, top, width, height)) in enumerate(LAYOUT):
        expected = [[left, top, left + width, top + height]] * 3
        np.testing.assert_allclose(result[0, 3 * k : 3 * k + 3], expected, atol=1e-6)
    assert (result[0, 6:18] > 1).all() and (result[1, :18] > 1).all()
    np.testing.assert_array_equal(result[:, 18:], [[[0, 0, 1, 1]] * 2] * 2)


def test_a_dropped_layout_is_the_empty_one():
    result = token_boxes([LAYOUT, LAYOUT], np.array([False, True]))
    np.testing.assert_array_equal(result[1], token_boxes([[]])[0])
    assert (result[0] != result[1]).any()


def test_coverage_sums_to_the_boxes_areas():
    rng = np.random.default_rng(0)
    low, side = rng.uniform(0, 0.6, (2, 1, 50, 2))
    side = np.maximum(side * 0.6, 0.2)  # wider than a cell
    given = np.concatenate([low, low + side], axis=-1)
    result = np.asarray(boxes.coverage(jnp.asarray(given), (6, 8)))
    assert result.shape == (1, 6, 8, 50) and result.min() >= 0
    inside = np.minimum(given[0, :, 2:], 1) - given[0, :, :2]
    np.testing.assert_allclose(
        result.sum(axis=(0, 1, 2)) / 48, inside.prod(axis=1), rtol=1e-5
    )


def test_thin_boxes_cover_a_cell_and_absent_ones_none():
    thin = [[0.5, 0.25, 0.5, 0.25], [1, 1, 1, 1], [boxes.OUTSIDE] * 4]
    result = np.asarray(boxes.coverage(jnp.array([thin]), (4, 4)))[0]
    for k, place in enumerate([(1, 2), (3, 3)]):
        expected = np.zeros((4, 4))
        expected[place] = 1
        np.testing.assert_array_equal(result[:, :, k], expected)
    assert not result[:, :, 2].any()


def test_a_label_changes_nothing_outside_its_box():
    """Cross-attention alone: the feed-forward layer and the norms are by position."""
    network = SpatialTransformer(num_heads=2, num_groups=4)
    x = jnp.asarray(rule.noise("x", (1, 8, 8, 8)))
    context = jnp.asarray(rule.noise("context", (1, 20, 6)))
    cond = boxes.on_grid(Cond(boxes=jnp.asarray(token_boxes([LAYOUT]))), (16, 16))
    assert cond.boxes is None and cond.regions.shape == (1, 16, 16, 20)
    variables = network.init(jax.random.key(0), x, context, cond.regions)
    variables = jax.tree.map(lambda p: p + 0.1, variables)  # no zero projections

    def change(token):
        other = context.at[:, token].add(1.0)
        out = [network.apply(variables, x, c, cond.regions) for c in (context, other)]
        return np.abs(np.asarray(out[1] - out[0])).max(axis=(0, 3)) > 1e-6

    for k, (_, (left, top, width, height)) in enumerate(LAYOUT):
        inside = np.zeros((8, 8), bool)
        rows = slice(round(8 * top), round(8 * (top + height)))
        inside[rows, round(8 * left) : round(8 * (left + width))] = True
        for token in range(3 * k, 3 * k + 3):
            np.testing.assert_array_equal(change(token), inside)
    assert not change(10).any()  # of an absent object
    assert change(18).all()  # of the crop


def test_windows_read_their_part_of_the_boxes():
    """A network that returns how many tokens a position sees needs no neighbors."""

    def seen(z, t, cond):
        cond = boxes.on_grid(cond, z.shape[1:3])
        return cond.regions.sum(axis=-1, keepdims=True)

    cond = Cond(boxes=jnp.asarray(token_boxes([LAYOUT])))
    z, t = jnp.zeros((1, 16, 32, 1)), jnp.zeros(1)
    whole = seen(z, t, cond)
    windowed = in_windows(seen, (16, 32), window=16, overlap=4)(z, t, cond)
    np.testing.assert_allclose(windowed, whole, atol=1e-5)
    assert len(np.unique(whole)) == 2  # two tokens of the crop, or an object's as well


def test_only_models_that_ask_for_it_read_within_boxes():
    config = small("emoji_layout")
    assert config.layout.within_boxes
    tokens = jnp.asarray(networks.tokenizer(config)([LAYOUT]))
    keep = jnp.zeros(1, bool)
    network = networks.conditioner(config)
    variables = network.init(jax.random.key(0), {"boxes": tokens}, keep)
    cond = network.apply(variables, {"boxes": tokens}, keep)
    np.testing.assert_array_equal(cond.boxes, token_boxes([LAYOUT]))
    config.layout.within_boxes = False
    plain = networks.conditioner(config)
    assert plain.apply(variables, {"boxes": tokens}, keep).boxes is None
    assert networks.conditioner(small("coco_layout_ldm8")).routes == plain.routes
    del config.layout  # as files from before have it
    config = ConfigDict(older.complete(config))
    assert networks.conditioner(config).routes == plain.routes


def test_other_programs_have_no_place_for_it():
    config = small("emoji_layout")
    config.text.update(num_heads=8, head_width=64)
    codec = networks.abstract_codec(config)
    with pytest.raises(UserError, match=r"no place for layout\.within_boxes"):
        task_of(config).original(task_settings(config), 4)
    note = to_diffusers.choose_pipeline(config, codec, 1.0)[2]
    assert "without the masks" in note
    config.layout.within_boxes = False
    task_of(config).original(task_settings(config), 4)
    assert "masks" not in to_diffusers.choose_pipeline(config, codec, 1.0)[2]
