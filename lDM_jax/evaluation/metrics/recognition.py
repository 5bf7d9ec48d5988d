"""Whether samples show their prompts, by the label of the nearest training image.

No learned network: the label of the training image with the smallest L2 distance over
all pixels is compared with the prompt's. It is crude and only serves to compare runs
on the embedded data.
"""

from typing import NamedTuple

import numpy as np

from lDM_jax.core.errors import UserError


class Recognition(NamedTuple):
    """accuracy: share of samples recognized; chance: that of a uniform random guess
    among the training images; nearest i64 "n": index of each nearest image."""

    accuracy: float
    chance: float
    nearest: np.ndarray


def nearest(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Index i64 "n" of the reference "m H W c" nearest to each image "n H W c".

    argmin_j ||a_i - b_j||^2 over uint8 pixels, computed exactly in f64.
    """
    if images.shape[1:] != references.shape[1:]:
        raise UserError(
            f"images of {images.shape[1:]} cannot be compared with references of "
            f"{references.shape[1:]}"
        )
    a = images.reshape(len(images), -1).astype(np.float64)
    b = references.reshape(len(references), -1).astype(np.float64)
    return np.argmin((b**2).sum(1)[None, :] - 2.0 * (a @ b.T), axis=1)


def recognize(
    images: np.ndarray,
    expected: np.ndarray,
    *,
    references: np.ndarray,
    labels: np.ndarray,
) -> Recognition:
    """Compare the nearest reference's label with the expected label of each image."""
    index = nearest(images, references)
    shares = np.bincount(labels, minlength=labels.max() + 1) / len(labels)
    accuracy = float(np.mean(labels[index] == expected))
    return Recognition(accuracy, float(np.mean(shares[expected])), index)
