"""Kernel distances: KID (polynomial kernel, unbiased) and CMMD (Gaussian kernel).

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y)

KID: k(x, y) = (x y / d + 1)^3, each expectation over different pictures, so that the
figure has no bias at any count and may be below zero; the mean over subsets of at most
1,000 pictures of each side. CMMD: k = exp(-|x - y|^2 / 200) of unit CLIP embeddings,
times 1000, all pairs counted. Sources: Binkowski et al. 2018; Jayasumana et al. 2024.
"""

from collections.abc import Callable, Iterator

import numpy as np

SUBSETS, SUBSET_IMAGES = 100, 1000
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0

# Rows of features by their indices: i64 "m" -> "m d".
Rows = Callable[[np.ndarray], np.ndarray]
# Makes the features of a set anew, in blocks "m d".
Blocks = Callable[[], Iterator[np.ndarray]]


def polynomial_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x y / d + 1)^3, f64 "n m"."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def mmd_unbiased(x: np.ndarray, y: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """MMD^2 f64 "r" between x "n d", weighted by counts "r n", and y "m d".

    No picture is paired with itself, nor with another drawing of itself.
    """
    k_xx, k_yy = polynomial_kernel(x, x), polynomial_kernel(y, y)
    total, squares = drawn.sum(axis=1), (drawn**2).sum(axis=1)
    within_x = ((drawn @ k_xx) * drawn).sum(axis=1) - drawn**2 @ np.diagonal(k_xx)
    within_x /= total**2 - squares
    count = len(y)
    within_y = (k_yy.sum() - np.trace(k_yy)) / (count * (count - 1))
    between = drawn @ polynomial_kernel(x, y).sum(axis=1) / (total * count)
    return within_x + within_y - 2 * between


def kid(
    x: Rows,
    y: Rows,
    *,
    counts: tuple[int, int],
    drawn: np.ndarray,
    subsets: int = SUBSETS,
    subset_images: int = SUBSET_IMAGES,
    seed: int = 0,
) -> tuple[float, float, np.ndarray]:
    """(KID, standard deviation over subsets, replicates "r").

    counts: pictures of x and y. drawn: counts "r n" of x's pictures in replicates.
    Subsets are drawn without replacement; if they would be all pictures of both sides,
    there is one.
    """
    size = min(subset_images, *counts)
    rng = np.random.default_rng(seed)
    whole = size == counts[0] == counts[1]
    values, replicates = [], []
    for _ in range(1 if whole else subsets):
        first = np.sort(rng.choice(counts[0], size, replace=False))
        second = np.sort(rng.choice(counts[1], size, replace=False))
        weights = np.concatenate([np.ones((1, size)), drawn[:, first]])
        found = mmd_unbiased(x(first), y(second), weights)
        values.append(found[0])
        replicates.append(found[1:])
    return float(np.mean(values)), float(np.std(values)), np.mean(replicates, axis=0)


def cmmd(x: Blocks, y: Blocks, drawn: np.ndarray) -> tuple[float, np.ndarray]:
    """1000 MMD^2 of unit embeddings with the Gaussian kernel, and its replicates "r".

    drawn: counts "r n" of x's pictures, in their order. The replicates are to first
    order: value + the weighted mean of each picture's share 2 (k(x, .) - k(y, .)).
    """

    def mean_kernels(rows: Blocks, others: Blocks) -> np.ndarray:
        """Mean over the others of the kernel with each row, f64 "n"."""
        found = []
        for a in rows():
            total, count, a = np.zeros(len(a)), 0, np.asarray(a, np.float64)
            for b in others():
                b = np.asarray(b, np.float64)
                norms = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None]
                total += np.exp((2 * a @ b.T - norms) / (2 * CMMD_SIGMA**2)).sum(axis=1)
                count += len(b)
            found.append(total / count)
        return np.concatenate(found)

    within, between = mean_kernels(x, x), mean_kernels(x, y)
    value = within.mean() + mean_kernels(y, y).mean() - 2 * between.mean()
    share = 2 * (within - between)
    replicates = value + drawn @ share / len(share) - share.mean()
    return CMMD_SCALE * float(value), CMMD_SCALE * replicates
