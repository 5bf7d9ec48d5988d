"""Crops and low resolutions: PIL beside ours, and statistics of what is drawn.

The filters within are in test_degrade_filters.
"""

import io
import pickle

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from lDM_jax.core import image
from lDM_jax.core.errors import UserError
from lDM_jax.data import degrade
from lDM_jax.data.degrade import BSR, KINDS, Degrade, RandomCrop


def rng(seed=0):
    return np.random.default_rng(seed)


def smooth(height, width, seed=0):
    """A random image f32 [-1, 1] whose neighbors resemble each other."""
    x = ndimage.gaussian_filter(rng(seed).normal(size=(height, width, 3)), (3, 3, 0))
    return np.clip(3 * x, -1, 1).astype(np.float32)


# The plain kinds


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize(
    "kind", ["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
)
def test_plain_kinds_are_pil_s(kind, factor):
    x = smooth(40, 64)
    low = Degrade(kind, factor)({"image": x}, None)["low_res"]
    picture = Image.fromarray(np.rint((x + 1) * 127.5).astype(np.uint8))
    extents = 64 // factor, 40 // factor
    expected = picture.resize(extents, getattr(Image.Resampling, kind.upper()))
    assert low.dtype == np.float32
    np.testing.assert_array_equal(low, np.asarray(expected, np.float32) / 127.5 - 1)


def test_box_is_the_mean_of_a_block():
    x = smooth(32, 32)
    low = Degrade("box")({"image": x}, None)["low_res"]
    blocks = x.reshape(8, 4, 8, 4, 3).mean(axis=(1, 3))
    # uint8 before, between rows and columns, and after: half a level of 2 / 255 each.
    np.testing.assert_allclose(low, blocks, atol=1.51 * 2 / 255)


@pytest.mark.parametrize("kind", KINDS)
def test_degrade_adds_a_key_and_keeps_the_rest(kind):
    x = smooth(32, 48)
    before = x.copy()
    transform = pickle.loads(pickle.dumps(Degrade(kind)))
    example = transform({"image": x, "label": 3}, rng(1))
    assert list(example) == ["image", "label", "low_res"] and example["image"] is x
    np.testing.assert_array_equal(x, before)
    low = example["low_res"]
    assert low.shape == (8, 12, 3) and low.dtype == np.float32
    assert np.abs(low).max() <= 1.0
    np.testing.assert_array_equal(low, image.to_float(image.to_uint8(low)))
    again = Degrade(kind)({"image": x}, rng(1))["low_res"]
    np.testing.assert_array_equal(low, again)


def test_errors_name_what_is_valid():
    with pytest.raises(UserError, match="is 'blur'; valid are 'nearest', 'bil"):
        Degrade("blur")
    with pytest.raises(UserError, match="factor is 0"):
        Degrade(factor=0)
    with pytest.raises(UserError, match="30 x 32 .* give a multiple of 4"):
        Degrade()({"image": smooth(30, 32)}, None)
    for shares in ((0.0, 1.0), (0.6, 0.5), (0.5, 1.1)):
        with pytest.raises(UserError, match="shares in"):
            RandomCrop(8, *shares)
    with pytest.raises(UserError, match="size_px is 0"):
        RandomCrop(0)
    with pytest.raises(ValueError, match="crop before there is low_res, mask"):
        RandomCrop(8)({"image": 0, "mask": 0, "low_res": 0}, None)


# Noise and JPEG


class Chosen:
    """A generator whose single uniform number, which picks the kind, is given."""

    def __init__(self, kind, seed):
        self.kind, self.generator = kind, rng(seed)

    def random(self, size=None):
        return self.kind if size is None else self.generator.random(size)

    def __getattr__(self, name):
        return getattr(self.generator, name)


def noise_of(level, kind, seed):
    grey = np.full((64, 64, 3), 0.5, np.float32)
    noisy = degrade.add_noise(grey, level, Chosen(kind, seed))
    assert noisy.dtype == np.float32
    return ((noisy.astype(float) - 0.5) * 255).reshape(-1, 3)


# n = 4096 normal numbers have a mean known to s / 64, a deviation to s / sqrt(2 n) and
# a correlation to 1 / 64; tests allow five of these errors.


@pytest.mark.parametrize("level", [(2, 25), (1, 2)])
@pytest.mark.parametrize("kind", [0.0, 0.39, 0.61, 0.99])
def test_two_fifths_are_grey_and_two_fifths_coloured_noise(kind, level):
    levels = set()
    for seed in range(150):
        noise = noise_of(level, kind, seed)
        if kind < 0.5:
            assert np.ptp(noise, axis=1).max() < 1e-3
        else:
            off = np.corrcoef(noise.T)[np.triu_indices(3, 1)]
            assert np.abs(off).max() < 5 / 64
        deviations = noise.std(axis=0)
        whole = np.rint(deviations.mean())
        levels.add(int(whole))
        np.testing.assert_allclose(deviations, whole, rtol=5 / 90)
        assert np.abs(noise.mean(axis=0)).max() < 5 * whole / 64
    assert levels == set(range(level[0], level[1] + 1))


@pytest.mark.parametrize("kind", [0.41, 0.59])
def test_one_fifth_is_correlated_noise(kind):
    """U^T D U: eigenvalues uniform in [0, 1], so a trace of 3/2 and a diagonal < 1."""
    traces, signs = [], []
    for seed in range(150):
        covariance = np.cov(noise_of((2, 20), kind, seed).T) / 20**2
        diagonal = np.diag(covariance)
        assert diagonal.max() < 1 + 5 / 45
        off = covariance[np.triu_indices(3, 1)]
        error = np.sqrt(np.outer(diagonal, diagonal))[np.triu_indices(3, 1)] / 64
        assert (off > -5 * error).all()  # absolute values
        signs.append((off > 5 * error).mean())
        traces.append(diagonal.sum())
    assert np.mean(signs) > 0.5
    assert abs(np.mean(traces) - 1.5) < 5 * np.sqrt(3 / 12 / 150)
    assert min(traces) > 0 and max(traces) < 3


def test_noise_is_clipped():
    noisy = degrade.add_noise(np.zeros((16, 16, 3), np.float32), (25, 25), rng())
    assert noisy.min() == 0.0 and noisy.max() > 0.0


@pytest.mark.parametrize("quality", [30, 80, 95])
def test_jpeg_is_pil_s_round_trip(quality):
    pixels = image.to_uint8(smooth(24, 40))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    expected = np.asarray(Image.open(file))
    got = image.jpeg(pixels, quality=quality)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, expected)


