"""Reconstruction quality: PSNR, SSIM and LPIPS of each image.

All three see images as they would be saved, uint8, and are computed for each image;
results are quoted as mean and standard deviation over images. (`losses.psnr`, which
training logs, sees the network's values before rounding.) The papers of first stages
quote PSNR, SSIM and PSIM, which is LPIPS with VGG16, without saying more: Rombach et
al. 2022, table 8.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from lDM_jax.core import image
from lDM_jax.core.arrays import Array, Float, UInt8, typecheck
from lDM_jax.core.errors import UserError

PEAK = 255.0
WINDOW_PX, WINDOW_SIGMA_PX = 11, 1.5
K1, K2 = 0.01, 0.03


class Summary(NamedTuple):
    """Over images: mean, standard deviation (divided by count, not count - 1)."""

    mean: float
    std: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.std:.2g}"


def reconstruction_metrics(
    x_hat: np.ndarray,
    x: np.ndarray,
    *,
    lpips: Callable[[Array, Array], Array] | None = None,
) -> dict[str, np.ndarray]:
    """{"psnr", "ssim", and "lpips" if its distance is given}: each f64 "b".

    x_hat, x: uint8 "b H W 3". lpips: f32 [-1, 1], twice -> "b", for example
    `perceptual.make_distance()`.
    """
    rows = {"psnr": psnr(x_hat, x), "ssim": ssim(x_hat, x)}
    if lpips is not None:
        distance = lpips(image.to_float(x_hat), image.to_float(x))
        rows["lpips"] = np.asarray(distance, np.float64)
    return rows


def summarize(batches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, Summary]:
    """Over all images of many batches' metrics; an infinite PSNR stays infinite."""
    batches = list(batches)
    summaries = {}
    for name in batches[0] if batches else ():
        values = np.concatenate([rows[name] for rows in batches])
        with np.errstate(invalid="ignore"):
            mean, std = float(values.mean()), float(values.std())
        summaries[name] = Summary(mean, std, len(values))
    return summaries


@typecheck
def psnr(
    x_hat: UInt8[np.ndarray, "b H W c"], x: UInt8[np.ndarray, "b H W c"]
) -> Float[np.ndarray, " b"]:
    """10 log10(255^2 / MSE) in dB, the MSE over pixels and channels; inf for equals."""
    difference = x_hat.astype(np.float64) - x
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(PEAK**2 / np.mean(difference**2, axis=(1, 2, 3)))


@typecheck
def ssim(
    x_hat: UInt8[np.ndarray, "b H W c"], x: UInt8[np.ndarray, "b H W c"]
) -> Float[np.ndarray, " b"]:
    """Structural similarity, at most 1: Wang et al. 2004, eq. 13, in f64.

    Gaussian window of 11 px, sigma 1.5 px, K1 0.01, K2 0.03, range 255; of each channel
    over the positions where the window lies inside the image, then the mean.
    """
    if min(x.shape[1:3]) < WINDOW_PX:
        raise UserError(
            f"SSIM needs images of at least {WINDOW_PX} px a side, not "
            f"{x.shape[1]} x {x.shape[2]}"
        )
    pairs = zip(x_hat.astype(np.float64), x.astype(np.float64), strict=True)
    return np.array([_ssim(a, b) for a, b in pairs])


def _ssim(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of two images f64 "H W c"."""
    mean_a, mean_b = _window_mean(a), _window_mean(b)
    variance_a = _window_mean(a * a) - mean_a**2
    variance_b = _window_mean(b * b) - mean_b**2
    covariance = _window_mean(a * b) - mean_a * mean_b
    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return float(np.mean(luminance * structure))


def _window_mean(a: np.ndarray) -> np.ndarray:
    """Gaussian-weighted means "H-10 W-10 c" over all windows inside "H W c"."""
    offset = np.arange(WINDOW_PX) - WINDOW_PX // 2
    weights = np.exp(-(offset**2) / (2 * WINDOW_SIGMA_PX**2))
    weights /= weights.sum()
    for axis in (0, 1):
        length = a.shape[axis] - WINDOW_PX + 1
        shifted = (np.take(a, range(k, k + length), axis) for k in range(WINDOW_PX))
        a = sum(weight * part for weight, part in zip(weights, shifted, strict=True))
    return a
