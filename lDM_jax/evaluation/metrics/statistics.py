"""Mean and covariance of features, streamed, in float64 on the host.

Only the sums n, sum x and sum x x^T are stored: memory does not grow with the
number of images. At 2048 features these are 32 MB. Float32 sums would be wrong in the
fourth digit.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from lDM_jax.core.errors import UserError


class Gaussian(NamedTuple):
    """mean f64 "d" and covariance f64 "d d" (over n - 1) of count images.

    count 0: not known.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int = 0


@dataclasses.dataclass
class Moments:
    """n, sum x "d" and sum x x^T "d d", f64."""

    count: float
    total: np.ndarray
    outer: np.ndarray

    @classmethod
    def zeros(cls, width: int) -> "Moments":
        """The moments of no images."""
        return cls(0.0, np.zeros(width), np.zeros((width, width)))

    def add(self, features: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Add rows "n d", row i `weights[i]` times (once each if None).

        UserError for features that are not finite: one would spoil all figures.
        """
        rows = np.asarray(features, np.float64)
        if rows.ndim != 2 or rows.shape[1] != len(self.total):
            sums = f"sums over {len(self.total)} features"
            raise UserError(f"features of shape {rows.shape} do not fit {sums}")
        if not np.isfinite(rows).all():
            raise UserError("features are not finite: the images or weights are bad")
        weighted = rows if weights is None else rows * weights[:, None]
        self.count += len(rows) if weights is None else float(np.sum(weights))
        self.total += weighted.sum(axis=0)
        self.outer += rows.T @ weighted

    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance; UserError for fewer than two images."""
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 images, not {self.count:g}")
        mean = self.total / self.count
        scatter = self.outer - self.count * np.outer(mean, mean)
        covariance = (scatter + scatter.T) / (2 * (self.count - 1))
        return Gaussian(mean, covariance, round(self.count))
