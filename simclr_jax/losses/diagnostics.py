"""Diagnostics of contrastive learning that need no labels."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from simclr_jax.losses.similarities import l2_normalize, products
from simclr_jax.losses.streaming import Streaming, fold_columns, gather, on_own_rows


def chance_level(num_images: int, num_views: int = 2) -> float:
    """ln(B*V - 1): NT-Xent in nats where all similarities are equal."""
    return math.log(num_images * num_views - 1)


def contrastive_metrics(
    z: jax.Array, *, temperature: float, streaming: Streaming | None = None
) -> dict[str, jax.Array]:
    """How well view 1 finds its own image's view 2 among the B view 2s.

    Args:
      z: projections [B, 2, K], not normalised.
      temperature: as in the loss.
      streaming: as in `nt_xent`.

    Returns:
      float32 scalars: `contrastive_accuracy`, the share of images whose view 1 is
      nearest to their own view 2; `contrastive_entropy`, the mean entropy in nats of
      that B-way softmax, ln(B) where it is uniform (both as in the reference code);
      `positive_similarity` and `negative_similarity`, mean cosines of the two views
      of one image and of different images.
    """
    first, second = jnp.moveaxis(l2_normalize(jax.lax.stop_gradient(z)), 1, 0)[:2]
    nearest, entropy = _nearest_and_entropy(first, second, temperature, streaming)
    own_column = jnp.arange(len(first))
    positive, negative = mean_cosines(first, second)
    return {
        "contrastive_accuracy": jnp.mean((nearest == own_column).astype(jnp.float32)),
        "contrastive_entropy": jnp.mean(entropy),
        "positive_similarity": positive,
        "negative_similarity": negative,
    }


def mean_cosines(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean cosines of the two views of one image, and of different images.

    Args:
      first: view 1 of each image, [B, K] float32 of length 1.
      second: view 2, likewise.
    """
    num_images = len(first)
    positive = jnp.mean(jnp.sum(first * second, axis=-1))
    # The sum over all pairs is the product of the sums.
    total = jnp.sum(jnp.sum(first, axis=0) * jnp.sum(second, axis=0))
    # As a float: from 46,342 images on an int32 does not hold it.
    pairs = float(max(num_images * (num_images - 1), 1))
    return positive, (total - positive * num_images) / pairs


def _nearest_and_entropy(
    rows: jax.Array, columns: jax.Array, temperature: float, streaming: Streaming | None
) -> tuple[jax.Array, jax.Array]:
    """Per row: index of the nearest column, entropy of the softmax over columns."""
    if streaming is None:
        cosines = products(rows, columns)
        log_p = jax.nn.log_softmax(cosines / temperature, axis=1)
        entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=1)
        return jnp.argmax(cosines, axis=1), entropy

    def stream(
        _: jax.Array, rows: jax.Array, columns: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        def fold(carry: _Row, first_column: jax.Array, block: jax.Array) -> _Row:
            index = first_column + jnp.arange(len(block))
            cosines = products(rows, block)
            inside = index < len(columns)
            cosines = jnp.where(inside, cosines, -jnp.inf)
            best = jnp.max(cosines, axis=1)
            nearest = first_column + jnp.argmax(cosines, axis=1)
            closer = best > carry.best
            new_best = jnp.maximum(best, carry.best)
            logits = (cosines - new_best[:, None]) / temperature
            weights = jnp.exp(logits)
            # Rescales the sums so far to the new best.
            shift = (carry.best - new_best) / temperature
            scale = jnp.exp(shift)
            return _Row(
                best=new_best,
                nearest=jnp.where(closer, nearest, carry.nearest),
                total=carry.total * scale + jnp.sum(weights, axis=1),
                mean=(carry.mean + shift * carry.total) * scale
                + jnp.sum(jnp.where(inside, weights * logits, 0.0), axis=1),
            )

        zeros = jnp.zeros(len(rows))
        # Every cosine is above -2.
        start = _Row(zeros - 2.0, jnp.zeros(len(rows), jnp.int32), zeros, zeros)
        size = streaming.size_for(len(rows))
        end = fold_columns(fold, start, columns, block_size=size)
        return end.nearest, jnp.log(end.total) - end.mean / end.total

    all_columns = gather(columns, streaming.mesh)
    return on_own_rows(stream, rows, all_columns, mesh=streaming.mesh)


class _Row(NamedTuple):
    """Per row: largest cosine, its column, sum of e^l and sum of e^l * l."""

    best: jax.Array
    nearest: jax.Array
    total: jax.Array
    mean: jax.Array


def effective_rank(x: jax.Array) -> jax.Array:
    """Participation ratio of the covariance spectrum: the number of directions x uses.

    (sum of eigenvalues)^2 / sum of squared eigenvalues, between 1 (all on a line:
    dimensional collapse) and min(N - 1, D) (isotropic). Computed from two traces of the
    D x D covariance, without eigenvalues.

    Args:
      x: [N, D] features; N should be much larger than the ranks to distinguish.

    Returns:
      A float32 scalar; 0 where all rows are equal.
    """
    x = jax.lax.stop_gradient(x).astype(jnp.float32)
    # Subtract one row first: the mean of equal rows has a rounding error.
    x = x - x[0]
    x = x - jnp.mean(x, axis=0)
    # Scaled to unit mean variance first, so that the squares cannot underflow.
    scale = jnp.mean(x * x)
    x = x * jax.lax.rsqrt(jnp.maximum(scale, jnp.finfo(jnp.float32).tiny))
    covariance = jnp.matmul(x.T, x)
    trace = jnp.sum(x * x)
    squares = jnp.sum(covariance * covariance)
    return jnp.where(squares > 0, trace * trace / jnp.maximum(squares, 1e-30), 0.0)
