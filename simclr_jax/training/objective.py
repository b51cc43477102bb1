"""What a step minimises and reports, as a function of the model's outputs.

Only the outputs of all views of the global batch come in, so it does not matter whether
the model saw them at once or in micro-batches.
"""

import jax
import jax.numpy as jnp
import optax

from simclr_jax import losses
from simclr_jax.models.simclr import Outputs, Tree
from simclr_jax.training.recipe import NUM_VIEWS, Recipe

Metrics = dict[str, jax.Array]


def as_float(images: jax.Array) -> jax.Array:
    """Images [N, V, H, W, C] as [N*V, H, W, C] floats in [0, 1].

    One reshape, not a concatenation of two views: with the batch split over devices the
    latter would move the images themselves between them. uint8 becomes float here, on
    the device.
    """
    images = images.reshape(-1, *images.shape[2:])
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255.0
    return images


def total_loss(
    outputs: Outputs, params: Tree, labels: jax.Array, recipe: Recipe
) -> tuple[jax.Array, Metrics]:
    """The contrastive loss and the probe's, and what the log shows of both.

    Args:
      outputs: of all views of the global batch, rows [B*V].
      params: the model's; only the probe's kernel is used, for its weight decay.
      labels: [B], -1 for none.
      recipe: static.

    Returns:
      (scalar to minimise, float32 scalars).
    """
    z = outputs.z.reshape(-1, NUM_VIEWS, outputs.z.shape[-1])
    loss = recipe.loss(z, labels)
    metrics = {
        "loss": loss,
        **losses.contrastive_metrics(
            z, temperature=recipe.temperature, blocks=recipe.blocks
        ),
        "effective_rank_h": losses.effective_rank(outputs.h),
        "effective_rank_z": losses.effective_rank(outputs.z),
    }
    if outputs.logits is None:
        return loss, metrics
    # Not `jnp.repeat`, which looks labels up and so gathers them from all devices.
    of_views = jnp.broadcast_to(labels[:, None], (len(labels), NUM_VIEWS)).reshape(-1)
    probe_loss, accuracy = _probe(outputs.logits, of_views)
    metrics |= {"probe_loss": probe_loss, "probe_accuracy": accuracy}
    squares = jnp.sum(jnp.square(params["probe"]["kernel"]))
    return loss + probe_loss + 0.5 * recipe.probe_weight_decay * squares, metrics


def _probe(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean cross entropy and accuracy over the labelled rows."""
    labelled = (labels >= 0).astype(jnp.float32)
    count = jnp.maximum(jnp.sum(labelled), 1.0)
    losses_ = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.maximum(labels, 0)
    )
    hits = jnp.argmax(logits, axis=-1) == labels
    return jnp.sum(losses_ * labelled) / count, jnp.sum(hits * labelled) / count
