"""What a classifier's figure is worth: by class, against a constant, with intervals."""

import csv
import dataclasses
import functools
import io
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from simclr_jax.errors import printable

CONFIDENCE = 0.95
MOST_COLUMNS = 1000  # of a confusion matrix; spreadsheets take 16,384


def wilson_interval(
    hits: int, count: int, *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """The interval of a share from independent trials (Wilson, 1927).

    Unlike the normal approximation it is right for few trials and for shares near 0 or
    1, and stays within them.

    Args:
      hits: from 0 to `count`.
      count: at least 1.
      confidence: of the interval, in (0, 1).

    Returns:
      (low, high), in [0, 1].
    """
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    share, extra = hits / count, z * z / count
    centre = (share + extra / 2) / (1 + extra)
    half = z / (1 + extra) * math.sqrt(share * (1 - share) / count + extra / count / 4)
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == count else min(1.0, centre + half)
    return low, high


def confusion_matrix(
    predicted: np.ndarray, labels: np.ndarray, num_classes: int
) -> np.ndarray:
    """Numbers of images, int64 [C, C], by label (rows) and predicted class (columns).

    Args:
      predicted: integers [N] in [0, C).
      labels: integers [N] in [0, C).
      num_classes: C.
    """
    pairs = labels.astype(np.int64) * num_classes + predicted
    counts = np.bincount(pairs, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


@dataclasses.dataclass(frozen=True)
class ClassFigures:
    """A classifier's predictions for a test split.

    Attributes:
      predicted: integers [N] in [0, C).
      labels: integers [N] in [0, C).
      names: of the C classes, as they are on disk; `printable` ones are shown.
    """

    predicted: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]

    @property
    def num_test(self) -> int:
        """N, the number of test images."""
        return len(self.labels)

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """Test images of each class, [C]."""
        return np.bincount(self.labels, minlength=len(self.names))

    @functools.cached_property
    def hits(self) -> np.ndarray:
        """Recognised test images of each class, [C]."""
        right = self.labels[self.predicted == self.labels]
        return np.bincount(right, minlength=len(self.names))

    @property
    def accuracy(self) -> float:
        """Share of all test images that are recognised."""
        return int(self.hits.sum()) / self.num_test

    @property
    def interval(self) -> tuple[float, float]:
        """Of `accuracy`, by Wilson."""
        return wilson_interval(int(self.hits.sum()), self.num_test)

    @property
    def balanced_accuracy(self) -> float:
        """Mean over the classes with test images of the share that is recognised."""
        seen = self.counts > 0
        return float(np.mean(self.hits[seen] / self.counts[seen]))

    @property
    def balanced_interval(self) -> tuple[float, float]:
        """Of `balanced_accuracy`: Wilson's of the classes, combined.

        The distances from estimate to limit of independent shares add in squares (Zou
        and Donner, 2008), so that classes of few images widen it as they should.
        """
        seen = np.flatnonzero(self.counts)
        shares = self.hits[seen] / self.counts[seen]
        limits = np.array(
            [wilson_interval(int(self.hits[c]), int(self.counts[c])) for c in seen]
        )
        below, above = np.sqrt(np.sum((limits - shares[:, None]) ** 2, axis=0)) / len(
            seen
        )
        mean = self.balanced_accuracy
        return max(0.0, float(mean - below)), min(1.0, float(mean + above))

    @property
    def majority(self) -> tuple[str, float]:
        """The most frequent class of the test images, and its share of them.

        The share is the accuracy of the best constant answer.
        """
        largest = int(np.argmax(self.counts))
        return self.names[largest], int(self.counts[largest]) / self.num_test

    @property
    def without_images(self) -> list[str]:
        """Names of the classes without test images, of which nothing is known."""
        return [self.names[c] for c in np.flatnonzero(self.counts == 0)]

    def summary(self) -> dict[str, Any]:
        """For a receipt, as JSON values; without the classes one by one."""
        name, share = self.majority
        return {
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "balanced_accuracy": self.balanced_accuracy,
            "balanced_interval": list(self.balanced_interval),
            "majority_class": printable(name),
            "majority_accuracy": share,
        }

    def by_class(self) -> list[dict[str, Any]]:
        """For a receipt, as JSON values; None where a class has no test images."""
        return [
            {
                "class": printable(name),
                "num_test": int(count),
                "accuracy": int(hits) / int(count) if count else None,
                "interval": [*wilson_interval(int(hits), int(count))]
                if count
                else None,
            }
            for name, count, hits in zip(
                self.names, self.counts, self.hits, strict=True
            )
        ]

    def as_csv(self) -> str:
        """The confusion matrix: a header, then a row for each class of the labels.

        Of more than `MOST_COLUMNS` classes it has a row for each pair that occurs:
        label, predicted class, number of images.
        """
        names = [printable(name) for name in self.names]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if len(names) > MOST_COLUMNS:
            writer.writerow(["label", "predicted", "images"])
            pairs = np.stack([self.labels, self.predicted], axis=1)
            found, images = np.unique(pairs, axis=0, return_counts=True)
            for (label, predicted), number in zip(
                found.tolist(), images.tolist(), strict=True
            ):
                writer.writerow([names[label], names[predicted], number])
            return text.getvalue()
        writer.writerow(["label / predicted", *names])
        matrix = confusion_matrix(self.predicted, self.labels, len(names))
        for name, row in zip(names, matrix.tolist(), strict=True):
            writer.writerow([name, *row])
        return text.getvalue()


def count(
    predicted: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int | None,
    names: Sequence[str] | None,
) -> ClassFigures | None:
    """Counts predictions; None where an image may have several classes.

    Args:
      predicted: integers [N] of at least 0.
      labels: integers [N] of at least 0, or [N, classes].
      num_classes: of the dataset; more where labels or predictions have more.
      names: of the classes, in their order; their numbers where None.
    """
    if labels.ndim > 1:
        return None
    size = max(num_classes or 0, int(labels.max()) + 1, int(predicted.max()) + 1)
    known = [*(names or [])][:size]
    known += [str(number) for number in range(len(known), size)]
    return ClassFigures(predicted, labels, tuple(known))
