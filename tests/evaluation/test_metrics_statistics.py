"""Streamed moments and Frechet distances: closed forms, limits, and hostile numbers."""

import numpy as np
import pytest

from lDM_jax.core.errors import UserError
from lDM_jax.evaluation.metrics.frechet import FrechetDistance, factor
from lDM_jax.evaluation.metrics.statistics import Gaussian, Moments


def features(seed: int, count: int, width: int = 12) -> np.ndarray:
    """f32 rows with correlated features and a mean."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(width, width))
    return (rng.normal(size=(count, width)) @ mix + rng.normal(size=width)).astype(
        np.float32
    )


def moments(*blocks: np.ndarray) -> Moments:
    made = Moments.zeros(blocks[0].shape[1])
    for block in blocks:
        made.add(block)
    return made


def orthogonal(rng: np.random.Generator, width: int) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(width, width)))[0]


def psd(rng: np.random.Generator, width: int, rank: int) -> np.ndarray:
    """A random covariance of that rank."""
    half = rng.normal(size=(width, rank))
    return half @ half.T


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_blocks_of_any_size_and_order_have_numpy_s_moments(block):
    """Over n - 1, the last block partial: none dropped, none doubled."""
    rows = features(0, 333)
    shuffled = rows[np.random.default_rng(1).permutation(len(rows))]
    parts = [shuffled[start : start + block] for start in range(0, len(rows), block)]
    result = moments(*parts).gaussian()
    exact = rows.astype(np.float64)
    assert result.count == 333
    # f64 sums of a few hundred numbers: 1e-13 of their scale
    np.testing.assert_allclose(result.mean, exact.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(
        result.covariance, np.cov(exact, rowvar=False), rtol=1e-11, atol=1e-12
    )


def test_weights_are_repetitions():
    rows, weights = features(2, 20), np.random.default_rng(0).integers(0, 4, 20)
    made = Moments.zeros(12)
    made.add(rows, weights)
    repeated = moments(np.repeat(rows, weights, axis=0)).gaussian()
    np.testing.assert_allclose(made.gaussian().covariance, repeated.covariance)
    assert made.gaussian().count == weights.sum()


def test_float32_sums_would_be_wrong_and_these_are_not():
    """Features of mean 100 and deviation 0.1, as saturated ones have."""
    rng = np.random.default_rng(3)
    rows = (100 + 0.1 * rng.normal(size=(5000, 4))).astype(np.float32)
    exact = np.cov(rows.astype(np.float64), rowvar=False)
    single = (rows.T @ rows - len(rows) * np.outer(*[rows.mean(axis=0)] * 2)) / 4999
    assert np.abs(single - exact).max() > 0.1 * exact.max()  # useless
    # cancellation costs (mean / deviation)^2 = 1e6 of f64's 1e-16
    np.testing.assert_allclose(moments(rows).gaussian().covariance, exact, atol=1e-11)


def test_what_cannot_be_summed_is_refused():
    bad = features(0, 4)
    bad[2, 1] = np.nan
    with pytest.raises(UserError, match="not finite"):
        moments(bad)
    with pytest.raises(UserError, match="at least 2 images, not 1"):
        moments(features(0, 1)).gaussian()
    with pytest.raises(UserError, match="do not fit"):
        moments(features(0, 4, 12), features(0, 4, 11))


@pytest.mark.parametrize("rank", [16, 9, 1])
def test_distance_along_an_optimal_map(rank):
    """x -> T x + m with T symmetric and positive is the cheapest way to its image: the
    distance is |m|^2 + tr (T - 1) S (T - 1), whatever the ranks of S and T."""
    rng = np.random.default_rng(rank)
    sigma, shift = psd(rng, 16, rank), rng.normal(size=16)
    stretch = psd(rng, 16, 11) / 4
    there = stretch @ sigma @ stretch
    away = stretch - np.eye(16)
    exact = shift @ shift + np.trace(away @ sigma @ away)
    a, b = Gaussian(np.zeros(16), sigma), Gaussian(shift, (there + there.T) / 2)
    assert FrechetDistance(a)(b) == pytest.approx(exact, abs=1e-6, rel=1e-9)
    assert FrechetDistance(b)(a) == pytest.approx(exact, abs=1e-6, rel=1e-9)


@pytest.mark.parametrize("ranks", [(40, 40), (40, 7), (7, 5), (3, 0)])
def test_distance_of_commuting_covariances(ranks):
    """sum (sqrt a_i - sqrt b_i)^2 over shared axes, zeros among them."""
    rng = np.random.default_rng(0)
    axes, spectra = orthogonal(rng, 40), []
    for rank in ranks:
        values = np.zeros(40)
        values[rng.permutation(40)[:rank]] = np.exp(rng.normal(0, 3, rank))
        spectra.append(values)
    pair = [Gaussian(np.zeros(40), axes @ np.diag(s) @ axes.T) for s in spectra]
    exact = ((np.sqrt(spectra[0]) - np.sqrt(spectra[1])) ** 2).sum()
    result = FrechetDistance(pair[0])(pair[1])
    assert result == pytest.approx(exact, abs=1e-6, rel=1e-9)


def test_equal_sets_of_fewer_pictures_than_features_are_at_distance_zero():
    """The case that makes other tools add to the diagonal or fail."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 300)).astype(np.float32)
    a, b = moments(rows).gaussian(), moments(rows[::-1]).gaussian()
    assert abs(FrechetDistance(a)(b)) < 1e-9 * np.trace(a.covariance)


def test_the_quick_way_agrees():
    rng = np.random.default_rng(0)
    a = Gaussian(rng.normal(size=30), psd(rng, 30, 30))
    b = Gaussian(rng.normal(size=30), psd(rng, 30, 12))
    distance = FrechetDistance(a)
    # 18 zero eigenvalues, each seen as about sqrt(eps) of the largest
    assert distance.quickly(b) == pytest.approx(distance(b), rel=1e-6)


def test_factor_keeps_the_rank_and_refuses_what_is_no_covariance():
    sigma = psd(np.random.default_rng(0), 20, 6)
    result = factor(sigma)
    assert result.shape == (20, 6)
    np.testing.assert_allclose(result @ result.T, sigma, atol=1e-12 * sigma.max())
    with pytest.raises(UserError, match="eigenvalue -1"):
        factor(np.diag([2.0, -1.0]))
    with pytest.raises(UserError, match="different networks"):
        FrechetDistance(Gaussian(np.zeros(2), np.eye(2)))(
            Gaussian(np.zeros(3), np.eye(3))
        )
