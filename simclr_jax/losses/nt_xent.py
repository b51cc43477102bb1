"""NT-Xent: the normalised temperature-scaled cross entropy of SimCLR (Eq. 1)."""

import jax
import jax.numpy as jnp

# Divisor and products in full float32: at temperature 0.05 a bfloat16 product, the
# default of TPUs and a step away from that of GPUs (TF32), is off by 20 * 2^-8 = 0.08
# in the logits.
_PRECISION = jax.lax.Precision.HIGHEST


def l2_normalize(x: jax.Array, *, epsilon: float = 1e-12) -> jax.Array:
    """Scales the last axis to length 1 in float32; zero vectors stay zero."""
    x = x.astype(jnp.float32)
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, epsilon))


def nt_xent(z: jax.Array, *, temperature: float, normalize: bool = True) -> jax.Array:
    """Mean NT-Xent loss over all B*V views as anchors (Eq. 1).

    Every view is classified among all other views of the global batch, its own image's
    other view being the right answer. `z` sharded on B under `jax.jit` gives the same
    value: XLA gathers the embeddings, never the images. With V > 2 the loss averages
    over the V-1 positives of an anchor. Google's code returns the sum of the two
    directions' means, which is twice this value.

    Args:
      z: projections [B, V, K], V >= 2, not normalised; any float dtype.
      temperature: positive divisor of the similarities.
      normalize: False compares plain inner products instead of cosines.

    Returns:
      A float32 scalar in nats; ln(B*V - 1) is chance.

    Raises:
      ValueError: `z` is not [B, V >= 2, K] or the temperature is not positive.
    """
    if z.ndim != 3 or z.shape[1] < 2:
        raise ValueError(f"z has shape {z.shape}: must be [B, V, K] with V >= 2")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be positive")
    num_images, num_views, width = z.shape
    z = l2_normalize(z) if normalize else z.astype(jnp.float32)

    flat = z.reshape(num_images * num_views, width)
    logits = jnp.matmul(flat, flat.T, precision=_PRECISION) / temperature
    image = jnp.arange(num_images * num_views) // num_views
    logits = jnp.where(image[:, None] == image, -jnp.inf, logits)
    negatives = jax.nn.logsumexp(logits, axis=1).reshape(num_images, num_views, 1)

    # Similarities inside each image come from V x V products, not from picking entries
    # of the sharded logits, and appear once in the loss: a log partition that sums
    # another rounding of them loses the digits of a nearly solved batch.
    pairs = jnp.einsum("bvk,bwk->bvw", z, z, precision=_PRECISION) / temperature
    own = jnp.eye(num_views, dtype=bool)
    pairs = jnp.where(own, -jnp.inf, pairs)
    log_p = jax.nn.log_softmax(jnp.concatenate([pairs, negatives], axis=2), axis=2)
    total = jnp.sum(jnp.where(own, 0.0, log_p[..., :num_views]))
    return -total / (num_images * num_views * (num_views - 1))
