"""Pixels and random streams: round trips, files, and independence of the batch."""

import jax
import numpy as np
import pytest
from PIL import Image

from lDM_jax.core import image, rng


def test_uint8_round_trip_is_exact_for_every_value():
    values = np.arange(256, dtype=np.uint8)
    x = image.to_float(values)
    assert x.min() == -1.0 and x.max() == 1.0
    np.testing.assert_array_equal(image.to_uint8(x), values)


def test_to_uint8_clips_and_rounds_to_nearest():
    x = np.array([-5.0, -1.0, 0.0, 1.0, 7.0], np.float32)
    np.testing.assert_array_equal(image.to_uint8(x), [0, 0, 128, 255, 255])


def test_nearest_takes_the_pixel_under_each_middle_as_pil_does():
    """Sides that are odd: no middle falls on the border of two pixels."""
    draw = np.random.default_rng(0)
    for _ in range(50):
        old, new = (tuple(2 * draw.integers(1, 60, 2) + 1) for _ in range(2))
        labels = draw.integers(0, 200, old, np.uint8)
        other = Image.fromarray(labels).resize(new[::-1], Image.Resampling.NEAREST)
        found = image.nearest(labels.astype(np.int32), new)
        np.testing.assert_array_equal(found, np.asarray(other))


def test_png_carries_its_request_and_other_programs_read_its_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    request = {"prompt": "rød «heart»", "seeds": [3], "guidance": 2.5}
    image.write_png(tmp_path / "a.png", pixels, request=request)
    assert image.read_request(tmp_path / "a.png") == request
    with Image.open(tmp_path / "a.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), pixels)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_failed_write_leaves_nothing(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OSError):
        image.write_png(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_grid_places_pictures_row_by_row():
    tiles = np.arange(5, dtype=np.uint8)[:, None, None, None]
    sheet = image.grid(np.broadcast_to(tiles, (5, 4, 4, 3)), columns=3)
    assert sheet.shape == (10, 16, 3)
    assert sheet[0, 0, 0] == 0 and sheet[0, 6, 0] == 1 and sheet[6, 6, 0] == 4
    assert sheet[4, 0, 0] == 255 and sheet[9, 15, 0] == 255


def test_noise_of_a_seed_is_bit_equal_in_every_batch_and_place():
    alone = rng.normal_per_seed(rng.seed_keys([7]), (4, 4, 3))[0]
    batch = rng.normal_per_seed(rng.seed_keys([1, 2, 7, 9, 7]), (4, 4, 3))
    np.testing.assert_array_equal(alone, batch[2])
    np.testing.assert_array_equal(alone, batch[4])
    assert not np.array_equal(alone, batch[0])


def test_noise_differs_between_steps_and_streams():
    keys = rng.seed_keys([7])
    first = rng.normal_per_seed(keys, (8,), step=0)
    second = rng.normal_per_seed(keys, (8,), step=1)
    assert not np.array_equal(first, second)
    root = jax.random.key(0)
    data = {
        tuple(jax.random.key_data(rng.key(root, name, step)).tolist())
        for name in ("noise", "time", "drop")
        for step in range(3)
    }
    assert len(data) == 9
