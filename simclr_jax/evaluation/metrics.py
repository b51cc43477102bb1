"""Metrics of a classifier, from what it says of images and from their labels."""

from collections.abc import Callable

import numpy as np

# (the predicted classes [N], or the scores [N, classes] if an image may have several;
# labels) -> a share in [0, 1].
Metric = Callable[[np.ndarray, np.ndarray], float]


def top1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose predicted class is their label.

    Args:
      predicted: [N] integers.
      labels: [N] integers.
    """
    return float(np.mean(predicted == labels))


def mean_per_class(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Mean over classes of the share of a class's images that are recognised.

    Classes without images do not count.

    Args:
      predicted: [N] integers of at least 0.
      labels: [N] integers of at least 0.
    """
    sizes = np.bincount(labels)
    recognised = np.bincount(labels, weights=predicted == labels)
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
