"""Random masks: geometry, and statistics of the distributions that are written down."""

import pickle

import numpy as np
import pytest

from lDM_jax.core.errors import UserError
from lDM_jax.data import masks
from lDM_jax.data.masks import KINDS, RandomMask, draw_mask, paint_stroke


def draws(kind, count, height=64, width=64, seed=0):
    rng = np.random.default_rng(seed)
    stack = [draw_mask(kind, height, width, rng) for _ in range(count)]
    return np.array(stack)[:, :, :, 0].astype(bool)


@pytest.mark.parametrize("extent", [(4, 4), (5, 11), (64, 64), (40, 100)])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_paint_something_and_at_most_half(kind, extent):
    rng = np.random.default_rng(0)
    for _ in range(40):
        mask = draw_mask(kind, *extent, rng)
        assert mask.shape == (*extent, 1) and mask.dtype == np.float32
        assert set(np.unique(mask)) == {0.0, 1.0}
        assert mask.mean() <= 0.5


def test_random_mask_adds_a_mask_of_the_image_s_extent():
    example = {"image": np.zeros((12, 20, 3), np.float32), "label": 3}
    transform = pickle.loads(pickle.dumps(RandomMask("thick")))
    masked = transform(example, np.random.default_rng(1))
    assert masked["mask"].shape == (12, 20, 1)
    assert masked["image"] is example["image"] and masked["label"] == 3
    assert "mask" not in example
    again = RandomMask("thick")(example, np.random.default_rng(1))
    np.testing.assert_array_equal(masked["mask"], again["mask"])


@pytest.mark.parametrize("width_px", [1.0, 6.0, 17.5])
def test_a_stroke_is_what_lies_within_half_its_width(width_px):
    """Against the nearest of many points along it, up to their distance of 0.05."""
    rng = np.random.default_rng(2)
    rows, columns = np.mgrid[:40, :60]
    for _ in range(10):
        start, end = rng.uniform(0, (39, 59), (2, 2))
        painted = np.zeros((40, 60), bool)
        paint_stroke(painted, start, end, width_px=width_px)
        points = start + np.linspace(0, 1, 1500)[:, None] * (end - start)
        distance = np.full((40, 60), np.inf)
        for point in points:
            near = np.hypot(rows - point[0], columns - point[1])
            distance = np.minimum(distance, near)
        sure = np.abs(distance - width_px / 2) > 0.05
        np.testing.assert_array_equal(painted[sure], (distance < width_px / 2)[sure])


def test_area_of_a_stroke_is_a_rectangle_and_a_disc():
    """w L + pi w^2 / 4; 1 % for counting pixels along an outline of 440 px."""
    painted = np.zeros((200, 200), bool)
    start, end = np.array([40.3, 50.7]), np.array([150.1, 139.9])
    paint_stroke(painted, start, end, width_px=50)
    length = np.hypot(*(end - start))
    expected = 50 * length + np.pi * 25**2
    np.testing.assert_allclose(painted.sum(), expected, rtol=0.01)


def test_strokes_leave_what_was_painted():
    """Also beside a stroke, in the rectangle that it spans."""
    painted = np.zeros((30, 30), bool)
    painted[[0, 12], [0, 18]] = True
    paint_stroke(painted, np.array([10.0, 10.0]), np.array([20.0, 20.0]), width_px=0.1)
    expected = np.zeros((30, 30), bool)
    expected[[0, 12], [0, 18]] = True
    expected[range(10, 21), range(10, 21)] = True
    np.testing.assert_array_equal(painted, expected)


# LaMa's files for 256 px: chains (one more than max_times), width, length
PUBLISHED = {
    "thick": ((1, 5 + 1), 100, 200),
    "medium": ((4, 5 + 1), 50, 100),
    "thin": ((4, 50 + 1), 10, 40),
}


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("kind", PUBLISHED)
def test_strokes_are_drawn_from_the_published_ranges(kind, scale, monkeypatch):
    """Widths 5 + [0, max) and lengths 10 + [0, max), angles 0.01 + {0, 1, 2, 3}."""
    (least, most), max_width, max_length = PUBLISHED[kind]
    calls = []

    def record(painted, start, end, *, width_px):
        calls.append((start, end, width_px / scale))

    monkeypatch.setattr(masks, "paint_stroke", record)
    counts, widths, lengths, angles, links = [], [], [], [], []
    rng = np.random.default_rng(3)
    side = 256 * scale
    for _ in range(300):
        calls.clear()
        masks.strokes(masks.STROKES[kind], side, side, rng)
        starts = np.array([start for start, _, _ in calls])
        ends = np.array([end for _, end, _ in calls])
        linked = (starts[1:] == ends[:-1]).all(axis=1)
        counts.append(1 + int((~linked).sum()))
        links += np.diff(np.flatnonzero(np.r_[True, ~linked, True])).tolist()
        widths += [width for _, _, width in calls]
        inside = ((ends > 0) & (ends < side - 1)).all(axis=1)
        steps = (ends - starts)[inside] / scale
        lengths += np.hypot(*steps.T).tolist()
        angles += np.arctan2(np.abs(steps[:, 1]), steps[:, 0]).tolist()
    assert (min(counts), max(counts)) == (least, most)
    assert (min(links), max(links)) == (1, 5)
    assert (min(widths), max(widths)) == (5, 5 + max_width - 1)
    # The longest strokes often leave the image and are then not seen here.
    assert min(lengths) >= 10 - 1e-9 and max(lengths) <= 10 + max_length - 1 + 1e-9
    assert max(lengths) > 0.9 * max_length
    np.testing.assert_allclose(
        np.unique(np.round(angles, 6)), [0.01, 1.01, 2.01, 3.01], atol=1e-6
    )


