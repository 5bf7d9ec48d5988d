"""COCO and OpenImages: files as they are handed out, small ones, written here."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from configs import coco_layout_ldm8
from lDM_jax.core.errors import BadExample, UserError
from lDM_jax.data.annotated import coco, openimages
from lDM_jax.from_config import datasets
from tests.toys import config_of

SIZE = (40, 20)


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE).save(path, "JPEG")


def make_coco(root, part="train", stuff=True):
    names = {7: f"{7:012}.jpg", 3: f"{3:012}.jpg", 9: "missing.jpg"}
    for number in (3, 7):
        picture(root / f"{part}2017" / names[number])
    notes = root / "annotations"
    notes.mkdir(exist_ok=True)
    images = [{"id": number, "file_name": name} for number, name in names.items()]

    def box(image, category, *bbox):
        return {"image_id": image, "category_id": category, "bbox": list(bbox)}

    things = {
        "images": images,
        "categories": [{"id": 90, "name": "zebra"}, {"id": 2, "name": "bus"}],
        "annotations": [
            box(7, 90, 0, 0, 20, 10),
            box(9, 90, 0, 0, 1, 1),
            box(3, 2, 10, 5, 30, 15),
            box(7, 2, 30, 10, 10, 10),
        ],
    }
    (notes / f"instances_{part}2017.json").write_text(json.dumps(things))
    texts = [{"image_id": 7, "caption": text} for text in ("a zebra", "two")]
    texts.append({"image_id": 3, "caption": "a bus"})
    (notes / f"captions_{part}2017.json").write_text(json.dumps({"annotations": texts}))
    if stuff:
        more = {"images": images, "categories": [{"id": 120, "name": "sky"}]}
        more["annotations"] = [box(3, 120, 0, 0, 40, 5)]
        (notes / f"stuff_{part}2017.json").write_text(json.dumps(more))


def test_coco_boxes_are_fractions_and_labels_count_in_the_order_of_the_ids(tmp_path):
    make_coco(tmp_path)
    source = pickle.loads(pickle.dumps(coco(tmp_path)))
    assert len(source) == 2  # of the third the file is missing
    assert source.categories == ["bus", "zebra", "sky"]
    assert datasets.conditions(source) == ["caption", "layout"]
    first, second = source[0], source[1]  # in the order of their ids: 3, 7
    assert first["layout"] == [(0, (0.25, 0.25, 0.75, 0.75)), (2, (0, 0, 1, 0.25))]
    assert second["layout"] == [(1, (0, 0, 0.5, 0.5)), (0, (0.75, 0.5, 0.25, 0.5))]
    assert first["caption"] == "a bus" and "captions" not in first
    assert second["captions"] == ("a zebra", "two")


def test_coco_s_held_out_split_is_its_validation(tmp_path):
    make_coco(tmp_path)
    make_coco(tmp_path, "val", stuff=False)
    for split in ("validation", "test"):
        assert coco(tmp_path, split=split).folder.name == "val2017"


def make_openimages(root, described=True):
    for name in ("aa", "bb"):
        picture(root / "train" / f"{name}.jpg")
    rows = [
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded",
        "aa,x,/m/02,1,0.25,0.75,0.5,1.0,0",
        "gone,x,/m/02,1,0,1,0,1,0",
        "bb,x,/m/01,1,0,0.5,0,0.5,0",
        "aa,x,/m/01,1,0,1,0,1,0",
    ]
    (root / "oidv6-train-annotations-bbox.csv").write_text("\n".join(rows) + "\n")
    if described:
        (root / "class-descriptions-boxable.csv").write_text("/m/02,Tree\n/m/01,Cat\n")


@pytest.mark.parametrize("described", [True, False])
def test_openimages_boxes(tmp_path, described):
    make_openimages(tmp_path, described)
    source = openimages(tmp_path)
    assert source.files == ["aa.jpg", "bb.jpg"]
    assert source.categories == (["Tree", "Cat"] if described else ["/m/01", "/m/02"])
    tree, cat = (0, 1) if described else (1, 0)
    np.testing.assert_allclose(source[0]["layout"][0][1], (0.25, 0.5, 0.5, 0.5))
    assert [label for label, _ in source[0]["layout"]] == [tree, cat]
    assert source[1]["layout"] == [(cat, (0, 0, 0.5, 0.5))]
    assert datasets.conditions(source) == ["layout"]


@pytest.mark.parametrize(
    "make, where", [(coco, "cocodataset.org"), (openimages, "openimages/web")]
)
def test_what_is_missing_says_where_to_get_it(tmp_path, make, where):
    for path in ("", tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match=where) as error:
            make(path)
        assert "\n" not in str(error.value)


def test_a_file_that_is_damaged_is_a_bad_example_and_notes_are_an_error(tmp_path):
    make_coco(tmp_path)
    source = coco(tmp_path)
    (source.folder / source.files[0]).write_bytes(b"")
    with pytest.raises(BadExample, match=source.files[0]):
        source[0]
    (tmp_path / "annotations" / "instances_train2017.json").write_text("{")
    with pytest.raises(UserError, match="instances_train2017.json is damaged"):
        coco(tmp_path)


def test_boxes_may_lack_the_last_kinds_that_training_had(tmp_path):
    make_coco(tmp_path)
    make_coco(tmp_path, "val", stuff=False)
    config = coco_layout_ldm8.get_config("smoke").unlock()
    config.data.update(source="coco", path=str(tmp_path))
    datasets.note_classes(config, datasets.source(config, "train"))
    assert config.data.classes == ("bus", "zebra", "sky")
    assert len(datasets.source(config, "validation")) == 2
    config.data.classes = ("bus", "zebra")
    with pytest.raises(UserError, match="first that differs was None and is 'sky'"):
        datasets.source(config, "train")


def test_layout_and_captions_train_from_coco(tmp_path):
    make_coco(tmp_path)
    data = dict(source="coco", path=str(tmp_path), size_px=16, background="white")
    text = dict(kind="bert", max_length=92, vocab_size=8192)
    settings = config_of(data=dict(**data, flip=0.5), task="layout", text=text)
    source = datasets.source(settings, "train")
    for task, key, length in (("layout", "boxes", 92), ("text", "tokens", 77)):
        settings.task, settings.text.max_length = task, length
        row = datasets.transform(settings)(source[1], np.random.default_rng(0))
        assert row[key].shape == (length,) and set(row) == {"image", key}
