"""What a metric works on and reports to: `Comparison` and `Report`.

Names say how a figure was made, so that two of different making cannot be mixed up.
`inception` with its legacy input has the plain names fid, sfid, is, kid, and
guided-diffusion's precision and recall as precision_adm and recall_adm; every other
extractor appends its label, and a distance that is not of InceptionV3 is fd, not fid:

    emoji              fd_emoji sfd_emoji is_emoji kd_emoji precision_emoji ..
    inception-clean    fid_clean sfid_clean is_clean kid_clean precision_clean ..
    vgg                precision_original recall_original (density, coverage likewise)
    dinov2             fd_dinov2 kd_dinov2 precision_dinov2 ..
    clip               cmmd
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from lDM_jax.evaluation.extractors import Extractor
from lDM_jax.evaluation.metrics import bootstrap
from lDM_jax.evaluation.metrics.bootstrap import Figure
from lDM_jax.evaluation.sides import Side

OTHER_NETWORKS = {"fid": "fd", "sfid": "sfd", "kid": "kd"}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two sides, measured with the features of one extractor.

    replicates, seed: of the bootstrap. paired: image i of both sides shows the same (a
    reconstruction), so both are resampled together.
    """

    samples: Side
    reference: Side
    extractor: Extractor
    replicates: int = 20
    seed: int = 0
    paired: bool = False

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """f64 "r n": how often each replicate counts each sample, in `Bank.order`."""
        bank = self.samples.bank
        count = max(bank.count if bank else 0, 1)
        return bootstrap.counts(count, self.replicates, seed=self.seed)

    @functools.cached_property
    def weights(self) -> np.ndarray:
        """`counts` in the order of the samples."""
        return self.samples.bank.to_image_order(self.counts)

    def name(self, stem: str) -> str:
        """The name of a figure by the rule of the module, from that of the papers."""
        extractor = self.extractor
        if extractor.name == "clip" and stem == "kid":
            return "cmmd"
        if extractor.name != "inception":
            stem = OTHER_NETWORKS.get(stem, stem)
        if extractor.label:
            return f"{stem}_{extractor.label}"
        return f"{stem}_adm" if stem in ("precision", "recall") else stem


@dataclasses.dataclass
class Report:
    """figures by name; extra: numbers without interval; warnings for the reader."""

    figures: dict[str, Figure]
    extra: dict[str, float] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)

    def as_json(self) -> dict:
        """{"fid": .., "fid_95": [low, high], ..} with ten digits."""
        row = {}
        for name, figure in self.figures.items():
            row[name] = round_figure(figure.value)
            if np.isfinite(figure.low):
                row[f"{name}_95"] = [round_figure(end) for end in figure[1:]]
        return row | {name: round_figure(value) for name, value in self.extra.items()}


# Adds to the report what it can measure of the comparison.
Metric = Callable[[Comparison, Report], None]


def round_figure(value: float) -> float:
    """Ten digits: those that do not depend on batching and the order of summation."""
    return float(f"{value:.10g}")
