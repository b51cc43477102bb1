"""Pixels of a source's images; without TensorFlow, except for TFDS's records."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from simclr_jax import host_resources
from simclr_jax.data import pillow_decode
from simclr_jax.data.sources import bad_records
from simclr_jax.data.sources.arrays import ArraySource, HeldFiles
from simclr_jax.data.sources.base import Source
from simclr_jax.errors import BadRecord, StoreFailed

_CHUNK = 64  # images that one call reads
_Result = TypeVar("_Result")

# uint8 [n, H, W, 3], or n images uint8 [H, W, 3] of different sizes.
Images = np.ndarray | list[np.ndarray]


def are_records(source: Source) -> bool:
    """Whether the records of a source are images, which Pillow can decode."""
    return source.unpack is None


def are_held(source: Source) -> bool:
    """Whether the pixels of a source are in memory."""
    return isinstance(source, ArraySource | HeldFiles)


def read(source: Source, indices: np.ndarray) -> tuple[Images, np.ndarray]:
    """Some images of a source, decoded where they are files, and their labels [n].

    Args:
      source: the source.
      indices: int64 [n].

    Raises:
      DataError: an image cannot be read or decoded; the message names it.
      StoreFailed: a disk or store does not answer.
    """
    return decode(source, indices, *fetch(source, indices))


def fetch(source: Source, indices: np.ndarray) -> tuple[Images, np.ndarray]:
    """Some records of a source, and their labels [n]; what `decode` takes.

    Raises:
      DataError, StoreFailed: as `read`.
    """
    if isinstance(source, HeldFiles):
        return source.pixels(indices), source.labels[indices]
    return _records(source, indices)


def decode(
    source: Source, indices: np.ndarray, records: Images, labels: np.ndarray
) -> tuple[Images, np.ndarray]:
    """What `read` returns, of what `fetch` returned.

    Raises:
      DataError: as `read`.
    """
    if isinstance(source, HeldFiles) or not source.encoded:
        return records, labels
    assert isinstance(records, np.ndarray)
    if source.unpack is not None:
        # Imported here, since it needs TensorFlow.
        from simclr_jax.data.sources import reading

        pairs = list(zip(records, labels, strict=True))
        decoded = _each(
            source, indices, pairs, lambda pair: reading.decode_here(source, *pair)
        )
        return [image for image, _ in decoded], np.array(
            [label for _, label in decoded]
        )
    return _each(source, indices, records, pillow_decode.decode_rgb), labels


def shapes(source: Source, indices: np.ndarray) -> list[tuple[int, int]]:
    """(height, width) of some image files of a source, read from their headers.

    Raises:
      DataError, StoreFailed: as `read`.
    """
    records, _ = _records(source, indices)
    return _each(source, indices, records, pillow_decode.image_shape)


def read_each(
    source: Source, indices: np.ndarray
) -> list[tuple[np.ndarray, int] | BadRecord]:
    """(image, label) of some images; the error in the place of one that is bad.

    Raises:
      DataError, StoreFailed: an image cannot be read, and may be intact.
    """
    return _or_errors(lambda part: zip(*read(source, part), strict=True), indices)


def each_shape(
    source: Source, indices: np.ndarray
) -> list[tuple[int, int] | BadRecord]:
    """`shapes`, with the error in the place of an image that is bad."""
    return _or_errors(lambda part: shapes(source, part), indices)


def _or_errors(
    function: Callable[[np.ndarray], Iterable[_Result]], indices: np.ndarray
) -> list[_Result | BadRecord]:
    try:
        return [*function(indices)]
    except BadRecord as error:
        if len(indices) == 1:
            return [error]
        return [
            result
            for index in indices
            for result in _or_errors(function, np.array([index]))
        ]


def in_chunks(
    source: Source, function: Callable[[Source, np.ndarray], _Result]
) -> Iterator[_Result]:
    """The results of one of the above for all images, by consecutive chunks.

    All cores that this process may use work, a few chunks ahead of the consumer.
    """
    threads = host_resources.num_cpus()
    group = 2 * threads * _CHUNK
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, source.num_examples, group):
            last = min(first + group, source.num_examples)
            chunks = [
                np.arange(start, min(start + _CHUNK, last))
                for start in range(first, last, _CHUNK)
            ]
            yield from pool.map(lambda chunk: function(source, chunk), chunks)


def _records(source: Source, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    try:
        return source.read(indices)
    except Exception as error:
        if len(indices) > 1 and not isinstance(error, StoreFailed):
            for index in indices:  # raises at the one that is at fault
                _records(source, np.array([index]))
        index = int(indices[0])
        name = source.describe(index)
        bad_records.fail(index, name, "cannot be read", error)


def _each(
    source: Source,
    indices: np.ndarray,
    records: Iterable[Any],
    decode: Callable[[Any], _Result],
) -> list[_Result]:
    results = []
    for index, record in zip(indices, records, strict=True):
        try:
            results.append(decode(record))
        except Exception as error:
            name = source.describe(int(index))
            bad_records.fail(int(index), name, "cannot be decoded", error)
    return results
