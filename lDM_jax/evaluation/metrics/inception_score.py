"""Inception Score: exp of the mutual information of picture and predicted class.

    IS = exp( mean_i KL( p(y | x_i) || p(y) ) ),  the mean over splits of pictures

guided-diffusion's splits are 5,000 pictures each, in the order of the pictures, and its
logits have no bias; torch-fidelity has ten splits of shuffled pictures, also without
bias. IS is thus the one figure here that depends on the order, where there is more than
one split. Source: Salimans et al. 2016; Barratt and Sharma 2018 on what it cannot tell.
"""

from collections.abc import Iterable

import numpy as np

SPLIT_IMAGES = 5000


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities, f64 "n c"."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def score_of_split(logits: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Scores f64 "r" of one split's logits "n c", weighted by the counts "r n".

    exp(H(mean_i p_i) - mean_i H(p_i)), which is the score in terms of entropies.
    """
    log_p = log_softmax(logits)
    p = np.exp(log_p)
    weights = drawn / drawn.sum(axis=1, keepdims=True)
    marginal = weights @ p
    logs = np.log(np.maximum(marginal, np.finfo(np.float64).tiny))
    return np.exp(weights @ (p * log_p).sum(axis=1) - (marginal * logs).sum(axis=1))


def inception_score(
    splits: Iterable[np.ndarray], drawn: np.ndarray
) -> tuple[float, np.ndarray]:
    """The mean over splits of logits "n c", and its replicates "r".

    drawn: counts "r N" over all pictures, in the order of the splits; a split of which
    a replicate drew no picture does not count there.
    """
    scores, replicates, start = [], [], 0
    for logits in splits:
        part = drawn[:, start : start + len(logits)]
        start += len(logits)
        ones = np.ones((1, len(logits)))
        scores.append(score_of_split(logits, ones)[0])
        safe = np.where(part.sum(axis=1, keepdims=True) > 0, part, 1.0)
        replicates.append(score_of_split(logits, safe))
    return float(np.mean(scores)), np.mean(replicates, axis=0)
