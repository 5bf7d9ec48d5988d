"""Two sides -> figures, each with its interval, and warnings about their reading.

`METRICS` is the one list of metrics: a function of `Comparison` and `Report`, in a file
of `metrics/`, becomes a figure of every command by one line here.

Replicates resample the samples and hold the reference fixed; recall and coverage are
means over the reference's images and resample these.
"""

from collections.abc import Sequence

from lDM_jax.core.errors import UserError
from lDM_jax.evaluation.comparison import Comparison, Metric, Report
from lDM_jax.evaluation.extractors import Extractor
from lDM_jax.evaluation.metrics import (
    frechet,
    inception_score,
    kernel_distances,
    manifolds,
)
from lDM_jax.evaluation.sides import Side, check_same

# By the names of --figures, in the order of the report.
METRICS: dict[str, Metric] = {
    "frechet": frechet.measure,
    "spatial": frechet.measure_spatial,
    "score": inception_score.measure,
    "kernel": kernel_distances.measure,
    "manifold": manifolds.measure,
}
COPIES = 0.01  # a larger share of exact copies is no accident


def measure(
    samples: Side,
    reference: Side,
    extractor: Extractor,
    *,
    kinds: Sequence[str] | None = None,
    replicates: int = 20,
    seed: int = 0,
    paired: bool = False,
) -> Report:
    """Every figure of `kinds` (all, if None) that these sides allow.

    Distances of statistics need statistics on both sides, all else the samples' images.
    paired: as in `Comparison`; a pair has no kernel distance, which takes the sides for
    independent. UserError if the sides were prepared differently.
    """
    check_same(samples, reference)
    unknown = sorted(set(kinds or ()) - set(METRICS))
    if unknown:
        raise UserError(f"{', '.join(unknown)}: valid are {', '.join(METRICS)}")
    comparison = Comparison(samples, reference, extractor, replicates, seed, paired)
    report = Report({}, warnings=[*samples.warnings, *reference.warnings])
    for kind, metric in METRICS.items():
        if (kinds is None or kind in kinds) and extractor.only in ("", kind):
            metric(comparison, report)
    if not paired:
        report.warnings += warnings_of(samples, reference)
    return report


def warnings_of(samples: Side, reference: Side) -> list[str]:
    """Warnings about the images themselves."""
    texts = []
    if samples.bank is not None:
        copies, count = samples.bank.duplicates(), samples.bank.count
        if copies > 1 and copies > COPIES * count:
            texts.append(
                f"{copies} of {count} samples are exact copies of others: were seeds "
                "used twice, or rows of a padded batch kept?"
            )
    lossy = [bool(side.record.get("lossy_files")) for side in (samples, reference)]
    if lossy[0] != lossy[1]:
        side = samples if lossy[0] else reference
        texts.append(
            f"{side.name} holds JPEG or WebP files and the other side does not: their "
            "compression alone moves the figures"
        )
    if reference.record.get("transform", {}).get("flip"):
        texts.append(f"{reference.name} was mirrored at random")
    split = reference.record.get("split")
    if split in ("validation", "test"):
        texts.append(
            f"the reference is the {split} split; the field's FIDs of generators are "
            "of the training split"
        )
    return texts
