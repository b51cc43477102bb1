"""NT-Xent: the normalised temperature-scaled cross entropy of SimCLR (Eq. 1)."""

import jax
import jax.numpy as jnp

from simclr_jax.losses import negatives, similarities
from simclr_jax.losses.streaming import Streaming


def nt_xent(
    z: jax.Array,
    *,
    temperature: float,
    normalize: bool = True,
    streaming: Streaming | None = None,
) -> jax.Array:
    """Mean NT-Xent loss over all B*V views as anchors (Eq. 1).

    Every view is classified among all other views of the global batch, and the other
    view of the same image is the correct class. With V > 2 the loss averages over the
    V-1 positives of an anchor. Google's code returns the sum of the two directions'
    means, which is twice this value.

    Args:
      z: projections [B, V, K], V >= 2, not normalised; any float dtype.
      temperature: positive divisor of the similarities.
      normalize: False uses inner products instead of cosines.
      streaming: streams over the similarities in blocks, for batches whose matrix of
        all pairs is large; loss and gradient are equal up to rounding.

    Returns:
      A float32 scalar in nats; ln(B*V - 1) is the value at chance.

    Raises:
      ValueError: `z` is not [B, V >= 2, K] or the temperature is not positive.
    """
    pairs, others = pair_logits(
        z, temperature=temperature, normalize=normalize, streaming=streaming
    )
    # The positives must enter the partition with the same rounding as the numerator:
    # otherwise the loss of a nearly solved batch is mostly rounding error.
    num_views = pairs.shape[1]
    pairs = jnp.where(jnp.eye(num_views, dtype=bool), -jnp.inf, pairs)
    logits = jnp.concatenate([pairs, others[..., None]], axis=2)
    log_p = jax.nn.log_softmax(logits, axis=2)
    return -similarities.mean_over_positives(log_p[..., :num_views])


def pair_logits(
    z: jax.Array, *, temperature: float, normalize: bool, streaming: Streaming | None
) -> tuple[jax.Array, jax.Array]:
    """Logits of the positives of each anchor, and the log partition of its negatives.

    Args:
      z: as in `nt_xent`.
      temperature: as in `nt_xent`.
      normalize: as in `nt_xent`.
      streaming: as in `nt_xent`.

    Returns:
      ([B, V, V] similarities of an image's views over the temperature, [B, V] log of
      the sum of exponentials of those with all views of other images).
    """
    similarities.check_positive("temperature", temperature)
    z = similarities.embeddings(z, normalize=normalize)
    pairs = similarities.within_images(z) / temperature
    return pairs, negatives.log_partition(
        z, temperature=temperature, streaming=streaming
    )
