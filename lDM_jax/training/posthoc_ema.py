"""Averages of the parameters of any width, after the run, from stored profiles.

A power-function average of exponent g after n updates weighs update i by the integral
over (i - 1, i] of the profile

    p(t; g, n) = (g + 1) t^g / n^(g + 1)            on [0, n], 0 beyond
    <p(.; a, m), p(.; b, n)> = (a + 1)(b + 1) / (a + b + 1) (m / n)^b / n,   m <= n

so a weighted sum of stored averages is an average too, with the sum of their profiles
as its profile. `solve` finds the weights whose profile is nearest to the target's, in
least squares: Karras et al. 2023 (arXiv 2312.02696), section 3.2. Two widths a snapshot
make the set rich. `training.state` tracks the profiles, the loop stores them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from lDM_jax.core.errors import UserError
from lDM_jax.training.state import power_exponent
from lDM_jax.weights.checkpoint import SNAPSHOTS, finished_steps, load_snapshot

FAR = 0.1  # relative distance of profiles beyond which the result is no good


class Profile(NamedTuple):
    """A power-function average: its exponent, and the updates that are done."""

    exponent: float
    step: int


class Reconstruction(NamedTuple):
    """params, the step they are of, how many averages were used, and how far the
    profile of the result is from the target's, relative to its norm."""

    params: dict
    step: int
    used: int
    distance: float


def inner(first: Profile, second: Profile) -> float:
    """The inner product of two profiles."""
    if first.step > second.step:
        first, second = second, first
    (a, m), (b, n) = first, second
    return (a + 1) * (b + 1) / (a + b + 1) * (m / n) ** b / n


def solve(stored: Sequence[Profile], target: Profile) -> tuple[np.ndarray, float]:
    """(weights f64 of the stored averages, relative distance of the profiles)."""
    norms = np.array([inner(p, p) for p in stored]) ** 0.5
    gram = np.array([[inner(p, q) for q in stored] for p in stored])
    products = np.array([inner(p, target) for p in stored])
    scaled = np.linalg.lstsq(gram / np.outer(norms, norms), products / norms)[0]
    weights = scaled / norms
    length = inner(target, target)
    square = length - 2 * weights @ products + weights @ gram @ weights
    return weights, float(np.sqrt(max(square, 0.0) / length))


def reconstruct(
    workdir: str | Path, stds: Sequence[float], std: float, step: int | None = None
) -> Reconstruction:
    """The average of width `std` at `step` (the last stored one) of a run.

    stds: the widths of the run's profiles, config.train.ema_stds. UserError when there
    are none, for a step beyond the stored ones, and for a width that they cannot make.
    """
    folder = Path(workdir) / SNAPSHOTS
    steps = finished_steps(folder)
    if not stds or not steps:
        raise UserError(
            f"{workdir} has no stored averages: train with "
            '--config.train.ema_stds="(0.05, 0.1)"'
        )
    step = steps[-1] if step is None else step
    steps = [number for number in steps if number <= step]
    if not steps or step > steps[-1]:
        raise UserError(
            f"step {step} is not covered: averages are stored at the steps "
            f"{', '.join(map(str, finished_steps(folder)))}"
        )
    stored = [Profile(power_exponent(s), n) for n in steps for s in stds]
    weights, distance = solve(stored, Profile(power_exponent(std), step))
    if distance > FAR:
        raise UserError(
            f"an average of width {std} at step {step} is {distance:.0%} away from "
            f"what the stored ones can make (widths {tuple(stds)}, steps {steps}); "
            f"valid: distances up to {FAR:.0%}, so a width between these, or more "
            "snapshots"
        )
    total = None
    for place, number in enumerate(steps):
        for which, average in enumerate(load_snapshot(workdir, number)):
            weight = weights[place * len(stds) + which]
            part = jax.tree.map(lambda leaf, w=weight: w * leaf.astype(float), average)
            total = part if total is None else jax.tree.map(np.add, total, part)
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), total)
    return Reconstruction(params, step, len(stored), distance)
