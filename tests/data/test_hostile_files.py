"""Thirty files that somebody's folder holds: what is used, what is left out, how often.

The files are written here; which of them hold an image is what their formats say.
"""

import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from configs import common
from lDM_jax.core.errors import UserError
from lDM_jax.data.bad_examples import Ledger
from lDM_jax.data.crop import Crop
from lDM_jax.data.degrade import Degrade
from lDM_jax.data.folder import FolderSource
from lDM_jax.data.pipeline import batches_once, loader
from lDM_jax.data.transforms import Composite, Keep, compose
from lDM_jax.training import experiment
from tests.toys import EMPTY, png_header

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")

ROW = compose(Crop(16), Composite(), Keep(("image",)))
MIN_PX = 16


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def encoded(picture, kind, **options):
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return data.getvalue()


def pictures() -> dict[str, bytes]:
    """Eighteen files that hold an image, in unusual ways."""
    rgb = Image.fromarray(noise(40, 50, 3))
    frames = [Image.new("RGB", (32, 32), c) for c in ("red", "lime", "blue")]
    animated = dict(save_all=True, append_images=frames[1:])
    palette = rgb.convert("P")
    files = {
        "animated.gif": encoded(frames[0], "GIF", **animated),
        "animated.webp": encoded(frames[0], "WEBP", **animated),
        "bits.png": encoded(rgb.convert("1"), "PNG"),
        "bmp.bmp": encoded(rgb, "BMP"),
        "cmyk.jpg": encoded(rgb.convert("CMYK"), "JPEG"),
        "grey.png": encoded(Image.fromarray(noise(MIN_PX, 50)), "PNG"),
        "grey_alpha.png": encoded(rgb.convert("LA"), "PNG"),
        "palette.png": encoded(palette, "PNG"),
        "palette_clear.png": encoded(palette, "PNG", transparency=3),
        "plain.PNG": encoded(rgb, "PNG"),
        "progressive.jpg": encoded(rgb, "JPEG", progressive=True),
        "really_a_png.jpg": encoded(rgb, "PNG"),
        "rgba.png": encoded(Image.fromarray(noise(40, 50, 4)), "PNG"),
        "sixteen.png": encoded(Image.fromarray(noise(40, 80).view(np.uint16)), "PNG"),
        "wide.png": encoded(Image.fromarray(noise(20, 900, 3)), "PNG"),
    }
    for orientation in (3, 6, 8):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(rgb, "JPEG", exif=exif.tobytes())
        files[f"rotated_{orientation}.jpg"] = data
    return files


