"""Squares from images: PIL's own operations, torch's interpolation, coordinates.

In an image whose channels are its coordinates every pixel says where it comes from.
"""

import numpy as np
import pytest
from PIL import Image

from lDM_jax.core import image
from lDM_jax.core.errors import UserError
from lDM_jax.data.crop import Crop, cut_layout
from lDM_jax.data.transforms import Compose
from lDM_jax.from_config import datasets
from tests.toys import config_of


def rng(seed=0):
    return np.random.default_rng(seed)


def noise(height, width, channels=3):
    return rng().integers(0, 256, (height, width, channels)).astype(np.uint8)


def smooth(height, width):
    """Three ramps: any interpolation is right about them, away from the border."""
    y, x = np.mgrid[:height, :width]
    ramps = [x * 255 / (width - 1), y * 255 / (height - 1), 255 - x * 255 / (width - 1)]
    return np.rint(np.stack(ramps, axis=-1)).astype(np.uint8)


@pytest.mark.live
@pytest.mark.parametrize("shape", [(100, 140), (61, 40), (30, 30), (20, 33)])
def test_linear_is_torchs_interpolation_without_antialiasing(shape):
    torch = pytest.importorskip("torch", reason="needs requirements-dev.txt")
    pixels, size = noise(*shape), 32
    crop = Crop(size, "center", resize_px=size, method="linear")
    scale = size / min(shape)
    extent = tuple(max(size, round(side * scale)) for side in shape)
    x = torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32))
    whole = torch.nn.functional.interpolate(
        x, size=extent, mode="bilinear", align_corners=False
    )[0]
    top, left = (extent[0] - size) // 2, (extent[1] - size) // 2
    expected = whole.numpy()[:, top : top + size, left : left + size]
    result = crop({"image": pixels}, rng())["image"]
    # rounded to whole levels: half of one, and f32 weights
    assert np.abs(result - expected.transpose(1, 2, 0)).max() <= 0.51


@pytest.mark.parametrize("method", ["bicubic", "bilinear", "lanczos"])
def test_a_resized_crop_is_the_crop_of_the_resized_picture(method):
    pixels, extent = smooth(90, 120), (60, 80)
    result = image.resized_crop(pixels, extent, (10, 25), 32, method=method)
    picture = Image.fromarray(pixels)
    whole = picture.resize(extent[::-1], image.RESAMPLING[method])
    expected = np.asarray(whole)[10:42, 25:57]
    # weights of the shifted grid are rounded on their own: one level
    assert np.abs(result.astype(int) - expected).max() <= 1


def test_a_random_place_shows_whole_pixels_of_a_picture_of_the_right_side():
    """Shorter side 20 = size: no scaling, so the crop is a window, at any place."""
    y, x = np.mgrid[:20, :50]
    pixels = np.stack([x, y, x + y], axis=-1).astype(np.uint8)
    lefts = []
    for seed in range(200):
        result = Crop(20, "random")({"image": pixels}, rng(seed))["image"]
        left = int(result[0, 0, 0])
        np.testing.assert_array_equal(result, pixels[:, left : left + 20])
        lefts.append(left)
    assert set(lefts) == set(range(31))


def test_shorter_side_first_then_the_place():
    """384 -> 256 as for OpenImages: the crop shows two thirds of the shorter side."""
    pixels = smooth(192, 256)
    example = {"image": pixels, "layout": []}
    out = Crop(64, "random", resize_px=96)(example, rng(3))
    left, top, width, height = out["crop"]
    np.testing.assert_allclose((width, height), (64 / 128, 64 / 96))
    assert 0 <= left <= 1 - width and 0 <= top <= 1 - height
    # the ramp says where its corners come from, to the two levels of roundings
    corner = np.array([left, top]) + 0.5 * np.array([width, height]) / 64
    np.testing.assert_allclose(out["image"][0, 0, :2], 255 * corner, atol=2.5)


