"""Classification by weighted nearest neighbours (Wu et al., 2018), in blocks."""

import functools
import logging
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from simclr_jax import parallel
from simclr_jax.evaluation import blocks
from simclr_jax.evaluation.blocks import Block
from simclr_jax.evaluation.features import Features
from simclr_jax.losses import l2_normalize
from simclr_jax.parallel import SPLIT, WHOLE

_LOG = logging.getLogger(__name__)
_SECS_BETWEEN_LINES = 20.0
# Similarities of so many queries and entries are held at a time, on each device: 128
# MiB.
_QUERY_BLOCK = 4096
_BANK_BLOCK = 8192

# Similarities and labels [Q, k] of the nearest entries, nearest first.
_Neighbours = tuple[jax.Array, jax.Array]


def classify(
    bank: Features, queries: Features, *, ks: Sequence[int], temperature: float
) -> dict[int, np.ndarray]:
    """The class that the k nearest bank entries of each query vote for.

    A neighbour of cosine similarity s votes with weight exp(s / temperature). The bank
    stays where it is: each device searches its own part for all queries of a block.

    Args:
      bank: N features with known labels [N], integers of at least 0.
      queries: M features to classify.
      ks: numbers of neighbours, each at most N; one search serves all.
      temperature: of the votes.

    Returns:
      Classes [M] by k.
    """
    mesh = bank.mesh
    num_classes = int(max(bank.labels.max(), queries.labels.max())) + 1
    bank_labels = bank.by_row(bank.labels, fill=-1)
    predicted = {k: np.full(len(queries), -1) for k in ks}
    positions = queries.positions.reshape(mesh.size, -1)
    size = min(positions.shape[1], -(-_QUERY_BLOCK // mesh.size))
    last_line = time.monotonic()
    for first in range(0, positions.shape[1], size):
        # The last block has rows of the one before it: blocks have one size.
        start = min(first, positions.shape[1] - size)
        found = _nearest(
            bank.x, bank_labels, queries.x, start, size=size, k=max(ks), mesh=mesh
        )
        similarities, labels = parallel.fetch(mesh, found)
        images = positions[:, start : start + size].reshape(-1)
        filled = images >= 0
        for k in ks:
            predicted[k][images[filled]] = vote(
                similarities[filled, :k], labels[filled, :k], num_classes, temperature
            )
        if time.monotonic() - last_line > _SECS_BETWEEN_LINES:
            last_line = time.monotonic()
            done = (start + size) / positions.shape[1]
            _LOG.info("knn: classified %.0f %% of %d images", 100 * done, len(queries))
    return predicted


def vote(
    similarities: np.ndarray, labels: np.ndarray, num_classes: int, temperature: float
) -> np.ndarray:
    """The classes [Q] that neighbours [Q, k], nearest first, vote for."""
    scores = np.zeros((len(labels), num_classes), np.float64)
    votes = np.exp((similarities - similarities[:, :1]) / temperature)
    np.add.at(scores, (np.arange(len(labels))[:, None], labels), votes)
    return np.argmax(scores, axis=1)


@functools.partial(jax.jit, static_argnames=("size", "k", "mesh"))
def _nearest(
    bank: jax.Array,
    labels: jax.Array,
    queries: jax.Array,
    start: int,
    *,
    size: int,
    k: int,
    mesh: Mesh,
) -> _Neighbours:
    """The neighbours of `size` queries of each device, which are split like them."""

    def search(
        bank: jax.Array, labels: jax.Array, queries: jax.Array, start: jax.Array
    ) -> _Neighbours:
        own = jax.lax.dynamic_slice_in_dim(queries, start, size)
        everyones = jax.lax.all_gather(own, "data", tiled=True)
        best = _search_part(bank, labels, l2_normalize(everyones), k)
        # From all queries in one part of the bank to own queries in all parts.
        similarities, found = jax.lax.all_to_all(
            best, "data", split_axis=0, concat_axis=1, tiled=True
        )
        return _top(similarities, found, k)

    in_specs = (SPLIT, SPLIT, SPLIT, WHOLE)
    run = parallel.on_each_device(search, mesh, in_specs, (SPLIT, SPLIT))
    return run(bank, labels, queries, start)


def _search_part(
    bank: jax.Array, labels: jax.Array, queries: jax.Array, k: int
) -> _Neighbours:
    """The neighbours of queries [Q, D], of length 1, in one device's part."""

    def search(block: Block, best: _Neighbours) -> _Neighbours:
        similarities = jnp.matmul(
            queries,
            l2_normalize(block.of(bank)).T,
            precision=jax.lax.Precision.HIGHEST,
        )
        block_labels = block.of(labels)
        valid = block.is_new & (block_labels >= 0)
        block_best, indices = jax.lax.top_k(
            jnp.where(valid, similarities, -jnp.inf), min(k, len(valid))
        )
        return _top(
            jnp.concatenate([best[0], block_best], axis=1),
            jnp.concatenate([best[1], block_labels[indices]], axis=1),
            k,
        )

    nothing = (
        jnp.full((len(queries), k), -jnp.inf, jnp.float32),
        jnp.zeros((len(queries), k), labels.dtype),
    )
    return blocks.fold(search, nothing, len(bank), _BANK_BLOCK)


def _top(similarities: jax.Array, labels: jax.Array, k: int) -> _Neighbours:
    top, places = jax.lax.top_k(similarities, k)
    return top, jnp.take_along_axis(labels, places, axis=1)
