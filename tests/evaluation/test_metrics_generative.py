"""Scores, kernels, manifolds, resizing, intervals: theorems, and brute force."""

import numpy as np
import pytest
from PIL import Image

from lDM_jax.core.errors import UserError
from lDM_jax.evaluation.metrics import (
    bootstrap,
    inception_score,
    kernel_distances,
    manifolds,
)
from lDM_jax.evaluation.metrics.resize import resize, resize_matrix


def blocks_of(features: np.ndarray):
    """What makes the features anew, in three blocks."""
    return lambda: iter(np.array_split(features, 3))


def rows(seed: int, count: int, width: int = 6, shift: float = 0.0) -> np.ndarray:
    made = np.random.default_rng(seed).normal(shift, 1, (count, width))
    return made.astype(np.float32)


def kid_of(x: np.ndarray, y: np.ndarray, drawn: np.ndarray | None = None, **options):
    drawn = np.zeros((0, len(x))) if drawn is None else drawn
    counts = len(x), len(y)
    return kernel_distances.kid(
        x.__getitem__, y.__getitem__, counts=counts, draws=drawn, **options
    )


def test_inception_score_of_sure_and_of_unsure_predictions():
    """C classes, each predicted surely and equally often: C. Always the same: 1."""
    sure = 200.0 * np.tile(np.eye(7), (3, 1))
    assert score(sure) == pytest.approx(7.0, rel=1e-12)
    assert score(np.zeros((21, 7))) == pytest.approx(1.0, rel=1e-12)


def score(*splits: np.ndarray) -> float:
    count = sum(map(len, splits))
    return inception_score.inception_score(splits, np.zeros((0, count)))[0]


def test_inception_score_is_the_mean_over_splits():
    a, b = rows(0, 40, 5), rows(1, 13, 5)
    assert score(a, b) == pytest.approx((score(a) + score(b)) / 2, rel=1e-12)


def test_score_weights_are_repetitions():
    logits = rows(0, 30, 5)
    drawn = bootstrap.counts(30, 3)
    _, result = inception_score.inception_score([logits], drawn)
    repeated = [score(np.repeat(logits, c.astype(int), axis=0)) for c in drawn]
    np.testing.assert_allclose(result, repeated, rtol=1e-12)


def test_kid_has_no_bias():
    """Over many pairs of small sets of one distribution the mean is zero: within four
    standard errors, of 300 draws. The biased estimate is far off."""
    result, biased = [], []
    for seed in range(300):
        x, y = rows(2 * seed, 12), rows(2 * seed + 1, 12)
        result.append(kid_of(x, y)[0])
        k = kernel_distances.polynomial_kernel
        biased.append(k(x, x).mean() + k(y, y).mean() - 2 * k(x, y).mean())
    error = np.std(result) / np.sqrt(300)
    assert abs(np.mean(result)) < 4 * error < np.mean(biased) / 2


def test_kid_is_brute_force_over_different_pictures():
    x, y = rows(0, 9), rows(1, 9, shift=0.4)
    k = kernel_distances.polynomial_kernel(
        np.concatenate([x, y]), np.concatenate([x, y])
    )
    pairs = [(i, j) for i in range(9) for j in range(9)]
    within = [k[i, j] + k[9 + i, 9 + j] for i, j in pairs if i != j]
    between = [k[i, 9 + j] for i, j in pairs]
    exact = np.mean(within) - 2 * np.mean(between)
    assert kid_of(x, y)[0] == pytest.approx(exact, rel=1e-12)


def test_kid_weights_pair_no_picture_with_itself():
    """By counting over the drawn pictures, whose copies are the same picture."""
    x, y = rows(0, 8), rows(1, 8)
    drawn = bootstrap.counts(8, 1, seed=4)
    _, _, result = kid_of(x, y, drawn)
    picks = np.repeat(np.arange(8), drawn[0].astype(int))
    k = kernel_distances.polynomial_kernel
    within = [k(x[[i]], x[[j]])[0, 0] for i in picks for j in picks if i != j]
    others = k(y, y)[~np.eye(8, dtype=bool)].mean()
    exact = np.mean(within) + others - 2 * k(x[picks], y).mean()
    assert result[0] == pytest.approx(exact, rel=1e-12)


def test_kid_of_subsets_has_the_same_mean():
    x, y = rows(0, 400), rows(1, 300, shift=0.5)
    whole = kernel_distances.mmd_unbiased(x, y, np.ones((1, 400)))[0]
    value, std, _ = kid_of(x, y, subset_images=50, subsets=200)
    assert abs(value - whole) < 4 * std / np.sqrt(200)


def test_cmmd_against_its_definition():
    x, y = rows(0, 30), rows(1, 50, shift=3.0)

    def mean(a, b):
        return np.mean([np.exp(-((u - v) ** 2).sum() / 200) for u in a for v in b])

    exact = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    blocks = [lambda a=a: iter([a[:13], a[13:]]) for a in (x, y)]
    # a picture counted a little more, another a little less: the exact slope
    weights = np.ones((2, 30))
    weights[1, :2] += [1e-4, -1e-4]
    value, replicates = kernel_distances.cmmd(*blocks, weights)
    assert value == pytest.approx(exact, rel=1e-5)  # f32 rows
    assert replicates[0] == pytest.approx(value, rel=1e-12)

    def kernel(a, b):
        return np.exp(-((a[:, None].astype(float) - b[None]) ** 2).sum(axis=2) / 200)

    w, k_xx, k_xy = weights[1] / 30, kernel(x, x), kernel(x, y).mean(axis=1)
    moved = 1000 * (w @ k_xx @ w + kernel(y, y).mean() - 2 * w @ k_xy)
    assert replicates[1] - value == pytest.approx(moved - value, rel=1e-3)


