"""Nearest images by cosine similarity, and near-duplicates: exact, block by block.

The devices compare a block of queries, split over them, with one block of all images
after the other, and keep the best of each query. What they hold does not depend on the
number of images. Their float32 similarities choose candidates; those that are written
are computed from the features in float64.
"""

import dataclasses
import functools
import logging
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from simclr_jax import parallel
from simclr_jax.data.progress import Progress
from simclr_jax.losses import l2_normalize
from simclr_jax.parallel import SPLIT, WHOLE

_LOG = logging.getLogger(__name__)
# Similarities of so many queries and images are held at a time, on each device: 128
# MiB.
_QUERIES = 4096
_IMAGES = 8192
# float32 may confuse neighbours whose similarities differ by less than this ...
_MARGIN = 1e-5
# ... so that some more candidates than neighbours are compared in float64.
_MORE_CANDIDATES = 16
# Of queries: their candidates in float64 are held at a time.
_ROWS_IN_FLOAT64 = 64
# Similarities that are equal to this many digits are ties.
_DIGITS = 12
_LINE_BYTES = 8  # bits of a packed mask in a byte


@dataclasses.dataclass(frozen=True)
class Found:
    """The neighbours of consecutive images, and near-duplicates among them.

    Attributes:
      first: the number of the first image; numbers are rows of the features.
      indices: int64 [n, K], the nearest first; of equally near ones the lower number.
      similarities: float64 [n, K].
      pairs: int64 [P, 2], ascending: images and those with higher numbers that are
        near-duplicates of them.
      pair_similarities: float64 [P].
    """

    first: int
    indices: np.ndarray
    similarities: np.ndarray
    pairs: np.ndarray
    pair_similarities: np.ndarray


