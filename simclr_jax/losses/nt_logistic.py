"""NT-Logistic: the pairwise logistic loss of SimCLR's Table 2."""

import jax
import jax.numpy as jnp

from simclr_jax.losses import similarities


def nt_logistic(
    z: jax.Array,
    *,
    temperature: float,
    normalize: bool = True,
    semi_hard: bool = False,
) -> jax.Array:
    """Mean over (anchor u, positive v+, negative v-) of the negated Table 2 entry.

    That is -log sigmoid(u.v+ / T) - log sigmoid(-u.v- / T). The negatives of an anchor
    are all views of other images in the global batch.

    Args:
      z: projections [B, V, K], B and V >= 2, not normalised; any float dtype.
      temperature: T, positive divisor of the similarities.
      normalize: False compares plain inner products instead of cosines.
      semi_hard: use one negative per positive, `similarities.semi_hard`, instead of
        the mean over all negatives.

    Returns:
      A float32 scalar in nats; chance is 2 ln(2), unless `semi_hard`.

    Raises:
      ValueError: `z` is not [B >= 2, V >= 2, K] or the temperature is not positive.
    """
    similarities.check_positive("temperature", temperature)
    similarities.require_negatives(z)
    z = similarities.embeddings(z, normalize=normalize)
    pairs = similarities.within_images(z) / temperature
    logits = similarities.between_views(z) / temperature
    num_images, num_views, _ = z.shape
    others = similarities.other_images(num_images, num_views)
    attraction = similarities.mean_over_positives(jax.nn.softplus(-pairs))
    if semi_hard:
        negatives = similarities.semi_hard(logits, others, pairs)
        return attraction + similarities.mean_over_positives(jax.nn.softplus(negatives))
    repulsion = jnp.where(others, jax.nn.softplus(logits), 0.0)
    # As a float: from 23,171 images on, an int32 does not hold it.
    count = float(num_images * num_views * num_views * (num_images - 1))
    return attraction + jnp.sum(repulsion) / count
