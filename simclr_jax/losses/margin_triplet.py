"""The margin triplet loss of SimCLR's Table 2."""

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
      margin: positive; how much more similar a positive should be than a negative.
      normalize: False compares plain inner products instead of cosines.
      semi_hard: use one negative per positive, `similarities.semi_hard`, instead of
        the mean over all negatives.

    Returns:
      A float32 scalar; chance is the margin, unless `semi_hard`.

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
        negatives = similarities.semi_hard(products, others, pairs)
        return similarities.mean_over_positives(jax.nn.relu(negatives - pairs + margin))
    # Mean over the negatives of each anchor v and positive w: [B, V, V].
    hinges = []
    for w in range(num_views):
        hinge = jax.nn.relu(products - pairs[..., w].reshape(-1, 1) + margin)
        hinge = jnp.sum(jnp.where(others, hinge, 0.0), axis=1)
        hinges.append(hinge / (num_views * (num_images - 1)))
    stacked = jnp.stack(hinges, axis=-1).reshape(num_images, num_views, num_views)
    return similarities.mean_over_positives(stacked)
