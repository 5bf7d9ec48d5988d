"""ArrayRecord shards, tar shards turned into them, and TFDS's own files.

Pixels are compared with what was encoded; TFDS writes its data set itself, here.
"""

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from lDM_jax.core.errors import BadExample, UserError
from lDM_jax.data.records import RecordSource, assign_splits, pack, unpack
from lDM_jax.data.sources import SPLITS, read_records
from lDM_jax.data.tfds_source import TfdsSource
from lDM_jax.from_config import datasets
from lDM_jax.tools import convert_webdataset
from tests.toys import config_of


def png(value, mode="RGB", size=(20, 16)):
    data = io.BytesIO()
    colour = (value,) * 3 if mode == "RGB" else value
    Image.new(mode, size, colour).save(data, "PNG")
    return data.getvalue()


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for row in rows:
        writer.write(row)
    writer.close()


def test_a_record_holds_what_was_packed():
    files = {"image": png(1), "segmentation": png(2, "L")}
    fields = {"caption": "rød", "label": 3}
    result = unpack(pack(fields, files))
    assert result == (fields, files)
    with pytest.raises(ValueError, match="where the header says"):
        unpack(pack(fields, files)[:-5])


def test_records_of_the_emoji_format_are_pictures_too(tmp_path):
    """u32, JSON, the image: what tools/make_emoji.py writes."""
    header = json.dumps({"caption": "disc"}).encode()
    record = len(header).to_bytes(4, "little") + header + png(9)
    write(tmp_path / "a.array_record", [record] * 40)
    source = RecordSource(tmp_path)
    assert source[0]["caption"] == "disc" and (source[0]["image"] == 9).all()


def test_splits_by_name_and_by_share(tmp_path):
    for split, count in (("train", 5), ("validation", 2)):
        rows = [pack({"label": i}, {"image": png(i)}) for i in range(count)]
        write(tmp_path / "named" / f"{split}-00000.array_record", rows)
    sizes = {s: len(RecordSource(tmp_path / "named", split=s)) for s in SPLITS}
    assert sizes == {"train": 5, "validation": 2, "test": 2}
    rows = [pack({"label": i}, {"image": png(i)}) for i in range(60)]
    write(tmp_path / "one" / "all.array_record", rows[:30])
    write(tmp_path / "one" / "bll.array_record", rows[30:])
    parts = [RecordSource(tmp_path / "one", split=s) for s in SPLITS]
    labels = [[int(part[i]["label"]) for i in range(len(part))] for part in parts]
    assert sorted(sum(labels, [])) == list(range(60)) and all(labels)


def test_share_is_stable_and_never_empty():
    for count in (3, 25, 1000):
        assert set(assign_splits(count).tolist()) == set(SPLITS)
    assert abs((assign_splits(4000) == "train").mean() - 0.9) < 3 * np.sqrt(0.09 / 4000)
    np.testing.assert_array_equal(assign_splits(4000)[:1000], assign_splits(1000))


def test_a_damaged_record_is_left_out_and_a_source_pickles(tmp_path):
    whole = pack({"label": 1}, {"image": png(5)})
    write(tmp_path / "train-0.array_record", [whole, whole[:30], b"", whole])
    write(tmp_path / "test-0.array_record", [whole])
    source = pickle.loads(pickle.dumps(RecordSource(tmp_path)))
    assert len(source) == 4 and source[3]["label"] == 1
    for i in (1, 2):
        with pytest.raises(BadExample, match=f"record {i} of train, is damaged"):
            source[i]
    with pytest.raises(UserError, match=r"holds no \*.array_record"):
        RecordSource(write_nothing(tmp_path / "none"))


def write_nothing(folder):
    folder.mkdir()
    return folder


# webdataset


def make_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def shards(folder):
    first = [
        ("a/001.png", png(1)),
        ("a/001.txt", b"one\n"),
        ("a/001.cls", b"4"),
        ("a/002.txt", b"no image"),
        ("a/003.png", png(3)),
        ("a/003.json", json.dumps({"text": "three", "label": 2}).encode()),
    ]
    objects = {"bbox": [[5, 4, 10, 8]], "categories": ["cup"]}
    second = [
        ("x.y.png", b"a suffix of two parts is no image"),
        ("004.jpg", png(4)),
        ("004.seg.png", png(7, "L")),
        ("004.json", json.dumps({"objects": objects}).encode()),
    ]
    return [
        make_tar(folder / "0.tar", first),
        make_tar(folder / "1.tar", second),
    ]


def test_tars_become_records_and_the_rest_is_counted(tmp_path, capsys):
    tars = shards(tmp_path / "tars")
    out = tmp_path / "out"
    assert convert_webdataset.main([*map(str, tars), "--out", str(out)]) == 0
    total = json.loads(capsys.readouterr().out)
    assert total == {"records": 3, "left_out": 2, "tars": 2, "kept": 0}
    fields, files = [], []
    for name in ("train-00000", "train-00001"):
        for record in read_records(out / f"{name}.array_record"):
            fields.append(unpack(record)[0])
            files.append(unpack(record)[1])
    assert fields[0] == {"label": 4, "caption": "one\n"}
    assert fields[1] == {"label": 2, "text": "three"}
    assert files[0] == {"image": png(1)}
    assert files[2] == {"image": png(4), "segmentation": png(7, "L")}
    names = json.loads((out / "train-00001.json").read_text())["categories"]
    assert RecordSource(out).categories == names
    assert names == ["cup"]