def brute_force(reference, samples, k: int = 3, wide: int = 5):
    def distances(a, b):
        return np.linalg.norm(a[:, None].astype(np.float64) - b[None], axis=2)

    near = np.sort(distances(reference, reference), axis=1)
    own = np.sort(distances(samples, samples), axis=1)[:, k]
    d = distances(samples, reference)
    return (
        (d <= near[None, :, k]).any(axis=1),
        (d <= own[:, None]).any(axis=0),
        (d < near[None, :, wide]).sum(axis=1) / wide,
        (d < near[None, :, wide]).any(axis=0),
    )


@pytest.mark.parametrize("block", [1000, 7])
def test_manifolds_are_brute_force_in_any_blocks(monkeypatch, block):
    monkeypatch.setattr(manifolds, "BLOCK", block)
    reference, samples = rows(0, 60, 3), rows(1, 45, 3, shift=0.7)
    result = manifolds.membership(blocks_of(reference), blocks_of(samples))
    for ours, exact in zip(result, brute_force(reference, samples), strict=True):
        np.testing.assert_array_equal(ours, exact)


def test_equal_sets_are_precise_and_complete_and_distant_ones_neither():
    a, far = blocks_of(rows(0, 50)), blocks_of(rows(0, 50) + 100)
    same, apart = manifolds.membership(a, a), manifolds.membership(a, far)
    assert same.inside.all() and same.recalled.all() and same.covered.all()
    assert not (apart.inside.any() or apart.recalled.any() or apart.density.any())
    with pytest.raises(UserError, match="at least 6"):
        manifolds.membership(blocks_of(rows(0, 5)), a)


def test_precision_and_recall_see_quality_and_variety():
    """Samples of one mode of two: precise, half recalled; the reverse the other way."""
    first, second = rows(0, 200, 2), rows(1, 200, 2, shift=40.0)
    both = blocks_of(np.concatenate([first, second]))
    one = blocks_of(rows(2, 200, 2))
    narrow = manifolds.membership(both, one)
    assert narrow.inside.mean() > 0.9 and narrow.recalled.mean() < 0.5
    wide = manifolds.membership(one, both)
    assert wide.inside.mean() < 0.5 and wide.recalled.mean() > 0.9


def test_intervals_hold_the_truth_as_often_as_they_say():
    """95 % of the intervals of a mean hold it: 200 trials, so 90 to 99 %."""
    held, rng = 0, np.random.default_rng(0)
    for trial in range(200):
        drawn = bootstrap.counts(80, 60, seed=trial)
        result = bootstrap.mean_figure(rng.exponential(size=80), drawn)
        held += result.low < 1.0 < result.high
    assert 180 <= held <= 198


def test_counts_are_drawings():
    drawn = bootstrap.counts(50, 400)
    assert (drawn.sum(axis=1) == 50).all() and drawn.min() == 0
    # a picture is left out of a drawing with probability (1 - 1/50)^50 = 0.364
    assert np.mean(drawn == 0) == pytest.approx(0.364, abs=0.01)


@pytest.mark.parametrize("size", [(64, 64), (299, 299), (512, 400), (33, 350)])
def test_clean_is_pil_s_bicubic_without_rounding(size):
    """Within f32 of values to 255: PIL sums in another order."""
    x = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.float32)
    bands = [
        np.asarray(
            Image.fromarray(x[:, :, band]).resize((299, 299), Image.Resampling.BICUBIC)
        )
        for band in range(3)
    ]
    np.testing.assert_allclose(
        resize(x, "clean", 299), np.stack(bands, axis=2).clip(0, 255), atol=1e-3
    )


def test_the_conventions_differ_where_it_matters():
    """A shrunk checkerboard is grey; without antialiasing its pixels survive."""
    board = 255.0 * (np.indices((598, 598)).sum(axis=0) % 2)[:, :, None]
    board = np.repeat(board, 3, axis=2)
    assert np.ptp(resize(board, "clean", 299)[5:-5, 5:-5]) < 10
    assert np.ptp(resize(board, "legacy", 299)) == 0  # always the same pixel of two
    assert resize(board, "legacy", 299).mean() in (0.0, 255.0)
    assert resize(board, "pytorch", 299).mean() == pytest.approx(127.5)
    with pytest.raises(UserError, match="valid: legacy, pytorch, clean"):
        resize_matrix("bicubic", 8, 4)


@pytest.mark.parametrize("mode", ["legacy", "pytorch", "clean"])
def test_equal_extents_change_nothing_and_rows_sum_to_one(mode):
    np.testing.assert_array_equal(resize_matrix(mode, 9, 9), np.eye(9))
    for size in (7, 299, 600):
        # f32 rounding of at most nine weights
        sums = resize_matrix(mode, size, 40).sum(axis=1)
        np.testing.assert_allclose(sums, 1.0, atol=2e-6)
