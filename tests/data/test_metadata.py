"""metadata.jsonl, label maps, folders named after splits: what a folder can say.

Expectations are the numbers that were written into the files.
"""

import io
import json

import numpy as np
import pytest
from PIL import Image

from lDM_jax.core.errors import BadExample, UserError
from lDM_jax.data import metadata
from lDM_jax.data.box_tokens import BoxTokenizer
from lDM_jax.data.folder import FolderSource
from lDM_jax.data.tokenizers import BertTokenizer
from lDM_jax.data.transforms import CheckLabels, RandomFlip, Tokenize, TokenizeLayout
from lDM_jax.from_config import datasets
from tests.toys import config_of


def draw(path, size=(40, 20), mode="RGB", colour=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour or 0).save(path)
    return path


def describe(folder, *lines):
    folder.mkdir(parents=True, exist_ok=True)
    for line in lines:
        if isinstance(line, dict) and line.get("file_name"):
            draw(folder / line["file_name"])
    text = "\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines)
    (folder / "metadata.jsonl").write_text(text + "\n\n", encoding="utf-8")
    return folder


def test_captions_labels_and_their_names(tmp_path):
    describe(
        tmp_path,
        {"file_name": "b.png", "text": " a  dog\n", "label": "dog"},
        {"file_name": "sub/a.png", "text": ["one", "two"], "label": "cat"},
        {"file_name": "c.png", "text": None, "label": "cat"},
    )
    draw(tmp_path / "not_listed.png")
    source = FolderSource(tmp_path)
    assert source.files == ["b.png", "c.png", "sub/a.png"]
    assert source.conditions == ["caption", "label"]
    assert source.captions == ["a dog", "", "one"]
    assert source.classes == ["cat", "dog"] and source.num_classes == 2
    np.testing.assert_array_equal(source.labels, [1, 0, 0])
    assert source[0]["caption"] == "a dog" and "captions" not in source[0]
    assert source[2]["captions"] == ("one", "two")
    assert source.unused == ["not_listed.png"]


def test_one_of_several_captions_is_drawn_from_the_example_s_generator():
    transform = Tokenize(BertTokenizer(max_length=4))
    example = {"caption": "hello", "captions": ("hello", "world")}
    words = [
        int(transform(example, np.random.default_rng(seed))["tokens"][1])
        for seed in range(400)
    ]
    # BERT's vocabulary: hello 7592, world 2088; 5 standard errors of a fair coin
    assert set(words) == {7592, 2088}
    assert abs(np.mean(np.array(words) == 7592) - 0.5) < 5 * 0.5 / 20
    again = transform(example, np.random.default_rng(7))
    assert words[7] == again["tokens"][1] and set(again) == {"tokens"}


def test_numbers_are_labels_as_they_are(tmp_path):
    describe(tmp_path, {"file_name": "a.png", "label": 7})
    source = FolderSource(tmp_path)
    assert source[0]["label"] == 7 and source.num_classes == 8
    assert source.classes == []


def test_boxes_in_fractions_and_in_pixels_are_the_same_layout(tmp_path):
    boxes = [[0.25, 0.5, 0.5, 0.25], [0.0, 0.0, 1.0, 1.0]]
    pixels = [[10, 10, 20, 5], [0, 0, 40, 20]]  # of an image of 40 x 20
    describe(
        tmp_path,
        {"file_name": "a.png", "boxes": boxes, "labels": ["cup", "cat"]},
        {
            "file_name": "b.png",
            "objects": {"bbox": pixels, "categories": ["cup", "cat"]},
        },
        {"file_name": "c.png", "boxes": [], "labels": []},
    )
    source = FolderSource(tmp_path)
    assert source.conditions == ["layout"] and source.categories == ["cat", "cup"]
    for i in range(2):
        result = source[i]["layout"]
        assert [label for label, _ in result] == [1, 0]
        np.testing.assert_allclose([box for _, box in result], boxes, rtol=1e-12)
    assert source[2]["layout"] == []


