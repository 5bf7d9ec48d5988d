"""From two sides to named figures, each with its interval, and what to beware of.

Names say with what a figure was made, so that two of different making cannot be mixed
up. `inception` with its legacy input has the plain names fid, sfid, is, kid, and
guided-diffusion's precision and recall as precision_adm and recall_adm; every other
extractor appends its label, and a distance that is not of InceptionV3 is fd, not fid:

    emoji              fd_emoji sfd_emoji is_emoji kd_emoji precision_emoji ..
    inception-clean    fid_clean sfid_clean is_clean kid_clean precision_clean ..
    vgg                precision_original recall_original (density, coverage likewise)
    dinov2             fd_dinov2 kd_dinov2 precision_dinov2 ..
    clip               cmmd

Replicates resample the samples and hold the reference fixed; recall and coverage are
means over the reference's pictures and resample these.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lDM_jax.core.errors import UserError
from lDM_jax.evaluation.extractors import Extractor
from lDM_jax.evaluation.metrics import (
    bootstrap,
    inception_score,
    kernel_distances,
    manifolds,
)
from lDM_jax.evaluation.metrics.bootstrap import Figure
from lDM_jax.evaluation.metrics.frechet import FrechetDistance
from lDM_jax.evaluation.sides import Side, check_same

KINDS = ("frechet", "spatial", "score", "kernel", "manifold")
ENOUGH_IMAGES = 10_000
COPIES = 0.01  # a larger share of exact copies is no accident
MANIFOLD_LEAST = manifolds.DENSITY_NEIGHBOUR + 1


@dataclasses.dataclass
class Report:
    """figures by name; extra: numbers without interval; warnings for the reader."""

    figures: dict[str, Figure]
    extra: dict[str, float]
    warnings: list[str]

    def as_json(self) -> dict:
        """{"fid": .., "fid_95": [low, high], ..} with ten digits."""
        found = {}
        for name, figure in self.figures.items():
            found[name] = rounded(figure.value)
            if np.isfinite(figure.low):
                found[f"{name}_95"] = [rounded(figure.low), rounded(figure.high)]
        return found | {name: rounded(value) for name, value in self.extra.items()}


def rounded(value: float) -> float:
    """Ten digits: what batching and summation leave alone."""
    return float(f"{value:.10g}")


def name_of(kind: str, extractor: Extractor) -> str:
    """The name of a figure, by the rule of the module."""
    label = extractor.label
    distance = "fid" if extractor.name == "inception" else "fd"
    plain = {
        "frechet": distance,
        "spatial": f"s{distance}",
        "score": "is",
        "kernel": "kid" if extractor.name == "inception" else "kd",
    }
    if extractor.name == "clip" and kind == "kernel":
        return "cmmd"
    name = plain.get(kind, kind)
    if not label and kind in ("precision", "recall"):
        return f"{name}_adm"
    return f"{name}_{label}" if label else name


def measure(
    samples: Side,
    reference: Side,
    extractor: Extractor,
    *,
    kinds: Sequence[str] = KINDS,
    replicates: int = 20,
    seed: int = 0,
    paired: bool = False,
) -> Report:
    """Every figure of `kinds` that these sides allow.

    Distances of statistics need statistics on both sides, all else pictures of the
    samples. paired: picture i of both sides shows the same (a reconstruction): they are
    resampled together, and there is no kernel distance, which takes the sides for
    independent. UserError if the sides were prepared differently.
    """
    check_same(samples, reference)
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise UserError(f"{', '.join(unknown)}: valid are {', '.join(KINDS)}")
    report = Report({}, {}, [*samples.warnings, *reference.warnings])
    count = samples.bank.count if samples.bank else 0
    drawn = bootstrap.counts(max(count, 1), replicates, seed=seed)
    wanted = [kind for kind in KINDS if kind in kinds and not skips(kind, extractor)]
    if paired:
        wanted = [kind for kind in wanted if kind != "kernel"]
    for kind in wanted:
        if kind == "frechet" or (
            kind == "spatial" and samples.spatial and reference.spatial
        ):
            frechet(report, kind, samples, reference, extractor, drawn, paired)
        elif samples.bank and kind == "score" and samples.bank.has("logits"):
            score(report, samples, extractor, drawn)
        elif samples.bank and reference.bank and kind == "kernel":
            kernel(report, samples, reference, extractor, drawn)
        elif samples.bank and reference.bank and kind == "manifold":
            manifold(report, samples, reference, extractor, drawn, seed)
    if not paired:
        beware(report, samples, reference)
    return report


def skips(kind: str, extractor: Extractor) -> bool:
    """VGG16 serves precision and recall only, CLIP the kernel distance (CMMD)."""
    only = {"vgg": "manifold", "clip": "kernel"}
    return only.get(extractor.name, kind) != kind


def frechet(
    report: Report,
    kind: str,
    samples: Side,
    reference: Side,
    extractor: Extractor,
    drawn: np.ndarray,
    paired: bool,
) -> None:
    """The distance, its interval, and at few samples its bias."""
    key = "pool" if kind == "frechet" else "spatial"
    mine, theirs = getattr(samples, key), getattr(reference, key)
    distance, bank = FrechetDistance(theirs), samples.bank
    value, name = distance(mine), name_of(kind, extractor)
    if bank is None:
        report.figures[name] = bootstrap.figure(value, np.zeros(0))
        few = samples.pool.count
        if few and few < ENOUGH_IMAGES:
            report.warnings.append(f"{name} of {few} pictures is biased upwards")
        return
    found = []
    for weights in bank.in_picture_order(drawn):
        resampled = distance
        if paired:
            resampled = FrechetDistance(reference.bank.gaussian(key, weights))
        found.append(resampled.quickly(bank.gaussian(key, weights)))
    report.figures[name] = bootstrap.figure(value, np.array(found))
    if bank.count < ENOUGH_IMAGES and not paired:
        report.warnings.append(
            f"{name} of {bank.count} samples is too high by about "
            f"{bias(distance, bank, key, value):.3g}; compare it only with figures of "
            f"as many samples (the field's are of 50,000)"
        )


def bias(distance: FrechetDistance, bank, key: str, value: float) -> float:
    """The excess of a distance at n samples, which falls as 1 / n: the mean over two
    halves of d(n / 2), less d(n). Source: Chong and Forsyth 2020."""
    if bank.count < 8:
        return float("nan")
    first = bank.in_picture_order(np.arange(bank.count) % 2.0)
    halves = [bank.gaussian(key, mask) for mask in (first, 1 - first)]
    return float(np.mean([distance.quickly(half) for half in halves]) - value)


def score(report: Report, samples: Side, extractor: Extractor, drawn) -> None:
    """The Inception Score of the samples, in the order of the pictures."""
    bank = samples.bank
    splits = bank.blocks("logits", inception_score.SPLIT_IMAGES)
    weights = bank.in_picture_order(drawn)
    value, found = inception_score.inception_score(splits, weights)
    report.figures[name_of("score", extractor)] = bootstrap.figure(value, found)


def kernel(report: Report, samples: Side, reference: Side, extractor, drawn) -> None:
    """The kernel distance, and its deviation over subsets as other tools print it."""
    counts = samples.bank.count, reference.bank.count
    if min(counts) < 2:
        return
    name = name_of("kernel", extractor)
    if name == "cmmd":
        weights = samples.bank.in_picture_order(drawn)
        value, found = kernel_distances.cmmd(
            samples.bank.blocks, reference.bank.blocks, weights
        )
        report.figures[name] = bootstrap.figure(value, found)
        return
    value, std, found = kernel_distances.kid(
        samples.bank.rows, reference.bank.rows, counts=counts, drawn=drawn
    )
    report.figures[name] = bootstrap.figure(value, found)
    report.extra[f"{name}_subset_std"] = std


def manifold(
    report: Report, samples: Side, reference: Side, extractor, drawn, seed: int
) -> None:
    """Precision, recall, density, coverage."""
    mine, theirs = samples.bank, reference.bank
    if min(mine.count, theirs.count) < MANIFOLD_LEAST:
        report.warnings.append(
            f"precision and the like need {MANIFOLD_LEAST} pictures a side"
        )
        return
    members = manifolds.membership(theirs.blocks, mine.blocks)
    other = bootstrap.counts(theirs.count, len(drawn), seed=seed)
    for name, values, bank, weights in (
        ("precision", members.inside, mine, drawn),
        ("recall", members.recalled, theirs, other),
        ("density", members.density, mine, drawn),
        ("coverage", members.covered, theirs, other),
    ):
        found = bootstrap.mean_figure(values[bank.order], weights)
        if name != "density":  # shares
            found = Figure(*np.clip(found, 0.0, 1.0).tolist())
        report.figures[name_of(name, extractor)] = found


def beware(report: Report, samples: Side, reference: Side) -> None:
    """Warnings about the pictures themselves."""
    if samples.bank is not None:
        copies, count = samples.bank.duplicates(), samples.bank.count
        if copies > 1 and copies > COPIES * count:
            report.warnings.append(
                f"{copies} of {count} samples are exact copies of others: were seeds "
                "used twice, or rows of a padded batch kept?"
            )
    lossy = [bool(side.record.get("lossy_files")) for side in (samples, reference)]
    if lossy[0] != lossy[1]:
        which = samples if lossy[0] else reference
        report.warnings.append(
            f"{which.name} holds JPEG or WebP files and the other side does not: their "
            "compression alone moves the figures"
        )
    if reference.record.get("transform", {}).get("flip"):
        report.warnings.append(f"{reference.name} was mirrored at random")
    splits = reference.record.get("split")
    if splits in ("validation", "test"):
        report.warnings.append(
            f"the reference is the {splits} split; the field's FIDs of generators are "
            "of the training split"
        )