def test_jpeg_keeps_a_flat_colour_and_loses_less_at_higher_quality():
    flat = np.full((16, 16, 3), (200, 90, 30), np.uint8)
    assert np.abs(image.jpeg(flat, quality=95).astype(int) - flat).max() <= 2
    pixels = image.to_uint8(smooth(64, 64))
    errors = [
        np.square(image.jpeg(pixels, quality=q).astype(float) - pixels).mean()
        for q in (30, 60, 80, 95)
    ]
    assert errors == sorted(errors, reverse=True)


# The whole degradation


class Recorder:
    """Replaces the steps of `degrade_bsr` by ones that note their name."""

    def __init__(self, monkeypatch):
        self.steps, self.qualities = [], []
        for name in ("halve", "shrink", "convolve", "add_noise", "_random_resize"):
            monkeypatch.setattr(degrade, name, self.note(name))
        monkeypatch.setattr(image, "jpeg", self.jpeg)

    def note(self, name):
        def step(x, *rest):
            self.steps.append(name)
            return x

        return step

    def jpeg(self, pixels, *, quality):
        self.steps.append("jpeg")
        self.qualities.append(quality)
        return pixels


@pytest.mark.parametrize(
    "kind, blurs, qualities", [("bsr", 2, (30, 95)), ("bsr_light", 1, (80, 95))]
)
def test_steps_come_in_random_order_and_end_in_jpeg(
    kind, blurs, qualities, monkeypatch
):
    record = Recorder(monkeypatch)
    halved = early = 0
    places = {"convolve": set(), "shrink": set(), "add_noise": set()}
    generator, runs = rng(), 2000
    for _ in range(runs):
        record.steps.clear()
        degrade.degrade_bsr(np.zeros((8, 8, 3), np.uint8), 4, BSR[kind], generator)
        steps = record.steps
        if steps[0] == "halve":
            halved += 1
            steps = steps[1:]
        early += steps.count("jpeg") == 2
        assert steps[-1] == "jpeg" and 1 <= steps.count("jpeg") <= 2
        assert steps.count("convolve") == blurs
        assert steps.count("add_noise") == 1
        assert steps.count("shrink") == steps.count("_random_resize") == 1
        assert steps.index("shrink") < steps.index("_random_resize")
        for name, seen in places.items():
            seen.add(steps.index(name))
    assert abs(halved / runs - 0.25) < 5 * np.sqrt(0.25 * 0.75 / runs)
    assert abs(early / runs - 0.9) < 5 * np.sqrt(0.9 * 0.1 / runs)
    assert (min(record.qualities), max(record.qualities)) == qualities
    # Noise can be anywhere before the last JPEG, shrink not where fit must follow.
    assert places["add_noise"] == set(range(blurs + 4))
    assert places["shrink"] == set(range(blurs + 3))


