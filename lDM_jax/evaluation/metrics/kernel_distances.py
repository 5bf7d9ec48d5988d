"""Kernel distances: KID (polynomial kernel, unbiased) and CMMD (Gaussian kernel).

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y)

KID: k(x, y) = (x y / d + 1)^3, each expectation over different images, so that the
figure has no bias at any count and may be below zero; the mean over subsets of at most
1,000 images of each side. CMMD: k = exp(-|x - y|^2 / 200) of unit CLIP embeddings,
times 1000, all pairs counted. Sources: Binkowski et al. 2018; Jayasumana et al. 2024.
"""

from collections.abc import Callable, Iterator

import numpy as np

from lDM_jax.evaluation.comparison import Comparison, Report
from lDM_jax.evaluation.metrics import bootstrap

SUBSETS, SUBSET_IMAGES = 100, 1000
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0

# Rows of features by their indices: i64 "m" -> "m d".
Rows = Callable[[np.ndarray], np.ndarray]
# Iterates over the features of a set from its beginning, in blocks "m d".
Blocks = Callable[[], Iterator[np.ndarray]]


def polynomial_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x y / d + 1)^3, f64 "n m"."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def mmd_unbiased(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """MMD^2 f64 "r" between x "n d", weighted by `weights` "r n", and y "m d".

    No image is paired with itself, nor with another drawing of itself.
    """
    k_xx, k_yy = polynomial_kernel(x, x), polynomial_kernel(y, y)
    total, squares = weights.sum(axis=1), (weights**2).sum(axis=1)
    within_x = ((weights @ k_xx) * weights).sum(axis=1) - weights**2 @ np.diagonal(k_xx)
    within_x /= total**2 - squares
    within_y, count = k_yy.sum() - np.trace(k_yy), len(y)
    within_y /= count * (count - 1)
    between = weights @ polynomial_kernel(x, y).sum(axis=1) / (total * count)
    return within_x + within_y - 2 * between


def kid(
    x: Rows,
    y: Rows,
    *,
    counts: tuple[int, int],
    draws: np.ndarray,
    subsets: int = SUBSETS,
    subset_images: int = SUBSET_IMAGES,
    seed: int = 0,
) -> tuple[float, float, np.ndarray]:
    """(KID, standard deviation over subsets, replicates "r").

    counts: images of x and y. draws: how often each replicate counts each image of x,
    "r n". Subsets are drawn without replacement; if they would be all images of both
    sides, there is one.
    """
    size = min(subset_images, *counts)
    rng = np.random.default_rng(seed)
    takes_all = size == counts[0] == counts[1]
    values, replicates = [], []
    for _ in range(1 if takes_all else subsets):
        first = np.sort(rng.choice(counts[0], size, replace=False))
        second = np.sort(rng.choice(counts[1], size, replace=False))
        weights = np.concatenate([np.ones((1, size)), draws[:, first]])
        distances = mmd_unbiased(x(first), y(second), weights)
        values.append(distances[0])
        replicates.append(distances[1:])
    return float(np.mean(values)), float(np.std(values)), np.mean(replicates, axis=0)


def cmmd(x: Blocks, y: Blocks, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """1000 MMD^2 of unit embeddings with the Gaussian kernel, and its replicates "r".

    weights: "r n", how often each replicate counts each image of x. The replicates are
    to first order: value + the weighted mean of each image's share 2 (k(x, .) - k(y,
    .)).
    """

    def mean_kernels(rows: Blocks, others: Blocks) -> np.ndarray:
        """Mean over the others of the kernel with each row, f64 "n"."""
        means = []
        for a in rows():
            total, count, a = np.zeros(len(a)), 0, np.asarray(a, np.float64)
            for b in others():
                b = np.asarray(b, np.float64)
                norms = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None]
                total += np.exp((2 * a @ b.T - norms) / (2 * CMMD_SIGMA**2)).sum(axis=1)
                count += len(b)
            means.append(total / count)
        return np.concatenate(means)

    within, between = mean_kernels(x, x), mean_kernels(x, y)
    value = within.mean() + mean_kernels(y, y).mean() - 2 * between.mean()
    share = 2 * (within - between)
    replicates = value + weights @ share / len(share) - share.mean()
    return CMMD_SCALE * float(value), CMMD_SCALE * replicates


def measure(comparison: Comparison, report: Report) -> None:
    """Report KID, and its deviation over subsets as other tools print it, or CMMD."""
    x, y = comparison.samples.bank, comparison.reference.bank
    if comparison.paired or x is None or y is None or min(x.count, y.count) < 2:
        return
    name = comparison.name("kid")
    if name == "cmmd":
        value, replicates = cmmd(x.blocks, y.blocks, comparison.weights)
    else:
        options = dict(counts=(x.count, y.count), draws=comparison.counts)
        value, std, replicates = kid(x.rows, y.rows, **options)
        report.extra[f"{name}_subset_std"] = std
    report.figures[name] = bootstrap.figure(value, replicates)
