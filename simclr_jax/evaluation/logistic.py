"""Logistic regression by L-BFGS on features that are split over the devices."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from simclr_jax import parallel
from simclr_jax.evaluation import blocks
from simclr_jax.evaluation.blocks import Block
from simclr_jax.parallel import SPLIT, WHOLE

# The fit stops when a step lowers the loss by less than this fraction.
_TOLERANCE = 1e-6
# Of the preconditioner. The curvature is about _CURVATURE, the maximum of p (1 - p),
# times the features' second moments, to which _RIDGE is added.
_CURVATURE = 0.25
_RIDGE = 1e-3
# Of a block of standardised rows, or of their scores, on each device.
_BLOCK_BYTES = 2**26


class Classifier(NamedTuple):
    """Logits x @ weights + bias."""

    weights: jax.Array  # [D, classes]
    bias: jax.Array  # [classes]


class Data(NamedTuple):
    """The training rows, split over the mesh, and how they are standardised."""

    x: jax.Array  # [P, D], as the encoder gave them
    labels: jax.Array  # [P], or [P, classes] if a row may have several
    row_weights: jax.Array  # [P], sum 1; 0 for rows that do not count
    scale: "Scale"


class Scale(NamedTuple):
    """Of standardised features (x - mean) / deviation.

    They are computed a block at a time, so that no standardised copy is held.
    """

    mean: jax.Array  # [D]
    deviation: jax.Array  # [D]

    def __call__(self, x: jax.Array) -> jax.Array:
        """Standardises rows [n, D]."""
        return (x - self.mean) / self.deviation


def zeros(width: int, num_classes: int) -> Classifier:
    """Where the first fit starts."""
    return Classifier(jnp.zeros((width, num_classes)), jnp.zeros(num_classes))


def block_size(width: int, num_classes: int = 1) -> int:
    """Rows that are standardised, or have their scores computed, at a time."""
    return max(1, _BLOCK_BYTES // (4 * max(width, num_classes)))


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """A matrix product in float32, on TPUs too."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


class _Transposed(NamedTuple):
    """A classifier during the fit: weights with the classes first.

    The gradient is then a product without a transposition, which takes a fifth of the
    time on CPUs.
    """

    weights: jax.Array  # [classes, D]
    bias: jax.Array  # [classes]


def _transpose(classifier: Classifier) -> _Transposed:
    return _Transposed(classifier.weights.T, classifier.bias)


@functools.partial(jax.jit, static_argnames="mesh")
def objective(
    classifier: Classifier, data: Data, penalty: float, *, mesh: Mesh
) -> jax.Array:
    """What `fit` minimises: the mean loss, and half the penalty times |weights|^2."""
    return _loss(_transpose(classifier), data, penalty, mesh)


def _loss(transposed: _Transposed, data: Data, penalty: float, mesh: Mesh) -> jax.Array:
    squares = jnp.sum(jnp.square(transposed.weights))
    return _data_loss(transposed, data, mesh) + 0.5 * penalty * squares


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _data_loss(transposed: _Transposed, data: Data, mesh: Mesh) -> jax.Array:
    """The weighted mean of the rows' losses.

    Its gradient is computed along with it: a reverse pass would keep what it needs of
    every block, which is as much as the features.
    """
    return _data_loss_and_gradient(transposed, data, mesh)[0]


def _data_loss_and_gradient(
    transposed: _Transposed, data: Data, mesh: Mesh
) -> tuple[jax.Array, _Transposed]:
    def compute(transposed: _Transposed, data: Data) -> tuple[jax.Array, _Transposed]:
        def add(block: Block, total: Any) -> Any:
            part = data._replace(
                x=block.of(data.x),
                labels=block.of(data.labels),
                row_weights=jnp.where(block.is_new, block.of(data.row_weights), 0.0),
            )
            return jax.tree.map(
                jnp.add, total, jax.value_and_grad(_block_loss)(transposed, part)
            )

        nothing = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, transposed))
        size = block_size(data.x.shape[1], len(transposed.bias))
        return jax.lax.psum(blocks.fold(add, nothing, len(data.x), size), "data")

    specs = Data._make([SPLIT, SPLIT, SPLIT, WHOLE])
    return parallel.on_each_device(compute, mesh, (WHOLE, specs), WHOLE)(
        transposed, data
    )


def _data_loss_backward(
    mesh: Mesh, gradient: _Transposed, cotangent: jax.Array
) -> tuple[_Transposed, None]:
    return jax.tree.map(lambda leaf: leaf * cotangent, gradient), None


_data_loss.defvjp(_data_loss_and_gradient, _data_loss_backward)


def _block_loss(transposed: _Transposed, data: Data) -> jax.Array:
    scores = product(data.scale(data.x), transposed.weights.T) + transposed.bias
    if data.labels.ndim == 1:
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, data.labels)
    else:
        binary = optax.sigmoid_binary_cross_entropy(scores, data.labels)
        losses = jnp.sum(jnp.where(data.labels >= 0, binary, 0.0), axis=1)
    return jnp.sum(losses * data.row_weights)


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
        return transposed._replace(weights=product(transposed.weights, self.root))

    def leave(self, inner: _Transposed) -> _Transposed:
        return inner._replace(weights=product(inner.weights, self.inverse))


_Carry = tuple[_Transposed, Any, jax.Array, jax.Array]


@functools.partial(jax.jit, static_argnames=("max_steps", "mesh"))
def fit(
    start: Classifier,
    data: Data,
    moments: jax.Array | None,
    penalty: float,
    *,
    max_steps: int,
    mesh: Mesh,
) -> Classifier:
    """Minimises `objective`.

    Args:
      start: the first classifier; replicated, as is the result.
      data: to fit.
      moments: [D, D], about x^T x / N of the standardised features; None for a fit
        without preconditioner.
      penalty: coefficient of half the squared norm of the weights.
      max_steps: of L-BFGS.
      mesh: that the data are split over.
    """
    change = None if moments is None else _Preconditioner.create(moments, penalty)

    def of_inner(inner: _Transposed) -> jax.Array:
        return _loss(change.leave(inner) if change else inner, data, penalty, mesh)

    solver = optax.lbfgs(memory_size=10)
    value_and_grad = optax.value_and_grad_from_state(of_inner)

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
            gradient, state, inner, value=value, grad=gradient, value_fn=of_inner
        )
        return optax.apply_updates(inner, updates), state, last, step + 1

    inner = change.enter(_transpose(start)) if change else _transpose(start)
    carry = (inner, solver.init(inner), jnp.array(jnp.inf), jnp.array(0))
    inner = jax.lax.while_loop(unfinished, advance, carry)[0]
    fitted = change.leave(inner) if change else inner
    return Classifier(fitted.weights.T, fitted.bias)