@pytest.mark.parametrize(
    "kind, resize_px", [("center", 0), ("center", 40), ("random", 50)]
)
def test_maps_masks_and_boxes_stay_with_their_pixels(kind, resize_px):
    """A white box in the image is where its label, its mask and its layout say."""
    picture = np.zeros((60, 100, 3), np.uint8)
    picture[12:36, 40:70] = 255
    labels = (picture[:, :, 0] > 0).astype(np.int32)
    example = {
        "image": picture,
        "segmentation": labels,
        "mask": labels[:, :, None].astype(np.float32),
        "layout": [(5, (0.4, 0.2, 0.3, 0.4))],
    }
    out = Crop(40, kind, resize_px=resize_px)(example, rng(1))
    assert out["segmentation"].shape == (40, 40) and out["mask"].shape == (40, 40, 1)
    inside = out["image"][:, :, 0] > 127
    # the nearest pixel and bicubic's half level agree but on the outline
    assert (inside != (out["segmentation"] == 1)).sum() <= inside.sum() ** 0.5 * 4
    np.testing.assert_array_equal(out["mask"][:, :, 0], out["segmentation"])
    ((label, (left, top, width, height)),) = out["layout"]
    assert label == 5
    rows, columns = np.nonzero(inside)
    edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    expected = [left * 40, top * 40, (left + width) * 40, (top + height) * 40]
    np.testing.assert_allclose(edges, expected, atol=1.0)  # a pixel of the outline


def test_a_map_of_another_extent_is_read_by_its_fractions():
    labels = np.arange(16, dtype=np.int32).reshape(4, 4)
    out = Crop(8)({"image": noise(16, 16), "segmentation": labels}, rng())
    np.testing.assert_array_equal(
        out["segmentation"], labels.repeat(2, axis=0).repeat(2, axis=1)
    )


def test_boxes_beyond_the_region_are_dropped_and_others_clipped():
    region = (0.5, 0.0, 0.5, 1.0)
    layout = [
        (1, (0.0, 0.0, 0.5, 1.0)),
        (2, (0.25, 0.0, 0.5, 0.5)),
        (3, (0.5, 0, 0.5, 1)),
    ]
    result = cut_layout(layout, region)
    assert result == [(2, (0.0, 0.0, 0.5, 0.5)), (3, (0.0, 0.0, 1.0, 1.0))]


def test_linear_weights_colours_by_their_alpha():
    """Invisible black beside visible white is white at every place."""
    pixels = np.zeros((40, 40, 4), np.uint8)
    pixels[:, 13:] = 255
    x = image.resized_crop(pixels, (23, 23), (0, 0), 23, method="linear")
    assert (x[:, :, :3][x[:, :, 3] > 0] == 255).all() and x[0, 0, 3] == 0
    assert 0 < x[5, :, 3].min(where=x[5, :, 3] > 0, initial=255) < 255


def test_what_fits_is_untouched_and_settings_are_checked():
    example = {"image": noise(16, 16), "layout": [(1, (0, 0, 1, 1))]}
    assert Crop(16)(example, rng()) is example
    assert Crop(16, "random")(example, rng()) is example
    with pytest.raises(UserError, match="crop is 'left'; valid are 'center', 'rand"):
        Crop(16, "left")
    with pytest.raises(UserError, match="filter is 'blur'; valid are 'linear"):
        Crop(16, method="blur")
    with pytest.raises(UserError, match="give at least size_px = 16"):
        Crop(16, resize_px=8)
    with pytest.raises(UserError, match="size_px is 0"):
        Crop(0)


def settings(**data):
    base = dict(size_px=16, background="white", flip=0.5, source="emoji")
    return config_of(data={**base, **data})


def test_held_out_pictures_are_cut_at_their_centre_and_not_mirrored():
    config = settings(crop="random", resize_px=24)
    example = {"image": noise(40, 60)}

    def drawn(split):
        row = datasets.transform(config, split)
        return {row(example, rng(seed))["image"].tobytes() for seed in range(8)}

    assert len(drawn("train")) > 4
    assert len(drawn("validation")) == 1


def test_the_same_generator_gives_the_same_picture():
    row = datasets.transform(settings(crop="random", resize_px=24))
    assert isinstance(row, Compose)
    example = {"image": noise(40, 60)}
    first, second = (row(example, rng(5))["image"] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_a_share_of_the_picture_is_what_super_resolution_trains_on():
    row = datasets.transform(settings(crop="share", flip=0.0))
    x = row({"image": smooth(64, 64)}, rng(2))["image"]
    # of a ramp over 64 px a crop of 32 to 64 px shows half to all
    assert x.shape == (16, 16, 3)
    assert 0.8 <= x[8, -1, 0] - x[8, 0, 0] <= 2.0
