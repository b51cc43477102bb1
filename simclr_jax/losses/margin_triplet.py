"""The margin triplet objective of SimCLR's Table 2."""

import jax
import jax.numpy as jnp

from simclr_jax.losses import similarities


def margin_triplet(
    z: jax.Array, *, margin: float, normalize: bool = True, semi_hard: bool = False
) -> jax.Array:
    """Mean over (anchor u, positive v+, negative v-) of the negated Table 2 entry.

    That is max(u.v- - u.v+ + margin, 0). The negatives of an anchor are all views of
    other images in the global batch.

    Args:
      z: projections [B, V, K], B and V >= 2, not normalised; any float dtype.
      margin: positive; by how much a positive should be more similar than a negative.
      normalize: False compares plain inner products instead of cosines.
      semi_hard: take one negative for each positive, `similarities.semi_hard`, and not
        the mean over all.

    Returns:
      A float32 scalar; the margin is chance, without mining.

    Raises:
      ValueError: `z` is not [B >= 2, V >= 2, K] or the margin is not positive.
    """
    similarities.check_positive("margin", margin)
    similarities.require_negatives(z)
    z = similarities.embeddings(z, normalize=normalize)
    num_images, num_views, _ = z.shape
    pairs = similarities.within_images(z)
    products = similarities.between_views(z)
    others = similarities.other_images(num_images, num_views)
    if semi_hard:
        mined = similarities.semi_hard(products, others, pairs)
        return similarities.mean_over_positives(jax.nn.relu(mined - pairs + margin))
    # A mean over the negatives for each anchor v and positive w: [B, V, V].
    hinges = []
    for w in range(num_views):
        hinge = jax.nn.relu(products - pairs[..., w].reshape(-1, 1) + margin)
        hinge = jnp.sum(jnp.where(others, hinge, 0.0), axis=1)
        hinges.append(hinge / (num_views * (num_images - 1)))
    stacked = jnp.stack(hinges, axis=-1).reshape(num_images, num_views, num_views)
    return similarities.mean_over_positives(stacked)
