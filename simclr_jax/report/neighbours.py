"""The nearest images of some images by the cosine similarity of h."""

from typing import Any

import numpy as np

from simclr_jax.report import thumbnails
from simclr_jax.report.sample import Sample
from simclr_jax.report.sections import Section

NAME, TITLE = "neighbours", "Nearest neighbours in h"
_NUM_QUERIES, _NUM_NEIGHBOURS = 8, 6
_SHORTEST = 1e-30  # of a vector: that of zeros has no direction


def section(sample: Sample) -> Section:
    """Queries of different classes with their nearest images in a sample."""
    queries = choose(sample.labels if sample.has_labels else None, len(sample.h))
    found, similarities = nearest(sample.h, queries, k=_NUM_NEIGHBOURS)
    rows: list[dict[str, Any]] = [
        {
            "query": _image(sample, query),
            "neighbours": [
                {
                    **_image(sample, image),
                    "similarity": similarity,
                    "agrees": _agree(sample, query, image),
                }
                for image, similarity in zip(images, values, strict=True)
            ],
        }
        for query, images, values in zip(
            queries.tolist(), found.tolist(), similarities.tolist(), strict=True
        )
    ]
    agree = [n["agrees"] for row in rows for n in row["neighbours"]]
    known = [value for value in agree if value is not None]
    return Section(
        NAME,
        TITLE,
        "neighbours.html",
        {
            "rows": rows,
            "num_images": len(sample.h),
            "split": sample.split,
            "note": sample.note,
            "step": sample.step,
            "has_labels": sample.has_labels,
            "num_agreeing": sum(known),
            "num_known": len(known),
        },
    )


def unit(h: np.ndarray) -> np.ndarray:
    """Rows of length 1, float64 [n, D]; rows of zeros stay."""
    x = h.astype(np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), _SHORTEST)


def nearest(
    h: np.ndarray, queries: np.ndarray, *, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest other images of some images by cosine similarity.

    Args:
      h: [n, D].
      queries: int64 [Q], rows of h.
      k: at least 1; fewer where there are no more images.

    Returns:
      (rows int64 [Q, min(k, n - 1)], the nearest first and of equally near ones the
      lower row; similarities float64 of the same shape, in [-1, 1]).
    """
    x = unit(h)
    similarities = np.clip(x[queries] @ x.T, -1, 1)
    others = similarities.copy()
    others[np.arange(len(queries)), queries] = -np.inf
    found = np.argsort(-others, axis=1, kind="stable")[:, : min(k, len(h) - 1)]
    return found, np.take_along_axis(similarities, found, axis=1)


def choose(
    labels: np.ndarray | None, count: int, *, number: int = _NUM_QUERIES
) -> np.ndarray:
    """Images to search neighbours of, spread over the classes: rows, int64.

    Args:
      labels: int32 [n], -1 for none; None where there are no classes.
      count: n; the images are in a random order.
      number: at most so many.
    """
    if labels is None:
        return np.arange(min(number, count))
    classes = np.unique(labels[labels >= 0])
    if len(classes) > number:
        spread = np.linspace(0, len(classes) - 1, number).round().astype(int)
        classes = classes[spread]
    members = [np.flatnonzero(labels == label) for label in classes]
    # One of each class, then a second one of each ...
    longest = max(map(len, members))
    in_turn = [of[i] for i in range(longest) for of in members if i < len(of)]
    return np.sort(np.array(in_turn[:number], np.int64))


def _image(sample: Sample, image: int) -> dict[str, str | None]:
    return {
        "picture": thumbnails.data_uri(sample.thumbnails[image]),
        "name": sample.image_names[image],
        "class": sample.class_of(image),
    }


def _agree(sample: Sample, query: int, image: int) -> bool | None:
    """Whether two images have one class; None where it is not known."""
    labels = sample.labels[[query, image]]
    if not sample.has_labels or (labels < 0).any():
        return None
    return bool(labels[0] == labels[1])
