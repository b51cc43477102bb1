"""Similarities between the views of a batch, in full float32.

At temperature 0.05 a bfloat16 product, the default on TPUs (GPUs use TF32), has an
error of 20 * 2^-8 = 0.08 in the logits; hence `HIGHEST` everywhere.

Every loss is a function of `z` [B, V, K]. With `z` sharded on B under `jax.jit` its
value is the loss of the global batch: XLA gathers the embeddings, never the images.
"""

import jax
import jax.numpy as jnp

_PRECISION = jax.lax.Precision.HIGHEST


def l2_normalize(x: jax.Array, *, epsilon: float = 1e-12) -> jax.Array:
    """Scales the last axis to length 1 in float32; zero vectors stay zero."""
    x = x.astype(jnp.float32)
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, epsilon))


def embeddings(z: jax.Array, *, normalize: bool) -> jax.Array:
    """`z` as float32 [B, V, K], of length 1 if `normalize`.

    Raises:
      ValueError: `z` is not [B, V >= 2, K].
    """
    if z.ndim != 3 or z.shape[1] < 2:
        raise ValueError(f"z has shape {z.shape}: must be [B, V, K] with V >= 2")
    return l2_normalize(z) if normalize else z.astype(jnp.float32)


def check_positive(name: str, value: float) -> None:
    """Raises ValueError unless the value is positive."""
    if not value > 0:
        raise ValueError(f"{name}={value}: must be positive")


def products(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Inner products [R, C] of rows [R, K] and [C, K]."""
    return jnp.matmul(rows, columns.T, precision=_PRECISION)


def within_images(z: jax.Array) -> jax.Array:
    """Inner products [B, V, V] of each image's views with each other.

    Computed per image, not taken from the sharded matrix of all pairs.
    """
    return jnp.einsum("bvk,bwk->bvw", z, z, precision=_PRECISION)


def between_views(z: jax.Array) -> jax.Array:
    """Inner products [B*V, B*V] of all views; view v of image b is row b*V + v."""
    flat = z.reshape(-1, z.shape[-1])
    return products(flat, flat)


def require_negatives(z: jax.Array) -> None:
    """Raises ValueError if `z` [B, V, K] has only one image."""
    if len(z) < 2:
        raise ValueError(f"z has shape {z.shape}: must have B >= 2, to have negatives")


def other_images(num_images: int, num_views: int) -> jax.Array:
    """Bool [B*V, B*V]: True where two views come from different images."""
    image = jnp.arange(num_images * num_views) // num_views
    return image[:, None] != image


def mean_over_positives(values: jax.Array) -> jax.Array:
    """Mean of [B, V, V] over the pairs of different views of one image."""
    num_images, num_views, _ = values.shape
    diagonal = jnp.eye(num_views, dtype=bool)
    count = num_images * num_views * (num_views - 1)
    return jnp.sum(jnp.where(diagonal, 0.0, values)) / count


def semi_hard(
    similarities: jax.Array, negatives: jax.Array, positives: jax.Array
) -> jax.Array:
    """Similarity to the semi-hard negative of each anchor and positive.

    The closest negative that is farther from the anchor than the positive (Schroff et
    al. 2015; SimCLR section 5.1). If every negative is closer than the positive, which
    the papers leave open, the farthest negative, as in TensorFlow's semi-hard triplet
    loss.

    Args:
      similarities: [B*V, B*V].
      negatives: bool [B*V, B*V], at least one True in each row.
      positives: [B, V, V], similarities of anchor v with its positive w.

    Returns:
      [B, V, V].
    """
    num_images, num_views, _ = positives.shape
    farthest = jnp.min(jnp.where(negatives, similarities, jnp.inf), axis=1)
    negatives_of_positive = []
    for w in range(num_views):
        farther = negatives & (similarities < positives[..., w].reshape(-1, 1))
        closest = jnp.max(jnp.where(farther, similarities, -jnp.inf), axis=1)
        negatives_of_positive.append(
            jnp.where(jnp.any(farther, axis=1), closest, farthest)
        )
    return jnp.stack(negatives_of_positive, axis=-1).reshape(
        num_images, num_views, num_views
    )
