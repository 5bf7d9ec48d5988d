"""Bootstrap intervals: how far a figure would move with other images.

A replicate draws as many images as there are, with replacement; `counts` says how
often each was drawn, and a metric weighs its images by that. The interval is

    figure -+ 1.96 (standard deviation of the replicates)

and not their percentiles: a replicate has fewer different images, so the replicates
of FID and similar figures lie above the figure by about the bias of the figure itself.
The interval covers the choice of images; it covers neither that bias nor the variation
between trainings.
Source: Efron and Tibshirani 1993, chapter 6.
"""

from typing import NamedTuple

import numpy as np

NORMAL_95 = 1.959964


class Figure(NamedTuple):
    """A value with its 95 % interval; no replicates make an interval of NaN."""

    value: float
    low: float
    high: float


def counts(number: int, replicates: int, *, seed: int = 0) -> np.ndarray:
    """f64 "replicates number": how often each image is drawn; rows sum to number."""
    rng = np.random.default_rng(seed)
    shares = np.full(number, 1.0 / number)
    return rng.multinomial(number, shares, replicates).astype(np.float64)


def figure(value: float, replicates: np.ndarray) -> Figure:
    """The value with the interval of its replicates "r"."""
    if len(replicates) < 2:
        return Figure(float(value), np.nan, np.nan)
    reach = NORMAL_95 * float(np.std(replicates, ddof=1))
    return Figure(float(value), float(value) - reach, float(value) + reach)


def mean_figure(values: np.ndarray, counts: np.ndarray) -> Figure:
    """The mean of one value an image "n", and its interval by the counts "r n"."""
    values = np.asarray(values, np.float64)
    return figure(values.mean(), counts @ values / len(values))
