"""Classification by weighted nearest neighbours (Wu et al., 2018), in blocks."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from simclr_jax import parallel
from simclr_jax.losses import l2_normalize

_QUERY_BLOCK = 4096
_BANK_BLOCK = 65536


def knn_accuracies(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    query_labels: np.ndarray,
    *,
    ks: Sequence[int],
    temperature: float,
    mesh: Mesh,
) -> dict[int, float]:
    """Share of queries whose k nearest bank entries vote for the right class.

    A neighbour of cosine similarity s votes with weight exp(s / temperature).

    Args:
      bank: [N, D] features with known labels.
      bank_labels: [N] integers of at least 0.
      queries: [M, D] features to classify.
      query_labels: [M] their true classes.
      ks: numbers of neighbours, each at most N; one search serves all.
      temperature: of the votes.
      mesh: queries are split over it; bank blocks go to every device, so the memory
        needed does not grow with the bank.

    Returns:
      Accuracies in [0, 1] by k.
    """
    num_classes = int(max(bank_labels.max(), query_labels.max())) + 1
    hits = dict.fromkeys(ks, 0)
    for start in range(0, len(queries), _QUERY_BLOCK):
        block = queries[start : start + _QUERY_BLOCK]
        answers = query_labels[start : start + _QUERY_BLOCK]
        similarities, labels = _nearest(bank, bank_labels, block, k=max(ks), mesh=mesh)
        votes = np.exp((similarities - similarities[:, :1]) / temperature)
        for k in ks:
            scores = np.zeros((len(block), num_classes), np.float64)
            rows = np.arange(len(block))[:, None]
            np.add.at(scores, (rows, labels[:, :k]), votes[:, :k])
            hits[k] += int(np.sum(np.argmax(scores, axis=1) == answers))
    return {k: count / len(queries) for k, count in hits.items()}


def _nearest(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    *,
    k: int,
    mesh: Mesh,
) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and labels [M, k] of the nearest entries, nearest first."""
    split, whole = parallel.batch_sharding(mesh), parallel.replicated(mesh)
    count = len(queries)
    filled = np.pad(queries, ((0, -count % mesh.size), (0, 0)))
    sharded, *best = parallel.put(
        split,
        (
            filled,
            np.full((len(filled), k), -np.inf, np.float32),
            np.zeros((len(filled), k), np.int32),
        ),
    )
    size = min(_BANK_BLOCK, len(bank))
    for start in range(0, len(bank), size):
        block = bank[start : start + size]
        missing = size - len(block)
        block = np.pad(block, ((0, missing), (0, 0)))
        labels = np.pad(bank_labels[start : start + size], (0, missing))
        block, labels = parallel.put(whole, (block, labels))
        best = _merge((best[0], best[1]), sharded, block, labels, size - missing, k=k)
        jax.block_until_ready(best)  # so that only one block is in flight
    similarities, neighbours = parallel.fetch(mesh, best)
    return similarities[:count], neighbours[:count]


@functools.partial(jax.jit, static_argnames="k")
def _merge(
    best: tuple[jax.Array, jax.Array],
    queries: jax.Array,
    block: jax.Array,
    labels: jax.Array,
    num_valid: int,
    *,
    k: int,
) -> tuple[jax.Array, jax.Array]:
    """The k best of those kept so far and of one block of the bank."""
    similarities = jnp.matmul(
        l2_normalize(queries),
        l2_normalize(block).T,
        precision=jax.lax.Precision.HIGHEST,
    )
    similarities = jnp.where(jnp.arange(len(block)) < num_valid, similarities, -jnp.inf)
    block_best, indices = jax.lax.top_k(similarities, min(k, len(block)))
    all_similarities = jnp.concatenate([best[0], block_best], axis=1)
    all_labels = jnp.concatenate([best[1], labels[indices]], axis=1)
    top, places = jax.lax.top_k(all_similarities, k)
    return top, jnp.take_along_axis(all_labels, places, axis=1)
