"""Inception Score: exp of the mutual information of image and predicted class.

    IS = exp( mean_i KL( p(y | x_i) || p(y) ) ),  the mean over splits of images

guided-diffusion's splits are 5,000 images each, in the order of the images, and its
logits have no bias; torch-fidelity has ten splits of shuffled images, also without
bias. IS is thus the one figure here that depends on the order, where there is more than
one split. Source: Salimans et al. 2016; Barratt and Sharma 2018 on what it cannot tell.
"""

from collections.abc import Iterable

import numpy as np

from lDM_jax.evaluation.comparison import Comparison, Report
from lDM_jax.evaluation.metrics import bootstrap

SPLIT_IMAGES = 5000


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities, f64 "n c"."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def split_scores(logits: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Scores f64 "r" of one split's logits "n c", weighted by the counts "r n".

    exp(H(mean_i p_i) - mean_i H(p_i)), which is the score in terms of entropies.
    """
    log_p = log_softmax(logits)
    p, weights = np.exp(log_p), counts / counts.sum(axis=1, keepdims=True)
    marginal = weights @ p
    logs = np.log(np.maximum(marginal, np.finfo(np.float64).tiny))
    return np.exp(weights @ (p * log_p).sum(axis=1) - (marginal * logs).sum(axis=1))


def inception_score(
    splits: Iterable[np.ndarray], counts: np.ndarray
) -> tuple[float, np.ndarray]:
    """The mean over splits of logits "n c", and its replicates "r".

    counts: "r N" over all images, in the order of the splits; a split of which
    a replicate drew no image does not count there.
    """
    scores, replicates, start = [], [], 0
    for logits in splits:
        part = counts[:, start : start + len(logits)]
        start += len(logits)
        scores.append(split_scores(logits, np.ones((1, len(logits))))[0])
        safe = np.where(part.sum(axis=1, keepdims=True) > 0, part, 1.0)
        replicates.append(split_scores(logits, safe))
    return float(np.mean(scores)), np.mean(replicates, axis=0)


def measure(comparison: Comparison, report: Report) -> None:
    """Report the score of samples whose features include logits."""
    bank = comparison.samples.bank
    if bank is None or not bank.has("logits"):
        return
    splits = bank.blocks("logits", SPLIT_IMAGES)
    value, replicates = inception_score(splits, comparison.weights)
    report.figures[comparison.name("is")] = bootstrap.figure(value, replicates)
