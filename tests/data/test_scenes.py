"""Scenes of emoji: boxes and label maps against images, flips against geometry."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lDM_jax.core.errors import UserError
from lDM_jax.data.box_tokens import BoxTokenizer
from lDM_jax.data.scenes import SceneSource, place_boxes, trim
from lDM_jax.data.sources import EmojiSource
from lDM_jax.data.transforms import Composite, Keep, RandomFlip, TokenizeLayout, compose
from tests.toys import write_records

ROOT = Path(__file__).parents[2]


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def source():
    return SceneSource(split="test", size_px=64, num_scenes=300)


@pytest.fixture(scope="module")
def scenes(source):
    return [source[i] for i in range(len(source))]


def same(a, b):
    assert a.keys() == b.keys()
    np.testing.assert_array_equal(a["image"], b["image"])
    np.testing.assert_array_equal(a["segmentation"], b["segmentation"])
    return a["caption"] == b["caption"] and a["layout"] == b["layout"]


def pixels_of(box, size_px=64):
    """Rows and columns that a box covers; its edges lie on pixel edges."""
    left, top, width, height = (size_px * np.array(box)).tolist()
    edges = [left, top, left + width, top + height]
    np.testing.assert_allclose(edges, np.rint(edges), atol=1e-9)
    left, top, right, bottom = (round(edge) for edge in edges)
    return slice(top, bottom), slice(left, right)


def test_examples_have_the_stated_form(source, scenes):
    assert len(source) == 300 and len(source.categories) == 9
    for scene in scenes:
        assert scene["image"].shape == (64, 64, 4) and scene["image"].dtype == np.uint8
        assert (scene["image"][:, :, 3] == 255).all()
        segmentation = scene["segmentation"]
        assert segmentation.shape == (64, 64) and segmentation.dtype == np.int32
        assert set(np.unique(segmentation)) <= set(range(10))
        for label, box in scene["layout"]:
            assert type(label) is int and all(type(value) is float for value in box)


def test_counts_and_groups_are_uniform(scenes):
    """5 standard errors; the emoji of a scene differ, which couples them weakly."""
    counts = np.array([len(scene["layout"]) for scene in scenes])
    assert set(counts) == {2, 3, 4, 5, 6}
    for count in range(2, 7):
        assert abs((counts == count).mean() - 0.2) < 5 * np.sqrt(0.2 * 0.8 / 300)
    labels = np.array([label for scene in scenes for label, _ in scene["layout"]])
    for group in range(9):
        error = np.sqrt(1 / 9 * 8 / 9 / len(labels))
        assert abs((labels == group).mean() - 1 / 9) < 5 * error


def test_boxes_are_large_enough_ordered_and_hardly_overlap(scenes):
    for scene in scenes:
        boxes = np.array([box for _, box in scene["layout"]])
        longest = boxes[:, 2:].max(axis=1)
        assert longest.min() >= 0.25 - 0.5 / 64 and longest.max() <= 0.55 + 0.5 / 64
        assert (np.diff(longest) <= 0).all()
        covered = np.zeros((len(boxes), 64, 64), bool)
        for mask, box in zip(covered, boxes, strict=True):
            mask[pixels_of(box)] = True
            assert mask.sum() == round(np.prod(box[2:]) * 64**2)  # nothing lies outside
        for i in range(len(boxes)):
            for j in range(i):
                both, either = covered[i] & covered[j], covered[i] | covered[j]
                assert both.sum() / either.sum() <= 0.05


def test_boxes_are_tight_around_what_differs_from_the_background(source, scenes):
    """Of single emoji: at 64 px a tip may fade, by two pixels, before the edge."""
    alone = SceneSource(split="test", num_scenes=80, min_objects=1, max_objects=1)
    for i in range(len(alone)):
        scene = alone[i]
        ((label, box),) = scene["layout"]
        rows, columns = pixels_of(box)
        covered = scene["segmentation"] == label + 1
        assert covered.any() and (scene["segmentation"][~covered] == 0).all()
        outside = np.ones((64, 64), bool)
        outside[rows, columns] = False
        assert not covered[outside].any()
        background = scene["image"][outside]
        assert (background == background[0]).all()
        visible = (scene["image"] != background[0]).any(axis=2)
        for axis, extent in ((1, rows), (0, columns)):
            seen = np.flatnonzero(visible.any(axis=axis))
            assert 0 <= seen[0] - extent.start <= 2
            assert 0 <= extent.stop - 1 - seen[-1] <= 2


def test_label_map_shows_every_object_in_its_box(scenes):
    for scene in scenes:
        segmentation = scene["segmentation"]
        inside = np.zeros((64, 64), bool)
        for label, box in scene["layout"]:
            window = pixels_of(box)
            inside[window] = True
            assert (segmentation[window] == label + 1).mean() > 0.05
        assert not segmentation[~inside].any()
        assert set(np.unique(segmentation)) - {0} == {
            label + 1 for label, _ in scene["layout"]
        }


def test_pictures_and_names_belong_together():
    """The flag of France is blue, white and red, and its group is Flags."""
    emoji = next(
        e
        for e in (EmojiSource(split=s) for s in ("test", "validation", "train"))
        if "flag: France" in e.captions
    )
    scenes = SceneSource(split=emoji.split, num_scenes=60_000, max_objects=2)
    i = next(
        i
        for i, caption in enumerate(scenes.captions)
        if "flag: France" in caption.split(", ")
    )
    scene = scenes[i]
    which = scene["caption"].split(", ").index("flag: France")
    label, box = scene["layout"][which]
    assert scenes.categories[label] == "Flags"
    flag = scene["image"][pixels_of(box)].astype(int)
    height, width = flag.shape[:2]
    left, middle, right = (flag[height // 2, width * k // 6] for k in (1, 3, 5))
    assert left[2] > left[0] + 60 and middle[:3].min() > 180
    assert right[0] > right[2] + 60


def test_captions_are_those_of_the_examples(source, scenes):
    assert source.captions == [scene["caption"] for scene in scenes]
    known = set(EmojiSource(split="test").captions)
    for scene in scenes:
        # Some names hold a comma themselves, so the parts are compared as text.
        rest = scene["caption"]
        for _ in scene["layout"]:
            name = max((n for n in known if rest.startswith(n)), key=len)
            rest = rest[len(name) :].removeprefix(", ")
        assert rest == ""


def test_a_scene_depends_on_seed_split_and_index_alone(source, scenes):
    assert same(source[7], scenes[7]) and same(source[-1], scenes[299])
    longer = SceneSource(split="test", num_scenes=1000)
    assert same(longer[299], scenes[299])
    other = SceneSource(split="test", seed=1)
    assert other[7]["caption"] != scenes[7]["caption"]
    other = SceneSource(split="validation")
    assert other[7]["caption"] != scenes[7]["caption"]
    larger = SceneSource(split="test", size_px=128)
    assert larger[7]["image"].shape == (128, 128, 4)
    assert larger[7]["caption"] == scenes[7]["caption"]
    assert len({scene["caption"] for scene in scenes}) > 290
    with pytest.raises(IndexError, match="scene 300 of 300"):
        source[300]


def test_subgroups_change_labels_and_nothing_else(scenes):
    finer = SceneSource(split="test", labels="subgroups")
    emoji = EmojiSource(split="test")
    assert finer.categories == emoji.subgroups
    groups = {}
    for i in range(40):
        scene = finer[i]
        np.testing.assert_array_equal(scene["image"], scenes[i]["image"])
        pairs = zip(scene["layout"], scenes[i]["layout"], strict=True)
        for (subgroup, box), (group, same_box) in pairs:
            assert box == same_box
            # Each subgroup lies in one group.
            assert groups.setdefault(subgroup, group) == group
    assert len(groups) > 20


def test_backgrounds_are_light_or_white(scenes):
    white = SceneSource(split="test", background="white")
    corners = []
    for i in range(100):
        empty = white[i]["segmentation"] == 0
        assert np.median(white[i]["image"][empty], axis=0).tolist() == [255] * 4
        corners.append(np.median(scenes[i]["image"][empty], axis=0)[:3])
    corners = np.array(corners)
    assert corners.min() >= 208 and corners.max() <= 255
    # Uniform over 48 values: 5 standard errors of 300 numbers.
    assert abs(corners.mean() - 231.5) < 5 * np.sqrt(48**2 / 12 / 300)
    assert np.ptp(corners, axis=1).max() > 10


def test_emoji_are_laid_over_the_background_by_their_alpha(tmp_path):
    """A half transparent white square over white stays white; red becomes pink."""
    pixels = np.zeros((40, 40, 4), np.uint8)
    pixels[10:30, 10:30] = (255, 0, 0, 128)
    path = write_records(tmp_path / "square.array_record", pixels)
    scene = SceneSource(
        path=path, background="white", min_objects=1, max_objects=1, size_px=50
    )[0]
    ((label, box),) = scene["layout"]
    window = pixels_of(box, 50)
    assert label == 0 and box[2] == box[3]
    # 255 (1 - 128 / 255) = 127; one level for PIL's 8-bit premultiplied arithmetic.
    inner = scene["image"][window][2:-2, 2:-2]
    assert np.abs(inner - np.array([255, 127, 127, 255])).max() <= 1
    assert (scene["segmentation"][window][1:-1, 1:-1] == 1).all()


def test_trim_keeps_what_is_more_than_half_opaque():
    pixels = np.zeros((9, 12, 4), np.uint8)
    pixels[2:5, 3:10, 3] = 200
    pixels[0, 0, 3] = 127
    assert trim(pixels).shape == (3, 7, 4)
    assert (trim(pixels)[:, :, 3] == 200).all()


def test_placing_keeps_proportions_and_stays_inside():
    generator = rng()
    for _ in range(30):
        shapes = [(100, 20), (50, 100), (136, 136), (10, 100)]
        boxes = place_boxes(shapes, 96, generator)
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, :2] + boxes[:, 2:] <= 96).all()
        for (height, width), box in zip(shapes, boxes, strict=True):
            scale = box[2:].max() / max(height, width)
            # Both sides are rounded, each by half a pixel.
            np.testing.assert_allclose(box[2:], (width * scale, height * scale), atol=1)


# Transforms


def test_flip_mirrors_picture_map_and_boxes_together(scenes):
    flip = RandomFlip(1.0)
    for scene in scenes[:50]:
        flipped = flip(scene, rng())
        np.testing.assert_array_equal(flipped["image"], scene["image"][:, ::-1])
        np.testing.assert_array_equal(
            flipped["segmentation"], scene["segmentation"][:, ::-1]
        )
        for (label, box), (old_label, old) in zip(
            flipped["layout"], scene["layout"], strict=True
        ):
            assert label == old_label
            painted = np.zeros((64, 64), bool)
            painted[pixels_of(old)] = True
            mirrored = np.zeros((64, 64), bool)
            mirrored[pixels_of(box)] = True
            np.testing.assert_array_equal(mirrored, painted[:, ::-1])
        assert same(flip(flipped, rng()), scene)
        assert RandomFlip(0.0)(scene, rng()) is scene


def test_flip_happens_with_its_probability(scenes):
    generator = rng(4)
    flips = [
        RandomFlip(0.3)(scenes[0], generator) is not scenes[0] for _ in range(1000)
    ]
    assert abs(np.mean(flips) - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 1000)


def test_tokens_of_a_mirrored_scene_are_mirrored_corners(scenes):
    """Columns of a corner pair (a, b) become (89 - b, 89 - a), up to rounding."""
    tokenizer = BoxTokenizer(max_length=20)
    transform = compose(RandomFlip(1.0), TokenizeLayout(tokenizer, shuffle=False))
    for scene in scenes[:50]:
        plain = TokenizeLayout(tokenizer, shuffle=False)(scene, rng())["boxes"]
        flipped = transform(scene, rng())["boxes"]
        assert flipped.dtype == np.int32 and flipped.shape == (20,)
        count = 3 * len(scene["layout"])
        np.testing.assert_array_equal(flipped[:count:3], plain[:count:3])
        for k in range(0, count, 3):
            (row, a), (last, b) = divmod(plain[k + 1], 90), divmod(plain[k + 2], 90)
            (row2, c), (last2, d) = (divmod(flipped[k + j], 90) for j in (1, 2))
            assert (row2, last2) == (row, last)
            assert abs(c - (89 - b)) <= 1 and abs(d - (89 - a)) <= 1
        np.testing.assert_array_equal(flipped[count:], plain[count:])


def test_shuffled_tokens_are_the_same_objects_in_every_order(scenes):
    tokenizer = BoxTokenizer(max_length=20)
    scene = next(s for s in scenes if len(s["layout"]) == 3)
    plain = TokenizeLayout(tokenizer, shuffle=False)(scene, None)["boxes"]
    objects = {tuple(triple) for triple in plain[:9].reshape(3, 3)}
    generator, orders = rng(), set()
    for _ in range(100):
        tokens = TokenizeLayout(tokenizer)(scene, generator)["boxes"]
        triples = [tuple(triple) for triple in tokens[:9].reshape(3, 3)]
        assert set(triples) == objects
        np.testing.assert_array_equal(tokens[9:], plain[9:])
        orders.add(tuple(triples))
    assert len(orders) == 6


def test_layout_is_replaced_and_flips_come_first(scenes):
    example = TokenizeLayout(BoxTokenizer())(scenes[0], rng())
    assert set(example) == {"image", "caption", "segmentation", "boxes"}
    assert example["boxes"].shape == (92,) and "layout" in scenes[0]
    with pytest.raises(ValueError, match="before the layout becomes tokens"):
        RandomFlip()(example, rng())


def test_scenes_pass_through_the_transforms_of_training(source):
    transform = compose(
        Composite(),
        RandomFlip(0.5),
        TokenizeLayout(BoxTokenizer()),
        Keep(("image", "segmentation", "boxes")),
    )
    again = pickle.loads(pickle.dumps(transform))
    assert again(source[0], rng())["image"].dtype == np.float32
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 1000
    assert copy.fingerprint == source.fingerprint and len(copy) == len(source)
    for i in range(3):
        for key, value in again(copy[i], rng(i)).items():
            np.testing.assert_array_equal(value, transform(source[i], rng(i))[key])


def test_fingerprint_depends_on_every_option(source):
    options = dict(split="test", size_px=64, num_scenes=300)
    prints = {SceneSource(**options).fingerprint, source.fingerprint}
    assert len(prints) == 1
    for change in (
        {"split": "validation"},
        {"size_px": 32},
        {"num_scenes": 301},
        {"seed": 1},
        {"min_objects": 3},
        {"max_objects": 5},
        {"labels": "subgroups"},
        {"background": "white"},
    ):
        prints.add(SceneSource(**{**options, **change}).fingerprint)
    assert len(prints) == 9


def test_errors_name_what_is_valid():
    for options, words in (
        ({"split": "dev"}, "'train', 'validation', 'test'"),
        ({"labels": "names"}, "'groups', 'subgroups'"),
        ({"background": "black"}, "'light', 'white'"),
        ({"size_px": 8}, "size_px is 8"),
        ({"num_scenes": 0}, "num_scenes is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"min_objects": 0}, "0 to 6 objects: give 1 to 6"),
        ({"max_objects": 7}, "2 to 7 objects"),
        ({"min_objects": 4, "max_objects": 3}, "4 to 3 objects"),
    ):
        with pytest.raises(UserError, match=words):
            SceneSource(**options)
    with pytest.raises(UserError, match="probability is 2"):
        RandomFlip(2)


def test_task_data_does_not_import_jax():
    code = (
        "import sys, lDM_jax.data.scenes as s;"
        "import lDM_jax.data.masks, lDM_jax.data.degrade;"
        "s.SceneSource(split='test')[0]; assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