def test_rectangles_replace_strokes_in_3_of_13_masks(monkeypatch):
    drawn = []
    for name in ("boxes", "strokes"):
        monkeypatch.setattr(masks, name, lambda *_, name=name: drawn.append(name))
    rng = np.random.default_rng(0)
    for _ in range(2000):
        masks._draw("thick", 64, 64, rng)
    share, expected = drawn.count("boxes") / 2000, 0.3 / 1.3
    assert abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / 2000)
    drawn.clear()
    for _ in range(100):
        masks._draw("thin", 64, 64, rng)
    assert set(drawn) == {"strokes"}


def is_rectangle(mask):
    rows, columns = mask.any(axis=1), mask.any(axis=0)
    whole = all(
        np.diff(np.flatnonzero(line)).max(initial=1) == 1 for line in (rows, columns)
    )
    return whole and (mask == rows[:, None] & columns[None, :]).all()


def test_box_is_one_rectangle_of_the_stated_sides():
    stack = draws("box", 1000, 200, 100)
    assert all(is_rectangle(mask) for mask in stack)
    heights = stack.any(axis=2).sum(axis=1) / 200
    widths = stack.any(axis=1).sum(axis=1) / 100
    low, high = np.sqrt(0.1), np.sqrt(0.35)
    for sides, pixel in ((heights, 1 / 200), (widths, 1 / 100)):
        assert low - pixel / 2 <= sides.min() and sides.max() <= high + pixel / 2
        error = (high - low) / np.sqrt(12 * 1000)
        assert abs(sides.mean() - (low + high) / 2) < 5 * error
    # The frame is reached on every side.
    assert stack[:, 0].any() and stack[:, -1].any()
    assert stack[:, :, 0].any() and stack[:, :, -1].any()


def test_half_is_each_side_with_the_same_chance():
    stack = draws("half", 2000, 8, 6)
    names = []
    for mask in stack:
        assert is_rectangle(mask) and mask.sum() == 24
        corners = mask[0, 0], mask[0, -1], mask[-1, 0]
        sides = {(1, 0, 1): "left", (0, 1, 0): "right", (1, 1, 0): "top"}
        names.append(sides.get(tuple(map(int, corners)), "bottom"))
    for side in ("left", "right", "top", "bottom"):
        error = np.sqrt(0.25 * 0.75 / 2000)
        assert abs(names.count(side) / 2000 - 0.25) < 5 * error
    assert {mask.sum() for mask in draws("half", 50, 7, 5)} == {14, 15}


def test_mixed_draws_every_kind_alike(monkeypatch):
    drawn = []

    def record(kind, height, width, rng):
        drawn.append(kind)
        return np.eye(height, width, dtype=bool)

    monkeypatch.setattr(masks, "_draw", record)
    rng = np.random.default_rng(0)
    for _ in range(2000):
        draw_mask("mixed", 8, 8, rng)
    for kind in ("thick", "medium", "thin", "box", "half"):
        assert abs(drawn.count(kind) / 2000 - 0.2) < 5 * np.sqrt(0.2 * 0.8 / 2000)


@pytest.mark.parametrize("kind", ["thick", "medium", "thin"])
def test_shares_do_not_depend_on_the_extent(kind):
    """Everything scales with the side: 5 standard errors, and 0.02 for whole pixels."""
    shares = []
    for side in (64, 128):
        generator = np.random.default_rng(side)
        stack = [
            masks.strokes(masks.STROKES[kind], side, side, generator).mean()
            for _ in range(120)
        ]
        shares.append(np.array(stack))
    small, large = shares
    error = np.sqrt(small.var() / 120 + large.var() / 120)
    assert abs(small.mean() - large.mean()) < 5 * error + 0.02


def test_thinner_masks_have_longer_outlines():
    """Pixels beside the border of the mask, for the same painted area."""

    def outline(kind):
        stack = draws(kind, 60, 96, 96)
        return (
            np.diff(stack, axis=1).sum() + np.diff(stack, axis=2).sum()
        ) / stack.sum()

    assert outline("thick") < outline("medium") < outline("thin")


def test_errors_name_what_is_valid():
    with pytest.raises(UserError, match="is 'huge'; valid are 'thick', 'med"):
        RandomMask("huge")
    with pytest.raises(UserError, match="at least 4 x 4"):
        draw_mask("box", 3, 8, np.random.default_rng(0))
