"""Numbers that tell without labels whether contrastive learning works."""

import math

import jax
import jax.numpy as jnp

from simclr_jax.losses.similarities import l2_normalize


def chance_level(num_images: int, num_views: int = 2) -> float:
    """ln(B*V - 1): NT-Xent of an encoder that tells no two images apart, in nats."""
    return math.log(num_images * num_views - 1)


def contrastive_metrics(z: jax.Array, *, temperature: float) -> dict[str, jax.Array]:
    """How well view 1 finds its own image's view 2 among the B view 2s.

    Args:
      z: projections [B, 2, K], not normalised.
      temperature: as in the loss.

    Returns:
      float32 scalars: `contrastive_accuracy`, the share of images whose view 1 is
      nearest to their own view 2; `contrastive_entropy`, the mean entropy in nats of
      that B-way softmax, ln(B) when undecided (both as in the reference code);
      `positive_similarity` and `negative_similarity`, mean cosines of the two views
      of one image and of different images.
    """
    first, second = jnp.moveaxis(l2_normalize(jax.lax.stop_gradient(z)), 1, 0)[:2]
    num_images = first.shape[0]
    cosines = jnp.matmul(first, second.T, precision=jax.lax.Precision.HIGHEST)
    log_p = jax.nn.log_softmax(cosines / temperature, axis=1)
    own = jnp.arange(num_images)
    positive = jnp.mean(jnp.sum(first * second, axis=-1))
    pairs = max(num_images * (num_images - 1), 1)
    return {
        "contrastive_accuracy": jnp.mean(
            (jnp.argmax(cosines, axis=1) == own).astype(jnp.float32)
        ),
        "contrastive_entropy": -jnp.mean(jnp.sum(jnp.exp(log_p) * log_p, axis=1)),
        "positive_similarity": positive,
        "negative_similarity": (jnp.sum(cosines) - positive * num_images) / pairs,
    }


def effective_rank(x: jax.Array) -> jax.Array:
    """Participation ratio of the covariance spectrum: how many directions x uses.

    (sum of eigenvalues)^2 / sum of squared eigenvalues, between 1 (all on a line, a
    dimensional collapse) and min(N - 1, D) (a ball). It needs two traces and no
    eigenvalues, so it is cheap enough for every step, also on accelerators.

    Args:
      x: [N, D] features; N should be large against the ranks to be told apart.

    Returns:
      A float32 scalar; 0 where all rows are equal.
    """
    x = jax.lax.stop_gradient(x).astype(jnp.float32)
    # Relative to a row first: the mean of equal rows is off by a rounding error.
    x = x - x[0]
    x = x - jnp.mean(x, axis=0)
    # Scaled to unit mean variance first, so that the squares cannot underflow.
    scale = jnp.mean(x * x)
    x = x * jax.lax.rsqrt(jnp.maximum(scale, jnp.finfo(jnp.float32).tiny))
    covariance = jnp.matmul(x.T, x)
    trace = jnp.sum(x * x)
    squares = jnp.sum(covariance * covariance)
    return jnp.where(squares > 0, trace * trace / jnp.maximum(squares, 1e-30), 0.0)