def test_boxes_are_cut_at_the_picture_s_edge(tmp_path):
    line = {
        "file_name": "a.png",
        "objects": {"bbox": [[-4, 10, 64, 20]], "category": [3]},
    }
    source = FolderSource(describe(tmp_path, line))
    ((label, box),) = source[0]["layout"]
    assert label == 3
    np.testing.assert_allclose(box, (0.0, 0.5, 1.0, 0.5))
    BoxTokenizer()([source[0]["layout"]])


def test_the_largest_objects_are_kept_and_the_crop_is_a_token():
    tokenizer = BoxTokenizer(max_length=8)  # two objects and the crop
    layout = [(i, (0.0, 0.0, side, side)) for i, side in enumerate((0.2, 0.9, 0.5))]
    crop = (0.0, 0.25, 1.0, 0.5)
    transform = TokenizeLayout(tokenizer, shuffle=False)
    row = transform({"layout": layout, "crop": crop}, np.random.default_rng(0))
    assert set(row) == {"boxes"}
    expected = tokenizer([[layout[1], layout[2]]], [crop])[0]
    np.testing.assert_array_equal(row["boxes"], expected)
    mirrored = RandomFlip(1.0)(
        {"layout": layout, "crop": (0.1, 0.0, 0.4, 1.0)}, np.random.default_rng(0)
    )
    np.testing.assert_allclose(mirrored["crop"], (0.5, 0.0, 0.4, 1.0))


def test_label_maps_of_grey_and_palette_pictures_and_masks(tmp_path):
    values = np.arange(20, dtype=np.uint8).reshape(4, 5)
    palette = Image.fromarray(values).convert("P")
    palette.putdata(values.ravel())
    palette.putpalette(list(range(255, 255 - 60, -1)))
    lines = []
    for name, picture in (("a", Image.fromarray(values)), ("b", palette)):
        lines.append({"file_name": f"{name}.png", "segmentation": f"{name}_map.png"})
        lines[-1]["mask"] = f"{name}_map.png"
        tmp_path.mkdir(exist_ok=True)
        picture.save(tmp_path / f"{name}_map.png")
    source = FolderSource(describe(tmp_path, *lines))
    assert source.conditions == ["mask", "segmentation"]
    for i in range(2):
        result = source[i]["segmentation"]
        assert result.dtype == np.int32
        np.testing.assert_array_equal(result, values)
        mask = source[i]["mask"]
        assert mask.dtype == np.float32 and mask.shape == (4, 5, 1)
        np.testing.assert_array_equal(mask[:, :, 0], values > 0)


def test_a_map_in_colour_is_refused(tmp_path):
    describe(tmp_path, {"file_name": "a.png", "segmentation": "map.png"})
    draw(tmp_path / "map.png", colour=(1, 2, 3))
    with pytest.raises(BadExample, match="map.png is in color"):
        FolderSource(tmp_path)[0]


def test_labels_beyond_num_classes_are_refused():
    example = {"segmentation": np.array([[0, 5]], np.int32)}
    assert CheckLabels(6)(example, None) is example
    with pytest.raises(BadExample, match=r"label 5; .* allows 0 \.\. 4"):
        CheckLabels(5)(example, None)


@pytest.mark.parametrize("split", [False, True])
def test_label_maps_beside_the_pictures(tmp_path, split):
    parts = ("train/", "val/") if split else ("",)
    for part in parts:
        draw(tmp_path / f"{part}images/sea/a.jpg")
        draw(tmp_path / f"{part}segmentation/sea/a.png", mode="L", colour=9)
    source = FolderSource(tmp_path)
    assert source.files == [f"{parts[0]}images/sea/a.jpg"]
    assert source.conditions == ["segmentation"]
    assert (source[0]["segmentation"] == 9).all()


def test_folders_named_after_splits_are_the_splits(tmp_path):
    for name in ("train/cat/a.png", "train/dog/b.png", "val/cat/c.png"):
        draw(tmp_path / name)
    files = {s: FolderSource(tmp_path, split=s).files for s in ("train", "test")}
    assert files == {
        "train": ["train/cat/a.png", "train/dog/b.png"],
        "test": ["val/cat/c.png"],
    }
    validation = FolderSource(tmp_path, split="validation")
    assert validation.files == ["val/cat/c.png"]
    assert validation.classes == ["cat", "dog"]
    np.testing.assert_array_equal(validation.labels, [0])


