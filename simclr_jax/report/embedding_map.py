"""A map of h in two dimensions: t-SNE (van der Maaten and Hinton, 2008) after PCA."""

import colorsys
from typing import Any

import numpy as np

from simclr_jax.data import optional
from simclr_jax.errors import ConfigError, RunFailed
from simclr_jax.report import names, thumbnails
from simclr_jax.report.neighbours import unit
from simclr_jax.report.sample import Sample
from simclr_jax.report.sections import Section

NAME, TITLE = "map", "Map of h"
_COMPONENTS = 50  # that t-SNE takes
_PERPLEXITY = 30.0
_ITERATIONS = 600  # enough for a few thousand images
_FEWEST = 10  # images for t-SNE; fewer are placed by their principal components
_SAME = 1e-6  # standard deviation of directions that are one
_THUMBNAIL = 32
# More classes have no legend; each has its own hue.
_MOST_IN_LEGEND = 20
# Distinguishable in the common kinds of colour blindness (Okabe and Ito), and on light
# and dark grounds.
_PALETTE = (
    *("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7"),
    *("#56b4e9", "#a39a00", "#8c564b", "#7f7f7f", "#7a5cc6"),
)


def section(sample: Sample, *, seed: int) -> Section:
    """The map, coloured by class where there are labels.

    Args:
      sample: of images.
      seed: of t-SNE, which gives the same map for the same seed and h.

    Raises:
      ConfigError: scikit-learn is not installed.
      RunFailed: all images have the same h.
    """
    points, method = place(sample.h, seed=seed)
    small = np.stack([thumbnails.of_image(x, _THUMBNAIL) for x in sample.thumbnails])
    picture, columns = thumbnails.sheet(small)
    return Section(
        NAME,
        TITLE,
        "embedding_map.html",
        {
            "method": method,
            "num_images": len(sample.h),
            "split": sample.split,
            "note": sample.note,
            "step": sample.step,
            "has_labels": sample.has_labels,
            "sheet": thumbnails.data_uri(picture),
            "plot": {
                "columns": columns,
                "side": _THUMBNAIL,
                "names": list(sample.image_names),
                "groups": _groups(sample, points),
            },
        },
    )


def place(h: np.ndarray, *, seed: int) -> tuple[np.ndarray, str]:
    """Points of a plane, close where the directions of h are.

    Args:
      h: float [n, D], finite.
      seed: of t-SNE.

    Returns:
      (float64 [n, 2] with 0 in the middle and a largest distance of 1 along an axis;
      the method, in words).

    Raises:
      ConfigError: scikit-learn is not installed.
      RunFailed: the directions of h are all the same.
    """
    if not optional.is_installed("sklearn"):
        what = "the map of h"
        raise ConfigError(optional.install_hint(what, "scikit-learn", extra="report"))
    # Imported here, since it takes a while, and only the report needs it.
    import threadpoolctl
    from sklearn import manifold

    x = unit(h)
    x -= x.mean(axis=0)
    if len(h) > 1 and x.std(axis=0).max() < _SAME:
        raise RunFailed(
            f"the h of all {len(h)} images point in the same direction: the encoder "
            "has collapsed"
        )
    reduced = _principal(x, _COMPONENTS)
    if len(h) < _FEWEST:
        points, method = _principal(x, 2), "the first two principal components"
    else:
        perplexity = min(_PERPLEXITY, (len(h) - 1) / 3)
        # One thread: the order of sums is that of every other time, and threads that
        # wait for each other would be slow beside a training.
        with threadpoolctl.threadpool_limits(1):
            points = manifold.TSNE(
                init="pca",
                perplexity=perplexity,
                max_iter=_ITERATIONS,
                random_state=seed,
            ).fit_transform(reduced)
        method = (
            f"t-SNE (perplexity {perplexity:g}, seed {seed}) of the first "
            f"{reduced.shape[1]} principal components"
        )
    points = points.astype(np.float64)
    points -= (points.max(axis=0) + points.min(axis=0)) / 2
    return points / max(float(np.abs(points).max()), 1e-12), method


def _principal(x: np.ndarray, count: int) -> np.ndarray:
    """The first principal components of centred rows, [n, at least 2]."""
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    components = (u * s)[:, :count]
    # The sign of a component is arbitrary: the largest entry is positive.
    largest = np.abs(components).argmax(axis=0)
    components *= np.where(components[largest, range(len(s[:count]))] < 0, -1, 1)
    return np.pad(components, ((0, 0), (0, max(0, 2 - components.shape[1]))))


def colour(number: int, count: int) -> str:
    """The colour of a class, '#rrggbb'; those of neighbouring numbers differ."""
    if count <= len(_PALETTE):
        return _PALETTE[number]
    hue = number * 0.618034 % 1.0  # by the golden ratio, which spreads any number
    rgb = colorsys.hls_to_rgb(hue, (0.45, 0.6, 0.52)[number % 3], 0.65)
    return "#" + "".join(f"{round(255 * x):02x}" for x in rgb)


def _groups(sample: Sample, points: np.ndarray) -> list[dict[str, Any]]:
    """The points by class, those without one last; `label` is text for Plotly."""
    labels = sample.labels if sample.has_labels else np.full(len(points), -1)
    present = np.unique(labels[labels >= 0])
    in_legend = 0 < len(present) <= _MOST_IN_LEGEND
    groups = []
    for number, label in enumerate([*present.tolist(), -1]):
        images = np.flatnonzero(labels == label)
        if not len(images):
            continue
        name = sample.class_of(int(images[0])) if label >= 0 else None
        groups.append(
            {
                "label": names.plot_label("no label" if name is None else name, 24),
                "name": name,
                "colour": colour(number, len(present)) if label >= 0 else None,
                "legend": in_legend,
                "images": images.tolist(),
                "x": points[images, 0].round(4).tolist(),
                "y": points[images, 1].round(4).tolist(),
            }
        )
    return groups
