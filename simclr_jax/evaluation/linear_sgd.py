"""Linear evaluation as in the paper: SGD on features of random crops and flips."""

import functools
import logging
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from simclr_jax import parallel
from simclr_jax.evaluation.features import Encode
from simclr_jax.evaluation.linear import Classifier

_LOG = logging.getLogger(__name__)
_SECS_BETWEEN_LINES = 20.0


def train_classifier(
    encode: Encode,
    batches: Iterator[dict[str, np.ndarray]],
    *,
    num_classes: int,
    num_steps: int,
    learning_rate: float,
    momentum: float,
    mesh: Mesh,
) -> Classifier:
    """Trains logits on frozen features, with Nesterov momentum and a cosine to 0.

    Args:
      encode: the frozen encoder; no gradient flows into it.
      batches: from `pipeline.train_batches` with one view.
      num_classes: the number of classes.
      num_steps: the number of batches.
      learning_rate: the initial rate, already scaled with the batch size.
      momentum: the decay of the momentum buffer.
      mesh: batches are split over it.
    """
    optimizer = optax.sgd(
        optax.cosine_decay_schedule(learning_rate, num_steps),
        momentum=momentum,
        nesterov=True,
    )
    step = jax.jit(functools.partial(_step, optimizer=optimizer), donate_argnums=0)
    carry = None
    loss: jax.Array | None = None
    last_line = time.monotonic()
    for number in range(num_steps):
        batch = parallel.shard_batch(mesh, next(batches))
        if carry is None:
            width = jax.eval_shape(encode, _as_float(batch["images"])).shape[-1]
            classifier = Classifier(
                jnp.zeros((width, num_classes)), jnp.zeros(num_classes)
            )
            carry = parallel.put(
                parallel.replicated(mesh),
                jax.device_get((classifier, optimizer.init(classifier))),
            )
        previous, (carry, loss) = loss, step(carry, batch, encode)
        # One step runs while the next batch is prepared; more would only use memory.
        jax.block_until_ready(previous)
        if time.monotonic() - last_line > _SECS_BETWEEN_LINES:
            _LOG.info("linear_sgd: step %d/%d, loss %.3f", number + 1, num_steps, loss)
            last_line = time.monotonic()
    assert carry is not None
    return parallel.fetch(mesh, carry[0])


def _as_float(images: jax.Array) -> jax.Array:
    return images[:, 0].astype(jnp.float32) / 255.0


def _step(
    carry: tuple[Classifier, Any],
    batch: dict[str, jax.Array],
    encode: Encode,
    *,
    optimizer: optax.GradientTransformation,
) -> tuple[tuple[Classifier, Any], jax.Array]:
    classifier, opt_state = carry
    features = jax.lax.stop_gradient(encode(_as_float(batch["images"])))

    def objective(classifier: Classifier) -> jax.Array:
        logits = features @ classifier.weights + classifier.bias
        return jnp.mean(
            optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        )

    loss, gradient = jax.value_and_grad(objective)(classifier)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return (optax.apply_updates(classifier, updates), opt_state), loss