def test_only_factor_four_is_halved_first(monkeypatch):
    record = Recorder(monkeypatch)
    for factor in (1, 2, 3, 8):
        for seed in range(40):
            pixels = np.zeros((24, 24, 3), np.uint8)
            degrade.degrade_bsr(pixels, factor, BSR["bsr"], rng(seed))
    assert "halve" not in record.steps


@pytest.mark.parametrize("kind, chance", [("bsr", 0.75), ("bsr_light", 0.8)])
def test_shrink_resizes_with_its_chance(kind, chance):
    """Only the blur branch always gives a quarter of the extent."""
    generator, x = rng(), np.zeros((40, 40, 3), np.float32)
    numbers = BSR[kind]
    sides = [
        degrade.shrink(x, 4, numbers.shrink_chance, generator).shape[0]
        for _ in range(1500)
    ]
    sides = np.array(sides)
    # Resizing by U[1, 8]: int(40 / u) is 10 for u in (40/11, 4].
    quarter = (1 - chance) + chance * (4 - 40 / 11) / 7
    error = np.sqrt(quarter * (1 - quarter) / 1500)
    assert abs((sides == 10).mean() - quarter) < 5 * error
    assert sides.min() == 5 and 35 <= sides.max() <= 40


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", BSR)
def test_bsr_keeps_a_ramp_in_its_place(kind, factor):
    """The mean of 48 results on a ramp, against the block means, away from the border.

    Every step keeps a ramp, but for noise (level 2 to 25, or 1 to 2), JPEG, and half a
    pixel by an even kernel. Mean noise: 25 / 255 / sqrt(48 draws x 3 x 20 rows) < 0.002
    even at the largest level; JPEG's error averages out likewise.
    """
    side = 40 * factor
    ramp = np.linspace(-0.6, 0.6, side, dtype=np.float32)
    x = np.tile(ramp[None, :, None], (side, 1, 3))
    transform, generator = Degrade(kind, factor), rng()
    low = np.mean([transform({"image": x}, generator)["low_res"] for _ in range(48)], 0)
    expected = ramp.reshape(40, factor).mean(axis=1)
    got = low[10:30].mean(axis=(0, 2))
    # Half a pixel of the ramp is 0.6 / side; 0.012 for noise, JPEG and rounding.
    np.testing.assert_allclose(got[10:30], expected[10:30], atol=0.012 + 0.6 / side)


def test_light_degrades_less():
    x = smooth(64, 64)
    clean = Degrade("box")({"image": x}, None)["low_res"]

    def error(kind):
        generator = rng()
        lows = [Degrade(kind)({"image": x}, generator)["low_res"] for _ in range(40)]
        return np.square(np.array(lows) - clean).mean()

    assert 0 < error("bsr_light") < 0.8 * error("bsr")


# Crops


def test_crops_are_squares_of_random_side_and_place():
    """The mean of a crop of x, x^2 and y tells where it came from.

    n whole numbers in a row have the variance (n^2 - 1) / 12.
    """
    y, x = np.mgrid[:90, :60].astype(float)
    example = {"image": np.dstack([x, x**2, y])}
    transform, generator = RandomCrop(1), rng()
    crops = [transform(example, generator)["image"] for _ in range(1500)]
    assert crops[0].shape == (1, 1, 3)
    x, x2, y = np.array(crops)[:, 0, 0].T
    sides = np.sqrt(12 * (x2 - x**2) + 1)
    lefts, tops = x - (sides - 1) / 2, y - (sides - 1) / 2
    for values in (sides, lefts, tops):  # f32 weights: 1e-7 of 3,600, twelvefold
        np.testing.assert_allclose(values, np.rint(values), atol=0.05)
    sides = np.rint(sides)
    # int(60 u), u in [1/2, 1]: 30 to 59, on average 44.5.
    assert sides.min() == 30 and sides.max() == 59
    assert abs(sides.mean() - 44.5) < 5 * np.sqrt(900 / 12 / 1500)
    for starts, free in ((np.rint(lefts), 60 - sides), (np.rint(tops), 90 - sides)):
        assert starts.min() == 0 and (starts <= free).all()
        # Whole numbers 0 to free: mean 1/2; a variance of 1/4 at most.
        assert abs((starts / free).mean() - 0.5) < 5 * np.sqrt(1 / 4 / 1500)


def test_crops_have_the_asked_extent():
    crop = RandomCrop(24, 0.3, 0.6)({"image": smooth(50, 40)}, rng())["image"]
    assert crop.shape == (24, 24, 3) and crop.dtype == np.float32
    assert crop.flags.c_contiguous


def test_a_whole_crop_of_the_same_side_changes_nothing():
    x = smooth(16, 16)
    crop = RandomCrop(16, 1.0, 1.0)({"image": x, "label": 2}, rng())
    np.testing.assert_allclose(crop["image"], x, atol=1e-6)
    assert crop["label"] == 2
