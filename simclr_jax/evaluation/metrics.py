"""Metrics of a classifier, from its scores and the labels."""

from collections.abc import Callable

import numpy as np

# Scores [N, classes] and labels -> a share in [0, 1].
Metric = Callable[[np.ndarray, np.ndarray], float]


def top1(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose largest score is the label's.

    Args:
      scores: [N, classes].
      labels: [N] integers in [0, classes).
    """
    return float(np.mean(np.argmax(scores, axis=1) == labels))


def mean_per_class(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean over classes of the share of a class's rows that are recognised.

    Classes without rows do not count.

    Args:
      scores: [N, classes].
      labels: [N] integers in [0, classes).
    """
    hits = np.argmax(scores, axis=1) == labels
    sizes = np.bincount(labels)
    recognised = np.bincount(labels, weights=hits)
    return float(np.mean(recognised[sizes > 0] / sizes[sizes > 0]))


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """11-point interpolated average precision, as in the VOC 2007 devkit.

    The mean, over the recalls r = 0, 0.1, ..., 1, of the highest precision at a recall
    of at least r.

    Args:
      scores: [N]; equal scores rank by row.
      labels: [N]: 1 for positives, 0 for negatives; rows of -1 are left out.

    Raises:
      ValueError: no label is positive.
    """
    known = labels >= 0
    scores, positive = scores[known], labels[known] == 1
    total = np.sum(positive)
    if total == 0:
        raise ValueError("average precision needs a positive")
    positive = positive[np.argsort(-scores, kind="stable")]
    true_positives = np.cumsum(positive)
    precision = true_positives / np.arange(1, len(positive) + 1)
    # Compared as integers, so that 3 of 10 is a recall of 0.3 without rounding.
    reached = 10 * true_positives[:, None] >= np.arange(11) * total
    return float(np.mean(np.max(np.where(reached, precision[:, None], 0), axis=0)))


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean of `average_precision` over the classes that have a positive.

    Args:
      scores: [N, classes].
      labels: [N, classes]: 1 where an image shows the class, 0 where not, -1 where it
        does not count.

    Raises:
      ValueError: no class has a positive.
    """
    with_positive = np.flatnonzero((labels == 1).any(axis=0))
    if not len(with_positive):
        raise ValueError("mean average precision needs a positive")
    return float(
        np.mean([average_precision(scores[:, c], labels[:, c]) for c in with_positive])
    )


TOP1 = "top-1 accuracy"
MEAN_PER_CLASS = "mean per class accuracy"
MAP = "11-point mAP"
METRICS: dict[str, Metric] = {
    TOP1: top1,
    MEAN_PER_CLASS: mean_per_class,
    MAP: mean_average_precision,
}
