"""Random access to the records of TFRecord and ArrayRecord shards."""

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from simclr_jax.data.sources import array_records, kept, ranges, record_index, storage
from simclr_jax.errors import DataError

# For reading at random.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_READER_BUFFER_BYTES = 1 << 15


class Part(Protocol):
    """Some consecutive records of a shard, as TFDS's file instructions have them.

    Attributes:
      filename: of the shard.
      skip: records before the first one.
      take: how many.
      examples_in_shard: how many the shard has.
    """

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class Records(Protocol):
    """Records by number."""

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Some records, object [n] of bytes; called from many threads."""
        ...


def open_records(
    parts: Sequence[Part], *, what: str, sharing: kept.Sharing = kept.ALONE
) -> Records:
    """The records of some parts of shards, one part after the other.

    Args:
      parts: of shards of one kind, in one folder.
      what: they are, for messages.
      sharing: the processes that open them.

    Raises:
      DataError: a shard is missing or damaged.
      StoreFailed: a disk or store does not answer.
    """
    first = os.fspath(parts[0].filename)
    if record_index.is_array_record(first) and not storage.is_remote(first):
        return _ArrayRecords(parts)
    return _Ranges(parts, what, sharing)


class _Ranges:
    """Records that an index finds."""

    def __init__(self, parts: Sequence[Part], what: str, sharing: kept.Sharing) -> None:
        paths = [os.fspath(part.filename) for part in parts]
        needed = {
            path: record_index.Shard(path, part.examples_in_shard)
            for path, part in zip(paths, parts, strict=True)
        }
        frames = record_index.find(list(needed.values()), what=what, sharing=sharing)
        self._are_chunks = record_index.is_array_record(paths[0])
        self._files = ranges.Files(paths)
        take = np.array([part.take for part in parts])
        self._file = np.repeat(np.arange(len(parts), dtype=np.int32), take)
        self._offset = np.empty(take.sum(), np.int64)
        self._length = np.empty(take.sum(), np.int64)
        stop = 0
        for path, part in zip(paths, parts, strict=True):
            start, stop = stop, stop + part.take
            within = slice(part.skip, part.skip + part.take)
            self._offset[start:stop] = frames[path].starts()[within]
            self._length[start:stop] = frames[path].sizes[within]
        if not self._are_chunks:
            self._offset += record_index.TFRECORD_HEADER
            self._length -= record_index.TFRECORD_HEADER + record_index.TFRECORD_FOOTER

    def read(self, indices: np.ndarray) -> np.ndarray:
        """See `Records`."""
        files, offsets = self._file[indices], self._offset[indices]
        contents = self._files.read(files, offsets, self._length[indices])
        if self._are_chunks:
            for n, (file, begin) in enumerate(
                zip(files.tolist(), offsets.tolist(), strict=True)
            ):
                try:
                    contents[n] = array_records.chunk(contents[n], begin)[0]
                except (ValueError, IndexError) as error:
                    raise DataError(
                        f"file {self._files.path(file)}: is damaged at byte {begin} "
                        f"({error})"
                    ) from error
        return contents


class _ArrayRecords:
    """Records of ArrayRecord files on a disk, read by the package of that name."""

    def __init__(self, parts: Sequence[Part]) -> None:
        from array_record.python import array_record_module

        self._paths = [os.fspath(part.filename) for part in parts]
        for path in self._paths:
            if not os.path.exists(path):
                raise DataError(f"file {path}: is missing from the prepared dataset")
        take = np.array([part.take for part in parts])
        self._stops = np.cumsum(take)
        # What to add to a record's number for its number in the shard.
        self._shift = np.array([part.skip for part in parts]) - (self._stops - take)
        self._readers: ranges.Opened[Any] = ranges.Opened(
            lambda path: array_record_module.ArrayRecordReader(
                path,
                options=_READER_OPTIONS,
                file_reader_buffer_size=_READER_BUFFER_BYTES,
            )
        )

    def read(self, indices: np.ndarray) -> np.ndarray:
        """See `Records`."""
        shards = np.searchsorted(self._stops, indices, side="right")
        within = indices + self._shift[shards]
        records = np.empty(len(indices), object)
        for shard in np.unique(shards).tolist():
            chosen = np.flatnonzero(shards == shard)
            reader = self._readers.get(self._paths[shard])
            read = reader.read(within[chosen].tolist())
            for place, record in zip(chosen.tolist(), read, strict=True):
                records[place] = record
        return records
