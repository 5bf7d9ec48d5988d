"""Many pictures into one file: the right ones, whatever the batch, devices or kills."""

import numpy as np
import pytest

from lDM_jax.core.errors import UserError
from lDM_jax.sampling import bulk
from lDM_jax.sampling.request import Request
from tests.toys import difference, drawn, with_config

COUNT = 11


@pytest.fixture(scope="module")
def pipe():
    """A class-conditional toy of three classes."""
    return with_config(drawn("emoji_class"), num_classes=3)


def request(pipe) -> Request:
    return Request(seeds=(100,), steps=2)


def run(pipe, path) -> list[int]:
    return list(bulk.generate(pipe, request(pipe), COUNT, path, batch_size=8))


def test_pictures_are_those_of_their_seeds_and_balanced(pipe, tmp_path, monkeypatch):
    """On eight devices in padded batches, beside one picture at a time on one."""
    monkeypatch.setattr(bulk, "PART", 8)
    one_by_one = [
        pipe.sample(label=i % 3, seeds=[100 + i], steps=2)[0] for i in range(COUNT)
    ]
    done = run(pipe, tmp_path / "many.npz")
    assert done == [8, 3]
    with np.load(tmp_path / "many.npz") as file:
        pictures, labels = file["arr_0"], file["arr_1"]
    assert pictures.dtype == np.uint8 and pictures.shape == (COUNT, 32, 32, 3)
    np.testing.assert_array_equal(labels, np.arange(COUNT) % 3)
    assert difference(pictures, np.stack(one_by_one)) <= 1
    assert difference(pictures[0], pictures[3]) > 1  # one class, two seeds
    assert [path.name for path in tmp_path.iterdir()] == ["many.npz"]
    with pytest.raises(UserError, match="exists already"):
        run(pipe, tmp_path / "many.npz")


def test_a_killed_run_continues_and_only_draws_what_is_missing(
    pipe, tmp_path, monkeypatch
):
    monkeypatch.setattr(bulk, "PART", 4)
    path, drawings = tmp_path / "many.npz", []
    real = bulk.draw

    def counted(pipe, rows, *args):
        drawings.append(rows[0].seeds[0])
        if len(drawings) == 2:
            raise KeyboardInterrupt
        return real(pipe, rows, *args)

    monkeypatch.setattr(bulk, "draw", counted)
    with pytest.raises(KeyboardInterrupt):
        run(pipe, path)
    assert drawings == [100, 104] and not path.exists()
    run(pipe, path)
    assert drawings == [100, 104, 104, 108]
    with np.load(path) as file:
        assert len(file["arr_0"]) == COUNT


def test_parts_of_another_request_are_refused(pipe, tmp_path):
    folder = tmp_path / "many.npz.parts"
    bulk.prepare(folder, {"count": 3})
    with pytest.raises(UserError, match="another request"):
        run(pipe, tmp_path / "many.npz")
    with pytest.raises(UserError, match="does not split over 8 devices"):
        list(bulk.generate(pipe, request(pipe), 3, tmp_path / "b.npz", batch_size=6))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"label": 1, "image": np.zeros((32, 32, 3), np.uint8)}, "from noise"),
        ({"label": 1, "target": np.zeros((8, 8, 3), np.uint8)}, "targets"),
        ({"label": 1, "seeds": (1, 2)}, "first seed only"),
        ({"label": 7}, "valid: 0 .. 2"),
    ],
)
def test_requests_that_no_batch_can_hold_are_refused(pipe, tmp_path, fields, text):
    with pytest.raises(UserError, match=text):
        list(bulk.generate(pipe, Request(**fields), 3, tmp_path / "c", batch_size=8))
    assert not list(tmp_path.iterdir())
