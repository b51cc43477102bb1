"""Linear evaluation by logistic regression, on all devices."""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from simclr_jax import parallel
from simclr_jax.evaluation import blocks, logistic, metrics
from simclr_jax.evaluation.blocks import Block
from simclr_jax.evaluation.features import Features
from simclr_jax.evaluation.logistic import Classifier, Data, Scale
from simclr_jax.evaluation.metrics import Metric
from simclr_jax.parallel import SPLIT, WHOLE

_LOG = logging.getLogger(__name__)
_HELD_OUT_SHARE = 0.1
# Where no images can be held out to choose.
DEFAULT_PENALTY = 1e-2
# The second moments are estimated from this many rows per feature.
_ROWS_PER_FEATURE = 10
# Wider features have no preconditioner: its matrix would be too large.
_MAX_WIDTH = 8192


def linear_evaluation(
    train: Features,
    test: Features,
    *,
    l2_penalties: Sequence[float],
    max_steps: int,
    metric: Metric = metrics.top1,
    seed: int = 0,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Fits a linear classifier and applies it to test features.

    Features are standardised with the mean and standard deviation of the training
    features, a linear map that the classifier could absorb. The L2 penalty is the best
    candidate on held-out training images, see `held_out_images`; the final fit uses all
    of them. Test labels select nothing.

    Features are neither copied nor moved: each device computes its part of loss and
    gradient, a block of rows at a time, and held-out rows have weight 0.

    Args:
      train: N features with labels: [N] integers of at least 0, for one multinomial
        regression; or [N, classes] of 1, 0 and -1 (does not count), for one binary
        regression per class.
      test: features with such labels.
      l2_penalties: candidates for the coefficient of half the squared norm of the
        weights, which is added to the mean loss. A single candidate is used without a
        search.
      max_steps: of each fit.
      metric: of held-out images, from `predict`'s output and labels.
      seed: of the choice of the held-out images.

    Returns:
      (`predict`'s output for the test features, {'l2_penalty': the selected one,
      'held_out_values': the metric of each candidate on the held-out images,
      'l2_penalty_by': how it was selected}).
    """
    mesh = train.mesh
    scale = _standardise(train)
    moments = _second_moments(train, scale)
    num_classes = (
        int(max(train.labels.max(), test.labels.max())) + 1
        if train.labels.ndim == 1
        else train.labels.shape[1]
    )
    labels = train.by_row(train.labels, fill=0)

    def data(images: np.ndarray) -> Data:
        return Data(train.x, labels, _row_weights(train, images), scale)

    everything = np.arange(len(train))
    start = logistic.zeros(train.width, num_classes)
    values: dict[float, float] = {}
    held_out, words = np.empty(0, np.int64), "the only candidate"
    if len(l2_penalties) > 1:
        held_out, words = held_out_images(train.labels, seed=seed)
    if not len(held_out):
        best = _nearest_to_default(l2_penalties)
        classifiers = {best: start}
    else:
        classifiers = {}
        kept = np.setdiff1d(everything, held_out)
        # From strong to weak; each fit starts from the previous one.
        without_held_out = data(kept)
        for penalty in sorted(l2_penalties, reverse=True):
            start = logistic.fit(
                start,
                without_held_out,
                moments,
                penalty,
                max_steps=max_steps,
                mesh=mesh,
            )
            classifiers[penalty] = start
            predicted = predict(start, train, scale)[held_out]
            values[penalty] = metric(predicted, train.labels[held_out])
            _LOG.info("linear: penalty %g: %.4f held out", penalty, values[penalty])
        best = max(values, key=lambda penalty: (values[penalty], penalty))
    if len(l2_penalties) > 1:
        _LOG.info("linear: penalty %g, by %s", best, words)
    final = logistic.fit(
        classifiers[best],
        data(everything),
        moments,
        best,
        max_steps=max_steps,
        mesh=mesh,
    )
    return predict(final, test, scale), {
        "l2_penalty": best,
        "held_out_values": {f"{penalty:g}": v for penalty, v in values.items()},
        "l2_penalty_by": words,
    }


def held_out_images(labels: np.ndarray, *, seed: int) -> tuple[np.ndarray, str]:
    """Training images that judge the penalties, and how they were chosen.

    A random tenth, if every class is both in it and in the rest. Otherwise a tenth of
    each class, or one image, of the classes with two or more; other classes stay with
    the training images. None where fewer than half of the classes have two: what a
    classifier has no example of would decide.

    Args:
      labels: [N] integers of at least 0; or [N, classes] of 1, 0 and -1, where a class
        is an image's if it has 1.
      seed: of the draw.

    Returns:
      (numbers of images, ascending for a choice by class; words for the receipt).
    """
    count = len(labels)
    shuffled = np.random.default_rng(seed).permutation(count)
    tenth, rest = np.split(shuffled, [max(1, int(count * _HELD_OUT_SHARE))])
    if labels.ndim > 1:
        of_all, of_tenth, of_rest = (
            (labels[images] == 1).any(axis=0) for images in (shuffled, tenth, rest)
        )
        if of_tenth.any() and np.array_equal(of_all, of_rest):
            return tenth, f"a random tenth, {len(tenth)} of {count} training images"
        missing = "a class of several has positives in one part only"
        return tenth[:0], f"default, since {missing}"
    sizes = np.bincount(labels)
    classes = np.flatnonzero(sizes)
    if all(len(np.unique(labels[part])) == len(classes) for part in (tenth, rest)):
        return tenth, f"a random tenth, {len(tenth)} of {count} training images"
    divided = classes[sizes[classes] >= 2]
    single = len(classes) - len(divided)
    if 2 * len(divided) < len(classes):
        why = f"{single} of {len(classes)} classes have one training image"
        return tenth[:0], f"default, since {why}"
    held_out = [
        members[: max(1, int(len(members) * _HELD_OUT_SHARE))]
        for c in divided
        if len(members := shuffled[labels[shuffled] == c])
    ]
    images = np.sort(np.concatenate(held_out))
    words = f"a share of each class, {len(images)} of {count} training images"
    if single:
        words += f"; none of the {single} classes with one image"
    return images, words


def _nearest_to_default(l2_penalties: Sequence[float]) -> float:
    """The candidate that is nearest to `DEFAULT_PENALTY` in ratio."""
    tiny = np.finfo(np.float64).tiny
    return min(
        l2_penalties,
        key=lambda penalty: abs(np.log(max(penalty, tiny) / DEFAULT_PENALTY)),
    )


def predict(
    classifier: Classifier, features: Features, scale: Scale | None = None
) -> np.ndarray:
    """What a classifier says of every image, for the functions of `metrics`.

    Args:
      classifier: of features, or of standardised ones.
      features: N of them.
      scale: of standardised ones.

    Returns:
      The classes [N] with the highest scores; or the scores [N, classes], if images may
      have several classes.
    """
    mesh = features.mesh
    several = features.labels.ndim > 1
    rows = _predict(classifier, features.x, scale, several=several, mesh=mesh)
    return features.by_image(parallel.fetch(mesh, rows))


@functools.partial(jax.jit, static_argnames=("several", "mesh"))
def _predict(
    classifier: Classifier,
    x: jax.Array,
    scale: Scale | None,
    *,
    several: bool,
    mesh: Mesh,
) -> jax.Array:
    def compute(classifier: Classifier, x: jax.Array, scale: Scale | None) -> jax.Array:
        def fill(block: Block, rows: jax.Array) -> jax.Array:
            part = block.of(x) if scale is None else scale(block.of(x))
            scores = logistic.product(part, classifier.weights) + classifier.bias
            new = scores if several else jnp.argmax(scores, axis=1).astype(rows.dtype)
            return block.put(rows, new)

        num_classes = len(classifier.bias)
        rows = (
            jnp.zeros((len(x), num_classes), jnp.float32)
            if several
            else jnp.zeros(len(x), jnp.int32)
        )
        size = logistic.block_size(x.shape[1], num_classes)
        return blocks.fold(fill, rows, len(x), size)

    run = parallel.on_each_device(compute, mesh, (WHOLE, SPLIT, WHOLE), SPLIT)
    return run(classifier, x, scale)


def _row_weights(features: Features, images: np.ndarray) -> jax.Array:
    """[P]: equal weights of sum 1 for some images, 0 for the others."""
    weights = np.zeros(len(features), np.float32)
    weights[images] = 1 / len(images)
    return features.by_row(weights, fill=0)


def _standardise(features: Features) -> Scale:
    """The mean and standard deviation of all features."""
    weights = _row_weights(features, np.arange(len(features)))
    return _mean_and_deviation(features.x, weights, mesh=features.mesh)


@functools.partial(jax.jit, static_argnames="mesh")
def _mean_and_deviation(x: jax.Array, weights: jax.Array, *, mesh: Mesh) -> Scale:
    def compute(x: jax.Array, weights: jax.Array) -> Scale:
        def mean_of(function: Callable[[jax.Array], jax.Array]) -> jax.Array:
            def add(block: Block, total: jax.Array) -> jax.Array:
                part = jnp.where(block.is_new, block.of(weights), 0.0)
                return total + jnp.sum(function(block.of(x)) * part[:, None], axis=0)

            nothing = jnp.zeros(x.shape[1])
            size = logistic.block_size(x.shape[1])
            return jax.lax.psum(blocks.fold(add, nothing, len(x), size), "data")

        mean = mean_of(lambda rows: rows)
        variance = mean_of(lambda rows: jnp.square(rows - mean))
        return Scale(mean, jnp.sqrt(variance) + 1e-6)

    return parallel.on_each_device(compute, mesh, (SPLIT, SPLIT), WHOLE)(x, weights)


def _second_moments(features: Features, scale: Scale) -> jax.Array | None:
    """About x^T x / N [D, D] of standardised features, from some rows.

    None above `_MAX_WIDTH` features.
    """
    if features.width > _MAX_WIDTH:
        return None
    stride = max(1, len(features) // (_ROWS_PER_FEATURE * features.width))
    rows = features.take(np.arange(0, len(features), stride))
    weights = _row_weights(rows, np.arange(len(rows)))
    return _outer(rows.x, weights, scale, mesh=features.mesh)


@functools.partial(jax.jit, static_argnames="mesh")
def _outer(x: jax.Array, weights: jax.Array, scale: Scale, *, mesh: Mesh) -> jax.Array:
    rows = scale(x)
    product = logistic.product((rows * weights[:, None]).T, rows)
    return jax.lax.with_sharding_constraint(product, parallel.replicated(mesh))