def test_a_metadata_file_in_each_split_s_folder(tmp_path):
    for part, label in (("train", "b"), ("test", "a")):
        describe(tmp_path / part, {"file_name": "x.png", "label": label})
    source = FolderSource(tmp_path, split="test")
    assert source.files == ["test/x.png"] and source.classes == ["a", "b"]


@pytest.mark.parametrize(
    "line, problem",
    [
        ("{oops", "line 2, is not JSON"),
        ("[1]", "line 2, is not a JSON object"),
        ({"label": 1}, "has no file_name"),
        ({"file_name": "b.png", "text": 3}, "neither a text nor a list"),
        ({"file_name": "b.png", "label": -1}, "has the label -1"),
        ({"file_name": "b.png", "boxes": [[0, 0, 1, 1]]}, "1 boxes and 0 classes"),
        ({"file_name": "b.png", "boxes": [[0, 0, 1]], "labels": [1]}, "four numbers"),
        ({"file_name": "b.png", "boxes": [[0, 0, 90, 9]], "labels": [1]}, "fractions"),
        ({"file_name": "b.png", "boxes": [[0, 0, -1, 1]], "labels": [1]}, "an extent"),
        ({"file_name": "a.png"}, "the second of 'a.png'"),
    ],
)
def test_a_line_that_is_not_right_is_named_when_the_run_starts(tmp_path, line, problem):
    describe(tmp_path, {"file_name": "a.png"}, line)
    with pytest.raises(UserError, match=problem) as error:
        FolderSource(tmp_path)
    assert "metadata.jsonl, line 2," in str(error.value)
    assert "\n" not in str(error.value)


def test_examples_without_what_the_others_have_are_left_out_captions_are_empty():
    picture = metadata.build
    options = dict(names=metadata.Names(), read=bytes, where="x.png", min_px=1)
    data = draw_bytes()
    assert picture(data, {}, keys=["caption"], **options)["caption"] == ""
    for key, name in (("label", "label"), ("layout", "boxes"), ("mask", "mask")):
        with pytest.raises(BadExample, match=f"x.png has no {name}"):
            picture(data, {}, keys=[key], **options)
    with pytest.raises(BadExample, match="has 40 x 20 pixels; .*min_px is 21"):
        picture(data, {}, keys=[], **{**options, "min_px": 21})


def draw_bytes():
    data = io.BytesIO()
    Image.new("RGB", (40, 20)).save(data, "PNG")
    return data.getvalue()


def config(path, task, **changes):
    data = dict(source="folder", path=str(path), size_px=16, background="white")
    data |= dict(flip=0.0)
    text = dict(max_length=92, vocab_size=8192)
    return config_of(data=data, task=task, text=text, **changes)


def test_layout_and_semantic_tasks_train_from_one_s_own_folder(tmp_path):
    line = {"file_name": "a.png", "boxes": [[0.25, 0, 0.5, 1]], "labels": ["cup"]}
    line["segmentation"] = "map.png"
    describe(tmp_path, line)
    draw(tmp_path / "map.png", mode="L", colour=2)
    settings = config(tmp_path, "layout")
    source = datasets.source(settings, "train")
    row = datasets.transform(settings)(source[0], np.random.default_rng(0))
    assert row["image"].shape == (16, 16, 3)
    # the central square of 40 x 20 is exactly the box
    ((label, box),) = BoxTokenizer().layouts(row["boxes"][None])[0]
    assert label == 0 and box == (0.0, 0.0, 1.0, 1.0)
    settings = config(tmp_path, "semantic", num_classes=3)
    row = datasets.transform(settings)(source[0], np.random.default_rng(0))
    assert row["segmentation"].shape == (16, 16) and (row["segmentation"] == 2).all()
    with pytest.raises(UserError, match="needs data with a label.*layout, segment"):
        datasets.source(config(tmp_path, "class", num_classes=3), "train")
