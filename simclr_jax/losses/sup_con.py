"""Supervised contrastive learning (Khosla et al., NeurIPS 2020)."""

import jax
import jax.numpy as jnp

from simclr_jax.losses import similarities


def sup_con(
    z: jax.Array, labels: jax.Array, *, temperature: float, normalize: bool = True
) -> jax.Array:
    """NT-Xent whose positives are all views of the anchor's class (Eq. 2, L_out).

    Equal to NT-Xent if no two images share a class.

    Args:
      z: projections [B, V, K], V >= 2, not normalised; any float dtype.
      labels: integers [B]; negative for an image without a label, whose only
        positives are its own views.
      temperature: positive divisor of the similarities.
      normalize: False compares plain inner products instead of cosines.

    Returns:
      A float32 scalar in nats; ln(B*V - 1) is chance.

    Raises:
      ValueError: `z` is not [B, V >= 2, K], `labels` are not [B], or the
        temperature is not positive.
    """
    similarities.check_positive("temperature", temperature)
    z = similarities.embeddings(z, normalize=normalize)
    num_images, num_views, _ = z.shape
    if labels.shape != (num_images,):
        raise ValueError(f"labels have shape {labels.shape}: must be ({num_images},)")
    diagonal = jnp.eye(num_images * num_views, dtype=bool)
    logits = similarities.between_views(z) / temperature
    log_p = jax.nn.log_softmax(jnp.where(diagonal, -jnp.inf, logits), axis=1)

    labels = jnp.repeat(labels, num_views)
    same_class = (labels[:, None] == labels) & (labels >= 0)
    positives = (
        same_class | ~similarities.other_images(num_images, num_views)
    ) & ~diagonal
    total = jnp.sum(jnp.where(positives, log_p, 0.0), axis=1)
    return -jnp.mean(total / jnp.sum(positives, axis=1))
