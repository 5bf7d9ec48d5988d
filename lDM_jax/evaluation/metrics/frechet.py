"""The Frechet distance of two Gaussians: FID, sFID and FD, by the features.

    d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

With S1 = A A^T and S2 = B B^T by two symmetric eigendecompositions, the last trace is
the sum of the singular values of A^T B. Nothing is complex, nothing is added to a
diagonal, and covariances of fewer images than features are as good as others: what
lies below rounding is left out of A and B. Source: Dowson and Landau 1982; Heusel et
al. 2017 for FID.
"""

import numpy as np

from lDM_jax.core.errors import UserError
from lDM_jax.evaluation.comparison import Comparison, Report
from lDM_jax.evaluation.features import Bank
from lDM_jax.evaluation.metrics import bootstrap
from lDM_jax.evaluation.metrics.statistics import Gaussian

ENOUGH_IMAGES = 10_000  # for a bias that does not matter
NEGATIVE = 1e-6  # an eigenvalue below -NEGATIVE of the largest is no rounding error


def factor(covariance: np.ndarray) -> np.ndarray:
    """A "d r" with A A^T = covariance of rank r.

    Eigenvalues within d eps of the largest are rounding, and are left out. UserError
    for a matrix with a negative one.
    """
    values, vectors = np.linalg.eigh(covariance)
    largest = max(values[-1], 0.0)
    if values[0] < -NEGATIVE * largest:
        raise UserError(
            f"a covariance has the eigenvalue {values[0]:.3g} beside {largest:.3g}: "
            "it was summed in too low a precision, or is of something else"
        )
    keep = values > len(values) * np.finfo(np.float64).eps * largest
    return vectors[:, keep] * np.sqrt(values[keep])


class FrechetDistance:
    """Distances to one Gaussian, whose factor is computed once."""

    def __init__(self, reference: Gaussian):
        self.reference = reference
        self._factor = factor(reference.covariance)

    def __call__(self, other: Gaussian) -> float:
        """d^2, at least 0 up to rounding. UserError for another width."""
        own = self.reference
        if own.mean.shape != other.mean.shape:
            raise UserError(
                f"statistics of {len(own.mean)} and of {len(other.mean)} features "
                "are of different networks"
            )
        shift = own.mean - other.mean
        cross = self._factor.T @ factor(other.covariance)
        shared = np.linalg.svd(cross, compute_uv=False).sum() if cross.size else 0.0
        traces = np.trace(own.covariance) + np.trace(other.covariance)
        return float(shift @ shift + traces - 2 * shared)

    def quickly(self, other: Gaussian) -> float:
        """The same by eigenvalues alone, for bootstrap replicates.

        The square roots of eigenvalues that are rounding make it less exact, by about
        1e-8 of the traces for each.
        """
        shift = self.reference.mean - other.mean
        middle = self._factor.T @ other.covariance @ self._factor
        shared = np.sqrt(np.maximum(np.linalg.eigvalsh(middle), 0.0)).sum()
        traces = np.trace(self.reference.covariance) + np.trace(other.covariance)
        return float(shift @ shift + traces - 2 * shared)


def measure(
    comparison: Comparison, report: Report, key: str = "pool", stem: str = "fid"
) -> None:
    """Report the distance, its interval, and at few samples its bias.

    key: of the sides' statistics and the bank's features.
    """
    samples, reference = comparison.samples, comparison.reference
    distance = FrechetDistance(getattr(reference, key))
    value, name = distance(getattr(samples, key)), comparison.name(stem)
    bank = samples.bank
    if bank is None:
        report.figures[name] = bootstrap.figure(value, np.zeros(0))
        if 0 < samples.pool.count < ENOUGH_IMAGES:
            text = f"{name} of {samples.pool.count} images is biased upwards"
            report.warnings.append(text)
        return
    resampled, replicates = distance, []
    for weights in comparison.weights:
        if comparison.paired:
            resampled = FrechetDistance(reference.bank.gaussian(key, weights))
        replicates.append(resampled.quickly(bank.gaussian(key, weights)))
    report.figures[name] = bootstrap.figure(value, np.array(replicates))
    if bank.count < ENOUGH_IMAGES and not comparison.paired:
        report.warnings.append(
            f"{name} of {bank.count} samples is too high by about "
            f"{bias(distance, bank, key, value):.3g}; compare it only with figures of "
            f"as many samples (the field's are of 50,000)"
        )


def measure_spatial(comparison: Comparison, report: Report) -> None:
    """The same of spatial features, where both sides have their statistics: sFID."""
    if comparison.samples.spatial and comparison.reference.spatial:
        measure(comparison, report, "spatial", "sfid")


def bias(distance: FrechetDistance, bank: Bank, key: str, value: float) -> float:
    """The excess of a distance at n samples, which falls as 1 / n: the mean over two
    halves of d(n / 2), less d(n). Source: Chong and Forsyth 2020."""
    if bank.count < 8:
        return float("nan")
    first = bank.to_image_order(np.arange(bank.count) % 2.0)
    halves = [bank.gaussian(key, mask) for mask in (first, 1 - first)]
    return float(np.mean([distance.quickly(half) for half in halves]) - value)
