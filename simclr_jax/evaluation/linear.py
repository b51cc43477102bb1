"""Logistic regression on features, by L-BFGS, on all devices."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from simclr_jax import parallel
from simclr_jax.evaluation import metrics
from simclr_jax.evaluation.metrics import Metric

_HELD_OUT_SHARE = 0.1
# The fit stops when a step lowers the loss by less than this fraction.
_TOLERANCE = 1e-6
# Of the preconditioner. The curvature is about _CURVATURE, the maximum of p (1 - p),
# times the features' second moments, to which _RIDGE is added.
_CURVATURE = 0.25
_RIDGE = 1e-3
# The moments are estimated from this many rows per feature.
_ROWS_PER_FEATURE = 10
# Wider features have no preconditioner: its matrix would be too large.
_MAX_WIDTH = 8192


class Classifier(NamedTuple):
    """Logits x @ weights + bias."""

    weights: jax.Array  # [D, classes]
    bias: jax.Array  # [classes]


class _Data(NamedTuple):
    """Rows split over the mesh, padded with rows of weight 0."""

    x: jax.Array  # [N, D]
    labels: jax.Array  # [N], or [N, classes] if a row may have several
    row_weights: jax.Array  # [N], sum 1


def linear_evaluation(
    train_x: np.ndarray,
    train_labels: np.ndarray,
    test_x: np.ndarray,
    test_labels: np.ndarray,
    *,
    l2_penalties: Sequence[float],
    max_steps: int,
    mesh: Mesh,
    metric: Metric = metrics.top1,
    seed: int = 0,
) -> tuple[float, dict[str, Any]]:
    """Fits a linear classifier and measures it on test features.

    Features are standardised with the mean and standard deviation of the training
    features, a linear map that the classifier could absorb. The L2 penalty is the best
    candidate on a held-out tenth of the training images; the final fit uses all of
    them. Test labels select nothing: the value is that of the final fit.

    Args:
      train_x: [N, D] features.
      train_labels: [N] integers of at least 0, for one multinomial regression; or
        [N, classes] of 1, 0 and -1 (does not count), for one binary regression per
        class.
      test_x: [M, D] features.
      test_labels: [M], or [M, classes].
      l2_penalties: candidates for the coefficient of half the squared norm of the
        weights, which is added to the mean loss. A single candidate is used without a
        search.
      max_steps: of each fit.
      mesh: rows are split over it.
      metric: the value's, from scores and labels.
      seed: of the choice of the held-out tenth.

    Returns:
      (value in [0, 1], {'l2_penalty': the selected one, 'held_out_values': the metric
      of each candidate on the held-out images}).
    """
    mean = train_x.mean(axis=0)
    deviation = train_x.std(axis=0) + 1e-6
    train_x, test_x = (train_x - mean) / deviation, (test_x - mean) / deviation
    num_classes = (
        int(max(train_labels.max(), test_labels.max())) + 1
        if train_labels.ndim == 1
        else train_labels.shape[1]
    )
    moments = _second_moments(train_x, mesh)

    shuffled = np.random.default_rng(seed).permutation(len(train_x))
    held_out, kept = np.split(shuffled, [max(1, int(len(train_x) * _HELD_OUT_SHARE))])
    start = _zeros(train_x.shape[1], num_classes)
    values: dict[float, float] = {}
    classifiers = {l2_penalties[0]: start}
    if len(l2_penalties) > 1:
        # From strong to weak; each fit starts from the previous one.
        data = _shard(train_x[kept], train_labels[kept], mesh)
        for penalty in sorted(l2_penalties, reverse=True):
            start = _fit(start, data, moments, penalty, max_steps=max_steps)
            classifiers[penalty] = start
            scores = logits(parallel.fetch(mesh, start), train_x[held_out])
            values[penalty] = metric(scores, train_labels[held_out])
    best = max(classifiers, key=lambda penalty: (values.get(penalty, 0.0), penalty))
    data = _shard(train_x, train_labels, mesh)
    final = _fit(classifiers[best], data, moments, best, max_steps=max_steps)
    value = metric(logits(parallel.fetch(mesh, final), test_x), test_labels)
    return value, {
        "l2_penalty": best,
        "held_out_values": {f"{penalty:g}": v for penalty, v in values.items()},
    }


def logits(classifier: Classifier, x: np.ndarray) -> np.ndarray:
    """Scores [N, classes] of features [N, D]."""
    return x @ np.asarray(classifier.weights) + np.asarray(classifier.bias)


def _zeros(width: int, num_classes: int) -> Classifier:
    return Classifier(jnp.zeros((width, num_classes)), jnp.zeros(num_classes))


def _shard(x: np.ndarray, labels: np.ndarray, mesh: Mesh) -> _Data:
    missing = -len(x) % mesh.size
    arrays = (
        np.pad(x.astype(np.float32), ((0, missing), (0, 0))),
        np.pad(labels, [(0, missing), *[(0, 0)] * (labels.ndim - 1)]),
        np.pad(np.full(len(x), 1 / len(x), np.float32), (0, missing)),
    )
    return _Data(*parallel.put(parallel.batch_sharding(mesh), arrays))


def _second_moments(x: np.ndarray, mesh: Mesh) -> jax.Array | None:
    """About x^T x / N [D, D], from some rows; None above `_MAX_WIDTH` features."""
    count, width = x.shape
    if width > _MAX_WIDTH:
        return None
    rows = x[:: max(1, count // (_ROWS_PER_FEATURE * width))].astype(np.float32)
    filled = np.pad(rows, ((0, -len(rows) % mesh.size), (0, 0)))
    outer = jax.jit(_outer, out_shardings=parallel.replicated(mesh))
    return outer(parallel.put(parallel.batch_sharding(mesh), filled)) / len(rows)


def _outer(rows: jax.Array) -> jax.Array:
    return _product(rows.T, rows)


def _objective(classifier: Classifier, data: _Data, penalty: float) -> jax.Array:
    return _loss(_transpose(classifier), data, penalty)


class _Transposed(NamedTuple):
    """A classifier during the fit: weights with the classes first.

    The gradient is then a product without a transposition, which takes a fifth of the
    time on CPUs.
    """

    weights: jax.Array  # [classes, D]
    bias: jax.Array  # [classes]


def _transpose(classifier: Classifier) -> _Transposed:
    return _Transposed(classifier.weights.T, classifier.bias)


def _loss(transposed: _Transposed, data: _Data, penalty: float) -> jax.Array:
    scores = _product(data.x, transposed.weights.T) + transposed.bias
    if data.labels.ndim == 1:
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, data.labels)
    else:
        binary = optax.sigmoid_binary_cross_entropy(scores, data.labels)
        losses = jnp.sum(jnp.where(data.labels >= 0, binary, 0.0), axis=1)
    squares = jnp.sum(jnp.square(transposed.weights))
    return jnp.sum(losses * data.row_weights) + 0.5 * penalty * squares


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


class _Preconditioner(NamedTuple):
    """A change of variables in which the curvature of the loss is about the identity.

    The curvature is about proportional to the features' second moments, which are badly
    conditioned: without the change, L-BFGS takes several times as many steps.
    """

    root: jax.Array  # [D, D], lower triangular; root @ root.T is the curvature
    inverse: jax.Array  # of the root

    @classmethod
    def create(cls, moments: jax.Array, penalty: float) -> "_Preconditioner":
        identity = jnp.eye(len(moments))
        curvature = _CURVATURE * (moments + _RIDGE * identity) + penalty * identity
        root = jnp.linalg.cholesky(curvature)
        inverse = jax.scipy.linalg.solve_triangular(root, identity, lower=True)
        return cls(root, inverse)

    def enter(self, transposed: _Transposed) -> _Transposed:
        return transposed._replace(weights=_product(transposed.weights, self.root))

    def leave(self, inner: _Transposed) -> _Transposed:
        return inner._replace(weights=_product(inner.weights, self.inverse))


_Carry = tuple[_Transposed, Any, jax.Array, jax.Array]


@functools.partial(jax.jit, static_argnames="max_steps")
def _fit(
    start: Classifier,
    data: _Data,
    moments: jax.Array | None,
    penalty: float,
    *,
    max_steps: int,
) -> Classifier:
    """Minimises `_objective` from `start`."""
    change = None if moments is None else _Preconditioner.create(moments, penalty)

    def objective(inner: _Transposed) -> jax.Array:
        return _loss(change.leave(inner) if change else inner, data, penalty)

    solver = optax.lbfgs(memory_size=10)
    value_and_grad = optax.value_and_grad_from_state(objective)

    # The carry: weights, solver state, the previous step's loss, number of steps.
    def unfinished(carry: _Carry) -> jax.Array:
        _, state, last, step = carry
        value = optax.tree.get(state, "value")
        still_falling = last - value > _TOLERANCE * jnp.abs(last)
        return (step < max_steps) & ((step < 2) | still_falling)

    def advance(carry: _Carry) -> _Carry:
        inner, state, _, step = carry
        last = optax.tree.get(state, "value")
        value, gradient = value_and_grad(inner, state=state)
        updates, state = solver.update(
            gradient, state, inner, value=value, grad=gradient, value_fn=objective
        )
        return optax.apply_updates(inner, updates), state, last, step + 1

    inner = change.enter(_transpose(start)) if change else _transpose(start)
    carry = (inner, solver.init(inner), jnp.array(jnp.inf), jnp.array(0))
    inner = jax.lax.while_loop(unfinished, advance, carry)[0]
    fitted = change.leave(inner) if change else inner
    return Classifier(fitted.weights.T, fitted.bias)
