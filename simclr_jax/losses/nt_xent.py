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

    Every view is classified among all other views of the global batch, its own image's
    other view being the right answer. With V > 2 the loss averages over the V-1
    positives of an anchor. Google's code returns the sum of the two directions' means,
    which is twice this value.

    Args:
      z: projections [B, V, K], V >= 2, not normalised; any float dtype.
      temperature: positive divisor of the similarities.
      normalize: False compares plain inner products instead of cosines.
      streaming: walks over the similarities in blocks, for batches whose matrix of
        all pairs is large; the same loss and gradient to rounding.

    Returns:
      A float32 scalar in nats; ln(B*V - 1) is chance.

    Raises:
      ValueError: `z` is not [B, V >= 2, K] or the temperature is not positive.
    """
    pairs, others = pair_logits(
        z, temperature=temperature, normalize=normalize, streaming=streaming
    )
    # Similarities inside an image appear once in the loss: a log partition that sums
    # another rounding of them loses the digits of a nearly solved batch.
    num_views = pairs.shape[1]
    pairs = jnp.where(jnp.eye(num_views, dtype=bool), -jnp.inf, pairs)
    logits = jnp.concatenate([pairs, others[..., None]], axis=2)
    log_p = jax.nn.log_softmax(logits, axis=2)
    return -similarities.mean_over_positives(log_p[..., :num_views])


def pair_logits(
    z: jax.Array, *, temperature: float, normalize: bool, streaming: Streaming | None
) -> tuple[jax.Array, jax.Array]:
    """What an anchor's positives and negatives contribute, as logits.

    Args:
      z: as in `nt_xent`.
      temperature: as there.
      normalize: as there.
      streaming: as there.

    Returns:
      ([B, V, V] similarities of an image's views over the temperature, [B, V] log of
      the summed exponentials of those with all views of other images).
    """
    similarities.check_positive("temperature", temperature)
    z = similarities.embeddings(z, normalize=normalize)
    pairs = similarities.within_images(z) / temperature
    return pairs, negatives.log_partition(
        z, temperature=temperature, streaming=streaming
    )
