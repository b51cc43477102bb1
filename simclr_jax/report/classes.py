"""Which classes are recognised, and which are taken for which."""

from typing import Any

import numpy as np
from ml_collections import config_dict

from simclr_jax.errors import DataError
from simclr_jax.evaluation import class_figures, knn
from simclr_jax.report import neighbours
from simclr_jax.report.class_receipts import Judged
from simclr_jax.report.sample import Sample
from simclr_jax.report.sections import Section

NAME, TITLE = "classes", "Classes and confusions"
# More classes than this are not readable side by side.
_MOST_IN_MATRIX = 30
_NUM_CONFUSIONS = 20
_MOST_NEIGHBOURS = 20  # that vote


def section(judged: Judged) -> Section:
    """A table of classes, the worst first; the most frequent confusions; a matrix."""
    rows = accuracies(judged)
    chosen = in_matrix(judged)
    return Section(
        NAME,
        TITLE,
        "classes.html",
        {
            "origin": judged.origin,
            "rows": rows,
            "num_classes": len(judged.names),
            "without_images": sum(row["count"] == 0 for row in rows),
            "confusions": confusions(judged)[:_NUM_CONFUSIONS],
            "matrix_names": [judged.names[i] for i in chosen],
            "matrix": matrix(judged, chosen),
        },
    )


def of_sample(sample: Sample, config: config_dict.ConfigDict) -> Judged:
    """Classes of a sample, each image's by the votes of the nearest others.

    Raises:
      DataError: there are no labels, or fewer than two images with one.
    """
    chosen = np.flatnonzero(sample.labels >= 0)
    if sample.class_names is None or not len(chosen):
        raise DataError(f"the images of {sample.split} have no labels")
    if len(chosen) < 2:
        raise DataError(
            f"one image of {sample.split} has a label, and voting needs two"
        )
    labels = sample.labels[chosen]
    count = max(len(sample.class_names), int(labels.max()) + 1)
    k = min(_MOST_NEIGHBOURS, len(chosen) - 1)
    found, similarities = neighbours.nearest(
        sample.h[chosen], np.arange(len(chosen)), k=k
    )
    temperature = config.evaluation.knn_temperature
    predicted = knn.vote(similarities, labels[found], count, temperature)
    figures = class_figures.count(
        predicted, labels, num_classes=count, names=sample.class_names
    )
    assert figures is not None  # one class an image
    return Judged(
        figures.names,
        count_pairs(predicted, labels),
        f"the {k} nearest others in h of each of {len(chosen):,} images of "
        f"{sample.split} vote (step {sample.step}): less exact than an evaluation",
    )


def count_pairs(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Predictions as `Judged.pairs`."""
    both = np.stack([labels, predicted], axis=1)
    pairs, counts = np.unique(both, axis=0, return_counts=True)
    return np.concatenate([pairs, counts[:, None]], axis=1).astype(np.int64)


def accuracies(judged: Judged) -> list[dict[str, Any]]:
    """For each class its images, the share recognised and its interval; worst first.

    Classes without images, of which nothing is known, come last.
    """
    size = len(judged.names)
    labels, predicted, images = judged.pairs.T
    hit = labels == predicted
    counts = np.bincount(labels, weights=images, minlength=size).astype(int)
    hits = np.bincount(labels[hit], weights=images[hit], minlength=size).astype(int)
    rows = []
    for name, hit_count, count in zip(
        judged.names, hits.tolist(), counts.tolist(), strict=True
    ):
        low, high = (
            class_figures.wilson_interval(hit_count, count) if count else (None, None)
        )
        share = hit_count / count if count else None
        rows.append(
            {"name": name, "count": count, "share": share, "low": low, "high": high}
        )
    return sorted(rows, key=_worst_first)


def _worst_first(row: dict[str, Any]) -> tuple[bool, float, int]:
    # Of classes with one share, that of more images is the surer one.
    return row["share"] is None, row["share"] or 0.0, -row["count"]


def confusions(judged: Judged) -> list[dict[str, Any]]:
    """Pairs of a class and another one that its images were taken for.

    The most frequent first, by the number of images.
    """
    totals = _totals(judged)
    wrong = _wrong(judged)
    ordered = wrong[np.argsort(-wrong[:, 2], kind="stable")]
    return [
        {
            "label": judged.names[label],
            "predicted": judged.names[predicted],
            "images": images,
            "share": images / int(totals[label]),
        }
        for label, predicted, images in ordered.tolist()
    ]


def in_matrix(judged: Judged, most: int = _MOST_IN_MATRIX) -> list[int]:
    """The classes to show in a matrix, ascending: all, or those confused the most.

    Of many classes, pairs are taken in the order of their numbers of images, those of
    both directions together.
    """
    if len(judged.names) <= most:
        return [*range(len(judged.names))]
    wrong = _wrong(judged)
    ends, where = np.unique(np.sort(wrong[:, :2], axis=1), axis=0, return_inverse=True)
    sums = np.bincount(where.reshape(-1), weights=wrong[:, 2], minlength=len(ends))
    chosen: dict[int, None] = {}
    for pair in ends[np.argsort(-sums, kind="stable")].tolist():
        if len({*chosen, *pair}) <= most:
            chosen |= dict.fromkeys(pair)
    return sorted(chosen)


def matrix(judged: Judged, chosen: list[int]) -> list[list[dict[str, Any]]]:
    """Cells by label (rows) and predicted class (columns) of chosen classes.

    `share` is of all images of the label, in [0, 1].
    """
    totals = _totals(judged)
    images = {(a, b): n for a, b, n in judged.pairs.tolist()}
    return [
        [
            {
                "images": images.get((label, predicted), 0),
                "share": images.get((label, predicted), 0) / max(1, int(totals[label])),
            }
            for predicted in chosen
        ]
        for label in chosen
    ]


def _wrong(judged: Judged) -> np.ndarray:
    return judged.pairs[judged.pairs[:, 0] != judged.pairs[:, 1]]


def _totals(judged: Judged) -> np.ndarray:
    """Images by label."""
    labels, _, images = judged.pairs.T
    return np.bincount(labels, weights=images, minlength=len(judged.names))
