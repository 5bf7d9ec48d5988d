"""Precision, recall, density, coverage: are samples where pictures are, and all of it?

The manifold of a set is the union of balls around its features, each reaching to the
k-th nearest other one of the set.

    precision  share of samples inside the reference's manifold       k = 3
    recall     share of reference pictures inside the samples'        k = 3
    density    mean over samples of (reference balls around it) / k   k = 5
    coverage   share of reference balls that hold a sample            k = 5

Two conventions of precision and recall differ in the features, and must not be mixed:
the original (Kynkaanniemi et al. 2019) takes VGG16's second dense layer, and equally
many pictures of both; guided-diffusion's takes InceptionV3's pool and 10,000 reference
pictures. Density and coverage: Naeem et al. 2020, who count a ball's border as outside;
precision and recall count it as inside. Distances are f64: guided-diffusion's are f16
where these are finite.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from lDM_jax.core.errors import UserError

NEIGHBOUR, DENSITY_NEIGHBOUR = 3, 5
BLOCK = 2048

# Makes the features of a set anew, in blocks "m d".
Blocks = Callable[[], Iterator[np.ndarray]]


class Membership(NamedTuple):
    """One number a picture; the figures are their means.

    inside, density: of the samples; recalled, covered: of the reference's pictures.
    """

    inside: np.ndarray
    recalled: np.ndarray
    density: np.ndarray
    covered: np.ndarray


def blocks_of(features: np.ndarray) -> Blocks:
    """The blocks of an array "n d"."""
    starts = range(0, len(features), BLOCK)
    return lambda: (features[start : start + BLOCK] for start in starts)


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a_i - b_j|^2, f64 "n m", at least 0."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    squares = a @ b.T
    squares *= -2  # in place: the time goes into moving these numbers
    squares += (a**2).sum(axis=1)[:, None]
    squares += (b**2).sum(axis=1)[None]
    return np.maximum(squares, 0.0, out=squares)


def squared_radii(blocks: Blocks, neighbours: tuple[int, ...]) -> np.ndarray:
    """f64 "n r": squared distance of every row to its k-th nearest other one.

    UserError for a set of too few pictures.
    """
    found, most = [], max(neighbours)
    for rows in blocks():
        nearest = np.full((len(rows), most + 1), np.inf)
        for others in blocks():
            squares = squared_distances(rows, others)
            if len(others) > most:
                squares.partition(most, axis=1)
            both = np.concatenate([nearest, squares[:, : most + 1]], axis=1)
            nearest = np.sort(both, axis=1)[:, : most + 1]
        found.append(np.sort(nearest, axis=1)[:, list(neighbours)])
    radii = np.concatenate(found)
    if not np.isfinite(radii).all():
        raise UserError(
            f"{len(radii)} pictures have no {most}-th nearest other one: give at "
            f"least {most + 1}"
        )
    return radii


def membership(reference: Blocks, samples: Blocks) -> Membership:
    """Which samples lie in the reference's manifold, and the reverse."""
    ks = (NEIGHBOUR, DENSITY_NEIGHBOUR)
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
        density.append(around / DENSITY_NEIGHBOUR)
    return Membership(
        np.concatenate(inside), recalled, np.concatenate(density), covered
    )
