"""Linear evaluation as in the paper: SGD on features of random crops and flips."""

import functools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from simclr_jax import parallel
from simclr_jax.evaluation.features import Encode
from simclr_jax.evaluation.linear import Classifier
from simclr_jax.training.device_views import DeviceViews
from simclr_jax.training.objectives import Batch

_LOG = logging.getLogger(__name__)
_SECS_BETWEEN_LINES = 20.0


def train_classifier(
    encode: Encode,
    batches: Iterator[Batch],
    *,
    views: DeviceViews | None = None,
    num_classes: int,
    num_steps: int,
    learning_rate: float,
    momentum: float,
    mesh: Mesh,
) -> Classifier:
    """Trains logits on frozen features, with Nesterov momentum and a cosine to 0.

    Args:
      encode: the frozen encoder; no gradient flows into it.
      batches: global ones of one view, from `input_pipeline.global_batches`.
      views: computes the views from them on the devices; None where the host did.
      num_classes: the number of classes.
      num_steps: the number of batches, at least 1.
      learning_rate: the initial rate, already scaled with the batch size.
      momentum: the decay of the momentum buffer.
      mesh: batches are split over it.

    Returns:
      The classifier, replicated.
    """
    optimizer = optax.sgd(
        optax.cosine_decay_schedule(learning_rate, num_steps),
        momentum=momentum,
        nesterov=True,
    )
    see = functools.partial(_see, views=views)
    step = jax.jit(
        functools.partial(_step, see=see, optimizer=optimizer), donate_argnums=0
    )
    carry = None
    loss: jax.Array | None = None
    last_line = time.monotonic()
    for number in range(num_steps):
        batch = next(batches)
        if carry is None:
            x, _ = jax.eval_shape(see, batch, encode, number)
            width = x.shape[-1]
            classifier = Classifier(
                jnp.zeros((width, num_classes)), jnp.zeros(num_classes)
            )
            carry = parallel.put(
                parallel.replicated(mesh),
                jax.device_get((classifier, optimizer.init(classifier))),
            )
        previous, (carry, loss) = loss, step(carry, batch, encode, number)
        # One step runs while the next batch is prepared; more would only use memory.
        jax.block_until_ready(previous)
        if time.monotonic() - last_line > _SECS_BETWEEN_LINES:
            _LOG.info("linear_sgd: step %d/%d, loss %.3f", number + 1, num_steps, loss)
            last_line = time.monotonic()
    assert carry is not None, "num_steps is at least 1"
    return carry[0]


def _see(
    batch: Batch, encode: Encode, number: jax.Array, *, views: DeviceViews | None
) -> tuple[jax.Array, jax.Array]:
    """(features [B, D], labels [B]) of the views of a step."""
    if views is not None:
        batch = views(batch, number)
    images = batch["images"][:, 0].astype(jnp.float32) / 255.0
    return jax.lax.stop_gradient(encode(images)), batch["labels"]


def _step(
    carry: tuple[Classifier, Any],
    batch: Batch,
    encode: Encode,
    number: jax.Array,
    *,
    see: Callable[[Batch, Encode, jax.Array], tuple[jax.Array, jax.Array]],
    optimizer: optax.GradientTransformation,
) -> tuple[tuple[Classifier, Any], jax.Array]:
    classifier, opt_state = carry
    features, labels = see(batch, encode, number)

    def objective(classifier: Classifier) -> jax.Array:
        logits = jnp.matmul(
            features, classifier.weights, precision=jax.lax.Precision.HIGHEST
        )
        logits += classifier.bias
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    loss, gradient = jax.value_and_grad(objective)(classifier)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return (optax.apply_updates(classifier, updates), opt_state), loss