def search(
    features: np.ndarray, k: int, *, duplicates_above: float, mesh: Mesh
) -> Iterator[Found]:
    """The k nearest other images of every image.

    Args:
      features: float32 [N, D]; may be mapped from a file, and is read block by block.
      k: from 1 to N - 1.
      duplicates_above: pairs of this similarity or more are near-duplicates.
      mesh: of devices of this process.

    Yields:
      Consecutive images, all of them once.
    """
    count = len(features)
    num_candidates = min(k + _MORE_CANDIDATES, count - 1)
    size = min(_QUERIES, _rounded(-(-count // mesh.size), 8)) * mesh.size
    bank_size = min(_IMAGES, _rounded(count, 128))
    progress = Progress(_LOG, count, "images", what="Neighbours: ")
    for first in range(0, count, size):
        stop = min(first + size, count)
        queries = parallel.put(
            parallel.batch_sharding(mesh), _block(features, first, size)
        )
        best = _no_candidates(size, num_candidates, mesh)
        pairs = []
        for start in range(0, count, bank_size):
            images = parallel.put(
                parallel.replicated(mesh), _block(features, start, bank_size)
            )
            best, near = _compare(
                best,
                queries,
                np.int32(first),
                images,
                np.int32(start),
                np.int32(count),
                np.float32(duplicates_above - _MARGIN),
                mesh=mesh,
            )
            pairs.append(_unpacked(near, first, start))
        candidates = np.asarray(best[1])[: stop - first].astype(np.int64)
        yield _exact(
            features, first, candidates, np.concatenate(pairs), k, duplicates_above
        )
        progress.add(stop - first)


def _rounded(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _block(features: np.ndarray, start: int, size: int) -> np.ndarray:
    """Rows from `start` on; zeros fill the block up.

    All blocks have one size, a multiple of the registers': equal images have the same
    float32 similarities wherever they are.
    """
    rows = np.zeros((size, features.shape[1]), np.float32)
    chosen = features[start : start + size]
    rows[: len(chosen)] = chosen
    return rows


# Similarities and numbers [Q, C], nearest first.
_Candidates = tuple[jax.Array, jax.Array]


def _no_candidates(size: int, count: int, mesh: Mesh) -> _Candidates:
    nothing = (
        np.full((size, count), -np.inf, np.float32),
        np.zeros((size, count), np.int32),
    )
    best: _Candidates = parallel.put(parallel.batch_sharding(mesh), nothing)
    return best


@functools.partial(jax.jit, static_argnames="mesh", donate_argnums=0)
def _compare(
    best: _Candidates,
    queries: jax.Array,
    first: jax.Array,
    images: jax.Array,
    start: jax.Array,
    count: jax.Array,
    threshold: jax.Array,
    *,
    mesh: Mesh,
) -> tuple[_Candidates, tuple[jax.Array, jax.Array]]:
    """The best candidates after another block of images; near-duplicates in it.

    Args:
      best: those of the blocks before.
      queries: [Q, D], split over the mesh.
      first: the number of the first query.
      images: [B, D], on every device.
      start: the number of the first of them.
      count: N; higher numbers only fill blocks up.
      threshold: of near-duplicates.
      mesh: of the devices.

    Returns:
      (candidates, (how many near-duplicates on each device [devices], of which pairs
      uint8 [Q, B / 8], as bits)).
    """

    def compare(
        best: _Candidates,
        queries: jax.Array,
        first: jax.Array,
        images: jax.Array,
        start: jax.Array,
        count: jax.Array,
        threshold: jax.Array,
    ) -> tuple[_Candidates, tuple[jax.Array, jax.Array]]:
        place = jax.lax.axis_index("data") * len(queries)
        rows = (first + place + jnp.arange(len(queries)))[:, None]
        columns = (start + jnp.arange(len(images)))[None]
        similarities = jnp.matmul(
            l2_normalize(queries),
            l2_normalize(images).T,
            precision=jax.lax.Precision.HIGHEST,
        )
        near = similarities >= threshold
        near &= (columns > rows) & (columns < count) & (rows < count)
        others = (columns != rows) & (columns < count)
        in_block, places = jax.lax.top_k(
            jnp.where(others, similarities, -jnp.inf),
            min(best[0].shape[1], len(images)),
        )
        # Of equal similarities `top_k` takes the first, which has the lower number.
        joined = jnp.concatenate([best[0], in_block], axis=1)
        numbers = jnp.concatenate([best[1], start + places], axis=1)
        top, chosen = jax.lax.top_k(joined, best[0].shape[1])
        numbers = jnp.take_along_axis(numbers, chosen, axis=1)
        return (top, numbers), (near.sum()[None], jnp.packbits(near, axis=1))

    specs = ((SPLIT, SPLIT), SPLIT, WHOLE, WHOLE, WHOLE, WHOLE, WHOLE)
    run = parallel.on_each_device(
        compare, mesh, specs, ((SPLIT, SPLIT), (SPLIT, SPLIT))
    )
    compared: tuple[_Candidates, tuple[jax.Array, jax.Array]] = run(
        best, queries, first, images, start, count, threshold
    )
    return compared


def _unpacked(near: tuple[jax.Array, jax.Array], first: int, start: int) -> np.ndarray:
    """int64 [P, 2]: the pairs of a block; bits stay on the devices if there is none."""
    if not np.asarray(near[0]).any():
        return np.zeros((0, 2), np.int64)
    bits = np.asarray(near[1])
    bytes_ = np.argwhere(bits)
    found = np.unpackbits(bits[bytes_[:, 0], bytes_[:, 1]][:, None], axis=1)
    places, offsets = np.nonzero(found)
    rows = bytes_[places, 0] + first
    columns = bytes_[places, 1] * _LINE_BYTES + offsets + start
    return np.stack([rows, columns], axis=1).astype(np.int64)


def _exact(
    features: np.ndarray,
    first: int,
    candidates: np.ndarray,
    pairs: np.ndarray,
    k: int,
    duplicates_above: float,
) -> Found:
    """Chooses neighbours and near-duplicates by similarities in float64."""
    indices = np.empty((len(candidates), k), np.int64)
    similarities = np.empty((len(candidates), k))
    for start in range(0, len(candidates), _ROWS_IN_FLOAT64):
        rows = slice(start, start + _ROWS_IN_FLOAT64)
        numbers = candidates[rows]
        queries = np.arange(start, start + len(numbers)) + first
        found = _similarities(features, queries[:, None], numbers)
        order = np.lexsort((numbers, -found), axis=1)[:, :k]
        indices[rows] = np.take_along_axis(numbers, order, axis=1)
        similarities[rows] = np.take_along_axis(found, order, axis=1)
    values = [np.zeros(0)]
    for start in range(0, len(pairs), 1024):
        some = pairs[start : start + 1024]
        values.append(_similarities(features, some[:, :1], some[:, 1:])[:, 0])
    of_pairs = np.concatenate(values)
    chosen = np.flatnonzero(of_pairs >= duplicates_above)
    chosen = chosen[np.lexsort(pairs[chosen].T[::-1])]
    return Found(first, indices, similarities, pairs[chosen], of_pairs[chosen])


def _similarities(
    features: np.ndarray, queries: np.ndarray, others: np.ndarray
) -> np.ndarray:
    """Cosines in float64 [q, c] of images [q, 1] with images [q, c]."""
    x, y = (features[rows].astype(np.float64) for rows in (queries, others))
    lengths = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    # An image without any feature is like no other.
    cosines = (x * y).sum(axis=-1) / np.where(lengths > 0, lengths, 1.0)
    return np.round(cosines, _DIGITS)
