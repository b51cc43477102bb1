"""Where the records of TFRecord and ArrayRecord shards lie: found once, then kept.

A record's frame is the record with what the format puts around it. Frames lie side by
side, so that the sizes of all, and where the first begins, say where each lies.
"""

import array
import dataclasses
import functools
import logging
import os
import re
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from simclr_jax.data.progress import Progress
from simclr_jax.data.sources import array_records, kept, storage
from simclr_jax.errors import DataError

_LOG = logging.getLogger(__name__)
# A TFRecord is: length (8 bytes), its checksum (4), the data, their checksum (4).
TFRECORD_HEADER, TFRECORD_FOOTER = 12, 4
# What is found faster than read is not kept.
FEWEST_KEPT = 10_000
# Small records are found in all bytes of a shard, large ones by one request each. On a
# disk a request costs what reading a few pages costs. On stores hosts and stores make
# ten thousand requests a second, or read a gigabyte; see docs/input.md.
_SMALL_BYTES, _PIECE_BYTES = 1 << 14, 1 << 20
_DISTANT_SMALL_BYTES, _DISTANT_PIECE_BYTES = 1 << 17, 2 << 20
_THREADS = 16
_MOST_SHARDS = 256  # in a part of the work
_NUMBERED = re.compile(r"-\d+-of-\d+$")


class Shard(NamedTuple):
    """A file and the number of records that it must hold."""

    path: str
    num_records: int


@dataclasses.dataclass(frozen=True)
class Frames:
    """The frames of a shard.

    Attributes:
      begin: of the first one, in bytes.
      sizes: in bytes, int64 [n].
    """

    begin: int
    sizes: np.ndarray

    def starts(self) -> np.ndarray:
        """Where each begins, int64 [n]."""
        return self.begin + np.cumsum(self.sizes) - self.sizes


class _File(NamedTuple):
    """A shard as it is now."""

    path: str
    num_records: int
    size: int
    time: int

    @property
    def name(self) -> str:
        return os.path.basename(self.path)


def find(
    shards: Sequence[Shard], *, what: str, sharing: kept.Sharing
) -> dict[str, Frames]:
    """The frames of shards, by path; found now, or kept since an earlier start.

    Args:
      shards: all in one folder.
      what: they belong to, for messages.
      sharing: the processes that need them.

    Raises:
      DataError: a shard is missing, damaged, or has another number of records.
      StoreFailed: a disk or store does not answer.
    """
    folder = os.path.dirname(shards[0].path)
    there = storage.files_in(folder)
    files = []
    for shard in shards:
        status = there.get(os.path.basename(shard.path))
        if status is None:
            raise DataError(f"file {shard.path}: is missing from the prepared dataset")
        files.append(_File(*shard, *status))
    found: dict[str, Frames] = {}
    # The splits of a dataset are kept apart.
    for stem in dict.fromkeys(_NUMBERED.sub("", file.name) for file in files):
        of_split = [file for file in files if _NUMBERED.sub("", file.name) == stem]
        found |= _find_split(folder, stem, of_split, what, sharing)
    return found


