"""Decoupled contrastive learning (Yeh et al., ECCV 2022)."""

import jax
import jax.numpy as jnp

from simclr_jax.losses import similarities
from simclr_jax.losses.nt_xent import pair_logits
from simclr_jax.losses.streaming import Streaming


def dcl(
    z: jax.Array,
    *,
    temperature: float,
    normalize: bool = True,
    streaming: Streaming | None = None,
) -> jax.Array:
    """NT-Xent without the positive in the denominator (Eq. 6).

    In NT-Xent an easy positive weakens the gradient of all negatives, most of all in
    small batches; here it does not.

    Args:
      z: projections [B, V, K], B and V >= 2, not normalised; any float dtype.
      temperature: positive divisor of the similarities.
      normalize: False compares plain inner products instead of cosines.
      streaming: as in `nt_xent`.

    Returns:
      A float32 scalar in nats, negative once positives stand out; ln(B*V - V) is
      chance.

    Raises:
      ValueError: `z` is not [B >= 2, V >= 2, K] or the temperature is not positive.
    """
    similarities.require_negatives(z)
    pairs, negatives = pair_logits(
        z, temperature=temperature, normalize=normalize, streaming=streaming
    )
    return similarities.mean_over_positives(negatives[..., None] - pairs)


def dclw(
    z: jax.Array,
    *,
    temperature: float,
    weight_temperature: float = 0.5,
    normalize: bool = True,
    streaming: Streaming | None = None,
) -> jax.Array:
    """DCL with larger weights for positives that are farther apart (Eq. 7).

    The weight of a pair is 2 - exp(s / sigma) / mean of exp(s / sigma) over all
    positive pairs of the global batch, s their similarity. Gradients pass through the
    weights.

    Args:
      z: projections [B, V, K], B and V >= 2, not normalised; any float dtype.
      temperature: positive divisor of the similarities.
      weight_temperature: sigma, positive.
      normalize: False compares plain inner products instead of cosines.
      streaming: as in `nt_xent`.

    Returns:
      A float32 scalar in nats; ln(B*V - V) is chance.

    Raises:
      ValueError: `z` is not [B >= 2, V >= 2, K] or a temperature is not positive.
    """
    similarities.check_positive("weight_temperature", weight_temperature)
    similarities.require_negatives(z)
    pairs, negatives = pair_logits(
        z, temperature=temperature, normalize=normalize, streaming=streaming
    )
    diagonal = jnp.eye(pairs.shape[1], dtype=bool)
    scaled = jnp.where(diagonal, -jnp.inf, pairs * (temperature / weight_temperature))
    num_pairs = pairs.shape[0] * pairs.shape[1] * (pairs.shape[1] - 1)
    weights = 2 - num_pairs * jax.nn.softmax(scaled.reshape(-1)).reshape(pairs.shape)
    return similarities.mean_over_positives(negatives[..., None] - weights * pairs)
