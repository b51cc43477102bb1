"""The log partition function of an anchor over the views of other images.

Two forms of one function. The first builds the matrix of all pairs: it follows the
equation, and is the fastest for small batches. The second streams over blocks of
columns with an online softmax and has its own backward pass.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from simclr_jax.losses import similarities
from simclr_jax.losses.streaming import Streaming, fold_columns, gather, on_own_rows

# Below every logit, and finite, so that the difference of two is not NaN.
_LOWEST = -1e30


def log_partition(
    z: jax.Array, *, temperature: float, streaming: Streaming | None
) -> jax.Array:
    """Log of the sum over the views of other images of exp(similarity / temperature).

    Args:
      z: [B, V, K] float32; already normalised if similarities are cosines.
      temperature: positive divisor of the similarities.
      streaming: None for the matrix of all pairs.

    Returns:
      [B, V] float32; -inf if there is only one image.
    """
    num_images, num_views, width = z.shape
    if streaming is None:
        logits = similarities.between_views(z) / temperature
        others = similarities.other_images(num_images, num_views)
        negatives = jax.nn.logsumexp(jnp.where(others, logits, -jnp.inf), axis=1)
    else:
        settings = _Settings(temperature, num_views, streaming)
        negatives = _streamed(settings, z.reshape(-1, width))
    return negatives.reshape(num_images, num_views)


@dataclasses.dataclass(frozen=True)
class _Settings:
    temperature: float
    num_views: int
    streaming: Streaming


def _masked_logits(
    settings: _Settings,
    rows: jax.Array,
    first_row: jax.Array,
    columns: jax.Array,
    first_column: jax.Array,
    num_columns: int,
) -> jax.Array:
    """Logits [R, C] of a block; -inf within an image and beyond the last column."""
    logits = similarities.products(rows, columns) / settings.temperature
    row = first_row + jnp.arange(len(rows))
    column = first_column + jnp.arange(len(columns))
    others = row[:, None] // settings.num_views != column // settings.num_views
    return jnp.where(others & (column < num_columns), logits, -jnp.inf)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _streamed(settings: _Settings, z: jax.Array) -> jax.Array:
    return _forward(settings, z)[0]


def _forward(
    settings: _Settings, z: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    """Log partitions [N] of z [N, K], and the residuals of the backward pass."""
    mesh = settings.streaming.mesh
    every_z = gather(z, mesh)

    def partition(
        first_row: jax.Array, rows: jax.Array, columns: jax.Array
    ) -> jax.Array:
        def fold(
            carry: tuple[jax.Array, jax.Array],
            first_column: jax.Array,
            block: jax.Array,
        ) -> tuple[jax.Array, jax.Array]:
            largest, total = carry
            logits = _masked_logits(
                settings, rows, first_row, block, first_column, len(columns)
            )
            new_largest = jnp.maximum(largest, jnp.max(logits, axis=1))
            total = total * jnp.exp(largest - new_largest)
            total += jnp.sum(jnp.exp(logits - new_largest[:, None]), axis=1)
            return new_largest, total

        start = (jnp.full(len(rows), _LOWEST), jnp.zeros(len(rows)))
        size = settings.streaming.size_for(len(rows))
        largest, total = fold_columns(fold, start, columns, block_size=size)
        return largest + jnp.log(total)

    negatives = on_own_rows(partition, z, every_z, mesh=mesh)
    return negatives, (z, every_z, negatives)


def _backward(
    settings: _Settings,
    residuals: tuple[jax.Array, jax.Array, jax.Array],
    cotangents: jax.Array,
) -> tuple[jax.Array]:
    """The gradient of z, from the gradient g of the log partitions n.

    d z_i = sum over j of (g_i p_ij + g_j p_ji) z_j / temperature, where
    p_ij = exp(l_ij - n_i) is the share of negative j in anchor i's partition. Logits
    are symmetric, so one block of them gives both terms, and only n and g, one number
    per view each, have to be gathered in addition to z.
    """
    z, every_z, negatives = residuals
    mesh = settings.streaming.mesh
    # Without negatives the log partition is -inf, and -inf - -inf would be NaN.
    per_view = (jnp.maximum(negatives, _LOWEST), cotangents)
    every_view = gather(per_view, mesh)

    def gradient(
        first_row: jax.Array,
        local: tuple[jax.Array, tuple[jax.Array, jax.Array]],
        every: tuple[jax.Array, tuple[jax.Array, jax.Array]],
    ) -> jax.Array:
        rows, (row_n, row_g) = local

        def fold(
            carry: jax.Array,
            first_column: jax.Array,
            block: tuple[jax.Array, tuple[jax.Array, jax.Array]],
        ) -> jax.Array:
            columns, (column_n, column_g) = block
            logits = _masked_logits(
                settings, rows, first_row, columns, first_column, len(every[0])
            )
            weights = row_g[:, None] * jnp.exp(logits - row_n[:, None])
            weights += column_g * jnp.exp(logits - column_n)
            return carry + similarities.products(weights, columns.T)

        size = settings.streaming.size_for(len(rows))
        total = fold_columns(fold, jnp.zeros_like(rows), every, block_size=size)
        return total / settings.temperature

    rows, columns = (z, per_view), (every_z, every_view)
    return (on_own_rows(gradient, rows, columns, mesh=mesh),)


_streamed.defvjp(_forward, _backward)