def _find_split(
    folder: str, stem: str, files: list[_File], what: str, sharing: kept.Sharing
) -> dict[str, Frames]:
    if sum(file.num_records for file in files) < FEWEST_KEPT:
        frames = _compute(files, None)
        return {file.path: f for file, f in zip(files, frames, strict=True)}
    place, name = kept.Place(folder), f"records-{stem}"
    known = _known(place.load(name))
    todo = [file for file in files if _key(file) not in known]
    if not todo:
        kept.forget_parts(place, name)
        return {file.path: known[_key(file)] for file in files}
    progress = Progress(_LOG, len(todo), "shards", what=f"Indexing {what}: ")
    count = min(-(-len(todo) // (2 * sharing.count)), _MOST_SHARDS)
    parts = [todo[start : start + count] for start in range(0, len(todo), count)]
    results = kept.in_parts(
        place,
        name,
        [kept.stamp(*(_key(file) for file in part)) for part in parts],
        lambda number: _to_arrays(parts[number], _compute(parts[number], progress)),
        sharing,
    )
    for result in results:
        known |= _known(result)
    current = {file.name: _key(file) for file in files}
    # Other shards of the split stay; what shards were before goes.
    keys = [key for key in known if current.get(key[0], key) == key]
    path = place.save(name, _pack(keys, [known[key] for key in keys]))
    if path:
        _LOG.info("%s: indexed; the index is kept in %s", what, path)
    return {file.path: known[_key(file)] for file in files}


_Key = tuple[str, int, int]


def _key(file: _File) -> _Key:
    """What a kept index holds for: name, size and time."""
    return file.name, file.size, file.time


def _to_arrays(files: list[_File], frames: list[Frames]) -> kept.Arrays:
    return _pack([_key(file) for file in files], frames)


def _pack(keys: list[_Key], frames: list[Frames]) -> kept.Arrays:
    names, sizes, times = zip(*keys, strict=True)
    return {
        "name": np.array([name.encode() for name in names]),
        "size": np.array(sizes, np.int64),
        "time": np.array(times, np.int64),
        "begin": np.array([f.begin for f in frames], np.int64),
        "count": np.array([len(f.sizes) for f in frames], np.int64),
        "frame_size": np.concatenate([f.sizes for f in frames]),
    }


def _known(arrays: kept.Arrays | None) -> dict[_Key, Frames]:
    if arrays is None:
        return {}
    stops = np.cumsum(arrays["count"])
    starts = (stops - arrays["count"]).tolist()
    columns = (arrays[key].tolist() for key in ("name", "size", "time", "begin"))
    return {
        (name.decode(), size, time): Frames(begin, arrays["frame_size"][start:stop])
        for name, size, time, begin, start, stop in zip(
            *columns, starts, stops.tolist(), strict=True
        )
    }


def _compute(files: list[_File], progress: Progress | None) -> list[Frames]:
    def find_one(file: _File) -> Frames:
        frames = _frames(file)
        if progress:
            progress.add()
        return frames

    if storage.is_distant(files[0].path):
        return list(storage.each(find_one, files))
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(find_one, files))


def is_array_record(path: str) -> bool:
    """Whether a shard is an ArrayRecord file, by its name."""
    return ".array_record" in path


def _frames(file: _File) -> Frames:
    if is_array_record(file.path):
        bounds = array_records.find(
            file.path,
            file.size,
            lambda start, stop: storage.read_range(file.path, start, stop - start),
        )
        _check_count(file, len(bounds) - 1)
        return Frames(int(bounds[0]), np.diff(bounds))
    distant = storage.is_distant(file.path)
    small = _DISTANT_SMALL_BYTES if distant else _SMALL_BYTES
    piece = TFRECORD_HEADER
    if file.size < small * file.num_records:
        piece = _DISTANT_PIECE_BYTES if distant else _PIECE_BYTES
    if storage.is_remote(file.path):
        sizes = _walk(
            file, piece, lambda start, n: storage.read_range(file.path, start, n)
        )
    else:
        sizes = storage.retried(file.path, functools.partial(_walk_local, file, piece))
    _check_count(file, len(sizes))
    return Frames(0, np.frombuffer(sizes, np.int64))


def _check_count(file: _File, found: int) -> None:
    if found != file.num_records:
        raise DataError(
            f"file {file.path}: holds {found} records, must hold {file.num_records} as "
            "dataset_info.json says, so it is damaged or of another dataset"
        )


def _walk_local(file: _File, piece: int) -> array.array:
    with open(file.path, "rb", buffering=0) as opened:
        return _walk(file, piece, lambda start, n: os.pread(opened.fileno(), n, start))


def _walk(file: _File, piece: int, read: Callable[[int, int], bytes]) -> array.array:
    """The sizes of a TFRecord file's frames, from one to the next.

    Args:
      file: the file.
      piece: bytes to read at a time.
      read: (start, bytes) -> bytes of the file.
    """
    sizes = array.array("q")
    around = TFRECORD_HEADER + TFRECORD_FOOTER
    position = start = stop = 0
    content = b""
    while position < file.size:
        if position + TFRECORD_HEADER > stop:
            start = position
            content = read(start, min(piece, file.size - start))
            stop = start + len(content)
        if position + TFRECORD_HEADER > stop:
            raise _damaged(file, len(sizes))
        (length,) = struct.unpack_from("<Q", content, position - start)
        position += length + around
        if position > file.size:
            raise _damaged(file, len(sizes))
        sizes.append(length + around)
    return sizes


def _damaged(file: _File, record: int) -> DataError:
    return DataError(
        f"file {file.path}: ends within record {record} of {file.num_records}, so it "
        "is damaged or no TFRecord file"
    )
