"""Precision, recall, density and coverage of manifolds of features.

The manifold of a set is the union of balls around its features, each reaching to the
k-th nearest other one of the set.

    precision  share of samples inside the reference's manifold       k = 3
    recall     share of reference images inside the samples'          k = 3
    density    mean over samples of (reference balls around it) / k   k = 5
    coverage   share of reference balls that hold a sample            k = 5

Two conventions of precision and recall differ in their features and do not compare:
the original (Kynkaanniemi et al. 2019) takes VGG16's second dense layer, and equally
many images of both; guided-diffusion's takes InceptionV3's pool and 10,000 reference
images. Density and coverage: Naeem et al. 2020, who count a ball's border as outside;
precision and recall count it as inside. Distances are f64: guided-diffusion's are f16
where these are finite.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from lDM_jax.core.errors import UserError
from lDM_jax.evaluation.comparison import Comparison, Report
from lDM_jax.evaluation.metrics import bootstrap
from lDM_jax.evaluation.metrics.bootstrap import Figure

NEIGHBOR, DENSITY_NEIGHBOR = 3, 5
BLOCK = 2048

# Iterates over the features of a set from its beginning, in blocks "m d".
Blocks = Callable[[], Iterator[np.ndarray]]


class Membership(NamedTuple):
    """One number per image; the figures are their means.

    inside, density: of the samples; recalled, covered: of the reference's images.
    """

    inside: np.ndarray
    recalled: np.ndarray
    density: np.ndarray
    covered: np.ndarray


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a_i - b_j|^2, f64 "n m", at least 0."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    squares = a @ b.T
    squares *= -2  # in place: the time goes into moving these numbers
    squares += (a**2).sum(axis=1)[:, None]
    squares += (b**2).sum(axis=1)[None]
    return np.maximum(squares, 0.0, out=squares)


def squared_radii(blocks: Blocks, neighbors: tuple[int, ...]) -> np.ndarray:
    """f64 "n r": squared distance of every row to its k-th nearest other one.

    UserError for a set of too few images.
    """
    parts, farthest = [], max(neighbors)
    for rows in blocks():
        nearest = np.full((len(rows), farthest + 1), np.inf)
        for others in blocks():
            squares = squared_distances(rows, others)
            if len(others) > farthest:
                squares.partition(farthest, axis=1)
            both = np.concatenate([nearest, squares[:, : farthest + 1]], axis=1)
            nearest = np.sort(both, axis=1)[:, : farthest + 1]
        parts.append(np.sort(nearest, axis=1)[:, list(neighbors)])
    radii = np.concatenate(parts)
    if not np.isfinite(radii).all():
        raise UserError(
            f"{len(radii)} images have no {farthest}-th nearest other one: give at "
            f"least {farthest + 1}"
        )
    return radii


def membership(reference: Blocks, samples: Blocks) -> Membership:
    """Which samples lie in the reference's manifold, and the reverse."""
    ks = (NEIGHBOR, DENSITY_NEIGHBOR)
    balls, own = squared_radii(reference, ks), squared_radii(samples, ks[:1])[:, 0]
    inside, density = [], []
    recalled, covered = np.zeros(len(balls), bool), np.zeros(len(balls), bool)
    start = 0
    for rows in samples():
        reach = own[start : start + len(rows)]
        start += len(rows)
        hit, around, begin = np.zeros(len(rows), bool), np.zeros(len(rows)), 0
        for others in reference():
            here = slice(begin, begin + len(others))
            begin += len(others)
            squares = squared_distances(rows, others)
            hit |= (squares <= balls[None, here, 0]).any(axis=1)
            within = squares < balls[None, here, 1]
            around += within.sum(axis=1)
            covered[here] |= within.any(axis=0)
            recalled[here] |= (squares <= reach[:, None]).any(axis=0)
        inside.append(hit)
        density.append(around / DENSITY_NEIGHBOR)
    return Membership(
        np.concatenate(inside), recalled, np.concatenate(density), covered
    )


def measure(comparison: Comparison, report: Report) -> None:
    """Report precision, recall, density and coverage."""
    samples, reference = comparison.samples.bank, comparison.reference.bank
    if samples is None or reference is None:
        return
    if min(samples.count, reference.count) <= DENSITY_NEIGHBOR:
        text = f"precision and the like need {DENSITY_NEIGHBOR + 1} images a side"
        report.warnings.append(text)
        return
    members = membership(reference.blocks, samples.blocks)
    replicates, seed = comparison.replicates, comparison.seed
    others = bootstrap.counts(reference.count, replicates, seed=seed)
    for stem, values, bank, counts in (
        ("precision", members.inside, samples, comparison.counts),
        ("recall", members.recalled, reference, others),
        ("density", members.density, samples, comparison.counts),
        ("coverage", members.covered, reference, others),
    ):
        figure = bootstrap.mean_figure(values[bank.order], counts)
        if stem != "density":  # shares
            figure = Figure(*np.clip(figure, 0.0, 1.0).tolist())
        report.figures[comparison.name(stem)] = figure
