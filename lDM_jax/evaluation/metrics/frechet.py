"""The Frechet distance of two Gaussians: what FID, sFID and FD are of features.

    d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

With S1 = A A^T and S2 = B B^T by two symmetric eigendecompositions, the last trace is
the sum of the singular values of A^T B. Nothing is complex, nothing is added to a
diagonal, and covariances of fewer pictures than features are as good as others: what
lies below rounding is left out of A and B. Source: Dowson and Landau 1982; Heusel et
al. 2017 for FID.
"""

import numpy as np

from lDM_jax.core.errors import UserError
from lDM_jax.evaluation.metrics.statistics import Gaussian

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
        mine = self.reference
        if mine.mean.shape != other.mean.shape:
            raise UserError(
                f"statistics of {len(mine.mean)} and of {len(other.mean)} features "
                "are of different networks"
            )
        shift = mine.mean - other.mean
        cross = self._factor.T @ factor(other.covariance)
        shared = np.linalg.svd(cross, compute_uv=False).sum() if cross.size else 0.0
        traces = np.trace(mine.covariance) + np.trace(other.covariance)
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


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """d^2 of two Gaussians."""
    return FrechetDistance(a)(b)
