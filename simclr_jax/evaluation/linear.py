"""Multinomial logistic regression on features, by L-BFGS, on all devices."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from simclr_jax import parallel

_HELD_OUT_SHARE = 0.1
# The fit stops where a step lowers the loss by less than this share.
_TOLERANCE = 1e-6


class Classifier(NamedTuple):
    """Logits x @ weights + bias."""

    weights: jax.Array  # [D, classes]
    bias: jax.Array  # [classes]


class _Data(NamedTuple):
    """Rows split over the mesh; filled up with rows of weight 0."""

    x: jax.Array  # [N, D]
    labels: jax.Array  # [N]
    row_weights: jax.Array  # [N], sum 1


def linear_accuracy(
    train_x: np.ndarray,
    train_labels: np.ndarray,
    test_x: np.ndarray,
    test_labels: np.ndarray,
    *,
    l2_penalties: Sequence[float],
    max_steps: int,
    mesh: Mesh,
    seed: int = 0,
) -> tuple[float, dict[str, Any]]:
    """Fits a linear classifier and measures it on test features.

    Features are standardised with the training mean and deviation, which a linear
    classifier could absorb. The L2 penalty is the one with the best accuracy on a tenth
    of the training images; the final fit uses all of them. Test labels decide nothing.

    Args:
      train_x: [N, D] features.
      train_labels: [N] integers of at least 0.
      test_x: [M, D] features.
      test_labels: [M].
      l2_penalties: candidates; coefficient of half the squared norm of the weights,
        beside the mean loss.
      max_steps: of each fit.
      mesh: rows are split over it.
      seed: of the choice of the held-out tenth.

    Returns:
      (accuracy in [0, 1], what was chosen: `l2_penalty` and `held_out_accuracy` of each
      candidate).
    """
    mean = train_x.mean(axis=0)
    deviation = train_x.std(axis=0) + 1e-6
    train_x, test_x = (train_x - mean) / deviation, (test_x - mean) / deviation
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1

    shuffled = np.random.default_rng(seed).permutation(len(train_x))
    held_out, kept = np.split(shuffled, [max(1, int(len(train_x) * _HELD_OUT_SHARE))])
    start = _zeros(train_x.shape[1], num_classes)
    scores: dict[float, float] = {}
    classifiers: dict[float, Classifier] = {}
    # From strong to weak, each fit starting from the one before.
    data = _shard(train_x[kept], train_labels[kept], mesh)
    for penalty in sorted(l2_penalties, reverse=True):
        start = _fit(start, data, penalty, max_steps=max_steps)
        classifiers[penalty] = start
        fitted = parallel.fetch(mesh, start)
        scores[penalty] = accuracy(fitted, train_x[held_out], train_labels[held_out])
    best = max(scores, key=lambda penalty: (scores[penalty], penalty))
    data = _shard(train_x, train_labels, mesh)
    final = parallel.fetch(
        mesh, _fit(classifiers[best], data, best, max_steps=max_steps)
    )
    return accuracy(final, test_x, test_labels), {
        "l2_penalty": best,
        "held_out_accuracy": {
            f"{penalty:g}": score for penalty, score in scores.items()
        },
    }


def accuracy(classifier: Classifier, x: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose largest logit is the label's."""
    logits = x @ np.asarray(classifier.weights) + np.asarray(classifier.bias)
    return float(np.mean(np.argmax(logits, axis=1) == labels))


def _zeros(width: int, num_classes: int) -> Classifier:
    return Classifier(jnp.zeros((width, num_classes)), jnp.zeros(num_classes))


def _shard(x: np.ndarray, labels: np.ndarray, mesh: Mesh) -> _Data:
    missing = -len(x) % mesh.size
    arrays = (
        np.pad(x.astype(np.float32), ((0, missing), (0, 0))),
        np.pad(labels, (0, missing)),
        np.pad(np.full(len(x), 1 / len(x), np.float32), (0, missing)),
    )
    return _Data(*parallel.put(parallel.batch_sharding(mesh), arrays))


def _objective(classifier: Classifier, data: _Data, penalty: float) -> jax.Array:
    logits = (
        jnp.matmul(data.x, classifier.weights, precision=jax.lax.Precision.HIGHEST)
        + classifier.bias
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, data.labels)
    squares = jnp.sum(jnp.square(classifier.weights))
    return jnp.sum(losses * data.row_weights) + 0.5 * penalty * squares


_Carry = tuple[Classifier, Any, jax.Array, jax.Array]


@functools.partial(jax.jit, static_argnames="max_steps")
def _fit(
    start: Classifier, data: _Data, penalty: float, *, max_steps: int
) -> Classifier:
    objective: Callable[[Classifier], jax.Array] = functools.partial(
        _objective, data=data, penalty=penalty
    )
    solver = optax.lbfgs(memory_size=10)
    value_and_grad = optax.value_and_grad_from_state(objective)

    # Carried: classifier, solver state, the loss one step back, steps made.
    def unfinished(carry: _Carry) -> jax.Array:
        _, state, last, step = carry
        value = optax.tree.get(state, "value")
        going_down = last - value > _TOLERANCE * jnp.abs(last)
        return (step < max_steps) & ((step < 2) | going_down)

    def advance(carry: _Carry) -> _Carry:
        classifier, state, _, step = carry
        last = optax.tree.get(state, "value")
        value, gradient = value_and_grad(classifier, state=state)
        updates, state = solver.update(
            gradient, state, classifier, value=value, grad=gradient, value_fn=objective
        )
        return optax.apply_updates(classifier, updates), state, last, step + 1

    carry = (start, solver.init(start), jnp.array(jnp.inf), jnp.array(0))
    return jax.lax.while_loop(unfinished, advance, carry)[0]