def test_a_killed_conversion_goes_on_and_writes_the_same(tmp_path, capsys):
    tars = shards(tmp_path / "tars")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    convert_webdataset.main([*map(str, tars), "--out", str(whole)])
    convert_webdataset.main([str(tars[0]), "--out", str(broken)])
    # what a kill in the second tar leaves: records without their note
    (broken / "train-00001.array_record").write_bytes(b"half")
    (broken / ".train-00001.partial.array_record").write_bytes(b"half")
    capsys.readouterr()
    assert convert_webdataset.main([*map(str, tars), "--out", str(broken)]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 1
    for file in whole.iterdir():
        assert (broken / file.name).read_bytes() == file.read_bytes()
    assert len(list(broken.iterdir())) == len(list(whole.iterdir()))


def test_a_short_tar_and_other_tars_than_before_are_errors(tmp_path, capsys):
    tars = shards(tmp_path / "tars")
    out = ["--out", str(tmp_path / "out")]
    short = tmp_path / "short.tar"
    short.write_bytes(tars[0].read_bytes()[:1300])
    assert convert_webdataset.main([str(short), *out]) == 2
    assert "short.tar is not a whole tar" in capsys.readouterr().err
    assert convert_webdataset.main([str(tars[0]), *out]) == 0
    assert convert_webdataset.main([str(tars[1]), *out]) == 2
    assert "was made of 0.tar, not of 1.tar" in capsys.readouterr().err


def config(source, path, **changes):
    data = dict(source=source, path=str(path), size_px=8, background="white", flip=0.0)
    return config_of(data={**data, **changes})


def test_a_config_names_the_source(tmp_path):
    rows = [pack({"label": i}, {"image": png(i)}) for i in range(4)]
    write(tmp_path / "train-0.array_record", rows)
    settings = config("array_record", tmp_path)
    source = datasets.source(settings, "train")
    row = datasets.transform(settings)(source[1], np.random.default_rng(0))
    assert row["image"].shape == (8, 8, 3)
    settings.data.about = "ImageNet (image-net.org): one sub-folder a class."
    settings.data.path = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="does not exist.* ImageNet .image-net.org"):
        datasets.source(settings, "train")


# TFDS


TINY = """
import io
import sys
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        boxes = {
            "bbox": tfds.features.BBoxFeature(),
            "label": tfds.features.ClassLabel(names=["leaf", "stem", "wing"]),
        }
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["ant", "bee"]),
            "objects": tfds.features.Sequence(boxes),
            "captions": tfds.features.Sequence({"text": tfds.features.Text()}),
            "segmentation_map": tfds.features.Image(shape=(None, None, 1)),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, manager):
        return {"train": self._generate_examples(20)}

    def _generate_examples(self, count):
        def file(value, mode):
            data = io.BytesIO()
            Image.new(mode, (20, 16), value).save(data, "PNG")
            data.seek(0)
            return data

        for i in range(count):
            box = tfds.features.BBox(ymin=0.25, xmin=0.5, ymax=0.75, xmax=1.0)
            yield i, {
                "image": file((i, i, i), "RGB"),
                "label": i % 2,
                "objects": [{"bbox": box, "label": 2}],
                "captions": [{"text": f"number {i}"}, {"text": "other"}],
                "segmentation_map": file(i + 10, "L"),
            }

Tiny(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
assert "tensorflow" not in sys.modules
"""


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """A data set prepared by TFDS itself, in a process of its own."""
    folder = tmp_path_factory.mktemp("tfds")
    script = folder / "package" / "tiny.py"
    script.parent.mkdir()
    script.write_text(TINY)
    environment = {**os.environ, "TFDS_DISABLE_PROGRESS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def test_tfds_by_name_without_tensorflow(tfds_folder):
    settings = config("tfds", "tiny", data_dir=str(tfds_folder))
    source = datasets.source(settings, "train")
    sizes = [len(datasets.source(settings, split)) for split in SPLITS]
    assert sizes == [18, 1, 1]
    kinds = ["caption", "label", "layout", "segmentation"]
    assert datasets.conditions(source) == kinds and source.classes == ["ant", "bee"]
    assert source.categories == ["leaf", "stem", "wing"]
    source = pickle.loads(pickle.dumps(source))
    for i in range(len(source)):
        example = source[i]
        value = int(example["image"][0, 0, 0])
        assert example["image"].shape == (16, 20, 3)
        assert (example["image"] == value).all()
        assert example["caption"] == f"number {value}"
        assert example["captions"] == (f"number {value}", "other")
        assert example["label"] == value % 2
        assert (example["segmentation"] == value + 10).all()
        ((label, box),) = example["layout"]
        assert label == 2
        np.testing.assert_allclose(box, (0.5, 0.25, 0.5, 0.5), rtol=1e-6)
    assert "tensorflow" not in sys.modules


def test_tfds_that_is_not_there_says_how_to_prepare_it(tfds_folder):
    with pytest.raises(UserError, match="tfds build no_such --file_format=array_rec"):
        TfdsSource("no_such", data_dir=str(tfds_folder))
    with pytest.raises(UserError, match="config.data.path is empty"):
        TfdsSource("")