def wrecks() -> dict[str, bytes]:
    """Eleven files that hold none, or none that is of use; a twelfth is a dead link."""
    rgb = Image.fromarray(noise(64, 64, 3))
    jpg, png = encoded(rgb, "JPEG"), encoded(rgb, "PNG")
    gif = encoded(rgb, "GIF")
    return {
        "bomb.png": png_header(60_000, 60_000, EMPTY),
        "broken_chunk.png": png[:60] + b"\0" * 40 + png[100:],
        "drawing.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "empty.png": b"",
        "header_only.jpg": jpg[:20],
        "nulls.jpg": b"\0" * 1000,
        "one_pixel.png": encoded(Image.new("RGB", (1, 1)), "PNG"),
        "other.bmp": encoded(rgb, "PPM"),
        "page.jpg": b"<html>404</html>",
        "short.jpg": jpg[: len(jpg) // 2],
        "short.gif": gif[:100],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile")
    (path / "train").mkdir()
    for name, data in (pictures() | wrecks()).items():
        (path / "train" / name).write_bytes(data)
    os.symlink(path / "nowhere.jpg", path / "train" / "gone.jpg")
    (path / "test").mkdir()  # so that no file of the thirty is held out
    Image.new("RGB", (20, 20)).save(path / "test" / "a.png")
    return path


GOOD, BAD = 18, 12


def source_of(folder):
    """The thirty files, all of the training split."""
    return FolderSource(folder, min_px=MIN_PX)


def reasons(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_there_are_thirty_files_and_as_many_bad_ones_as_expected(folder):
    source = source_of(folder)
    assert len(source) == GOOD + BAD == 30
    ledger = Ledger(30)
    batches = list(batches_once(source, ROW, batch_size=7, ledger=ledger))
    assert sum(batch["weight"].sum() for batch in batches) == GOOD
    bad = {source.files[i].split("/")[1] for i in ledger.reasons}
    assert bad == set(wrecks()) | {"gone.jpg"}
    for batch in batches:
        assert batch["image"].shape == (7, 16, 16, 3)
        assert np.isfinite(batch["image"]).all()


def test_every_reason_names_its_file_in_one_line(folder, tmp_path):
    source, path = source_of(folder), tmp_path / "run" / "bad_examples.jsonl"
    list(batches_once(source, ROW, batch_size=4, ledger=Ledger(30, path=path)))
    result = reasons(path)
    assert len(result) == BAD
    for item in result:
        assert source.files[item["index"]] in item["reason"]
        assert "\n" not in item["reason"] and "0x" not in item["reason"]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_training_takes_the_next_good_one_and_lists_the_bad(
    folder, tmp_path, num_workers
):
    source, path = source_of(folder), tmp_path / "bad_examples.jsonl"
    good = {i for i, f in enumerate(source.files) if f[6:] in pictures()}
    tags = Tagged(source)

    def batches(ledger, start=0, count=10, num_workers=num_workers):
        rows = loader(
            tags, tag, batch_size=6, seed=3, num_workers=num_workers, ledger=ledger
        )
        rows.set_state({"next_batch": start})
        result = [next(rows)["tag"].tolist() for _ in range(count)]
        rows.close()
        return result

    ledger = Ledger(30, path=path)
    whole = batches(ledger)
    expected = loader(Indices(30), tag, batch_size=6, seed=3)
    for batch in whole:
        for tried, given in zip(next(expected)["tag"], batch, strict=True):
            following = [(int(tried) + k) % 30 for k in range(30)]
            assert given == next(i for i in following if i in good)
    # two epochs of 30: every bad one was met
    assert len(ledger.reasons) == len(reasons(path)) == BAD
    # a resumed run sees the same and does not list them again
    again = Ledger(30, path=path)
    assert batches(again, start=4, count=6, num_workers=0) == whole[4:]
    assert len(reasons(path)) == BAD


class Tagged:
    """The examples of a source with their index."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, i):
        return {**self.source[i], "tag": np.int64(i)}


class Indices:
    """Examples that are their index."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return {"tag": np.int64(i)}


def tag(example, rng):
    return {"tag": example["tag"]}


def test_too_many_stop_the_run_with_the_list(folder, tmp_path):
    source, path = source_of(folder), tmp_path / "bad_examples.jsonl"
    enough = Ledger(30, path=path, max_share=BAD / 30)
    list(batches_once(source, ROW, batch_size=4, ledger=enough))
    strict = Ledger(30, path=path, max_share=(BAD - 1) / 30)
    with pytest.raises(UserError, match="12 of 30 .*max_bad_share = 0.36") as error:
        list(batches_once(source, ROW, batch_size=4, ledger=strict))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_nothing_but_wrecks_is_an_error_that_names_one(folder, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.png").write_bytes(b"")
    source = FolderSource(tmp_path)
    with pytest.raises(UserError, match="none of 2 examples can be used: .*a.png"):
        list(batches_once(source, ROW, batch_size=1))
    rows = loader(source, ROW, batch_size=1, seed=0)
    with pytest.raises(UserError, match="2 examples one after the other"):
        next(rows)
    rows.close()


def test_a_user_s_error_is_one_also_in_a_worker_process(folder):
    source = FolderSource(folder, split="test")
    row = compose(Composite(), Degrade(factor=3))  # of 20 px
    rows = loader(source, row, batch_size=1, seed=0, num_workers=1)
    with pytest.raises(UserError, match="20 x 20 pixels has no low resolution"):
        next(rows)
    rows.close()
    with pytest.raises(UserError, match="20 x 20 pixels has no low resolution"):
        next(batches_once(source, row, batch_size=1))


def test_the_share_is_judged_by_what_was_seen(tmp_path):
    """Of a million, 60 bad ones among the first 1000 are 6 %."""
    ledger = Ledger(10**6, max_share=0.05)
    ledger.add([(i, "bad") for i in range(50)], examined=500)
    ledger.add([(i, "bad") for i in range(50)], examined=500)  # the same ones
    with pytest.raises(UserError, match="51 of 1000 examples"):
        ledger.add([(60, "bad")], examined=0)
    ledger = Ledger(10**6, max_share=0.05)
    ledger.add([(i, "bad") for i in range(51)], examined=2000)


def test_a_half_written_line_of_a_killed_run_does_not_hurt(tmp_path):
    path = tmp_path / "bad_examples.jsonl"
    path.write_text('{"index": 1, "reason": "x"}\n{"index": 2, "rea')
    ledger = Ledger(9, path=path)
    ledger.add([(1, "x"), (2, "y")], examined=2)
    lines = path.read_text().splitlines()
    assert json.loads(lines[-1]) == {"index": 2, "reason": "y"}


@pytest.mark.parametrize("cached", [False, True])
def test_a_run_lists_them_in_its_work_directory(folder, tmp_path, cached):
    config = common.emoji("unconditional")
    config = common.finish(config, "smoke").unlock()
    config.first_stage.path = "identity"
    config.data.update(dict(source="folder", path=str(folder), cache_latents=cached))
    config.data.update(dict(max_bad_share=0.5, limit=0))
    made = experiment.make(config, workdir=tmp_path / "run")
    for _ in range(16 if not cached else 1):  # two epochs of 30 in batches of 4
        next(made.iterator)
    made.iterator.close()
    assert len(reasons(tmp_path / "run" / "bad_examples.jsonl")) == BAD
    config.data.max_bad_share = 0.1
    with pytest.raises(UserError, match="more than config.data.max_bad_share = 0.1"):
        made = experiment.make(config, workdir=tmp_path / "strict")
        for _ in range(16):
            next(made.iterator)
