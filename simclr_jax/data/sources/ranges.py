"""Many ranges of many files in one call: the records of a batch.

Ranges that are neighbours in a file are one request. What a record costs in Python is a
slice of what a request returned; a request on a local disk is one `pread` of a file
that stays open, and requests to stores and mounted buckets are under way side by side.
"""

import collections
import itertools
import os
import resource
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from simclr_jax.data.sources import object_store, storage

_File = TypeVar("_File")
# What is read over between two ranges, because that costs less than a request. Between
# the images of two records lie a checksum, a length, a name and a label.
_GAP_BYTES = 1 << 12
_DISTANT_GAP_BYTES = 1 << 16
# Of a request: more would take long as one stream.
_DISTANT_BYTES = 4 << 20
_MAX_OPEN = 1024


class Files:
    """The files of a dataset; may be used by many threads."""

    def __init__(self, paths: Sequence[str]) -> None:
        """Takes paths; all on the same disk or store."""
        self._paths = list(paths)
        first = self._paths[0] if self._paths else ""
        self._is_remote = storage.is_remote(first)
        self._is_distant = storage.is_distant(first)
        self._descriptors = Opened(_Descriptor)

    def path(self, number: int) -> str:
        """The path of a file."""
        return self._paths[number]

    def read(
        self, files: np.ndarray, offsets: np.ndarray, lengths: np.ndarray
    ) -> np.ndarray:
        """Reads some ranges.

        Args:
          files: for each range the number of its file, [n].
          offsets: in bytes, [n].
          lengths: in bytes, [n].

        Returns:
          The bytes of each range, in the order of the arguments, object [n].

        Raises:
          DataError, StoreFailed, OSError: as `storage.read_range`.
        """
        contents = np.empty(len(files), object)
        order = np.lexsort((offsets, files))
        sorted_files = files[order]
        starts = offsets[order].astype(np.int64)
        stops = starts + lengths[order].astype(np.int64)
        gap = _DISTANT_GAP_BYTES if self._is_distant else _GAP_BYTES
        apart = (np.diff(sorted_files) != 0) | (starts[1:] - stops[:-1] > gap)
        bounds = [0, *(np.flatnonzero(apart) + 1).tolist(), len(order)]
        numbers, first, last = sorted_files.tolist(), starts.tolist(), stops.tolist()
        place = order.tolist()

        def fetch(run: tuple[int, int]) -> None:
            begin, end = run
            start, stop = first[begin], max(last[begin:end])
            content = self._request(numbers[begin], start, stop)
            if end - begin == 1:
                contents[place[begin]] = bytes(content)
                return
            view = memoryview(content)
            for i in range(begin, end):
                contents[place[i]] = bytes(view[first[i] - start : last[i] - start])

        runs = list(itertools.pairwise(bounds)) if len(order) else []
        if not self._is_distant:
            for run in runs:
                fetch(run)
            return contents
        runs = [part for run in runs for part in _divided(run, first, last)]
        if len(runs) == 1:
            fetch(runs[0])
        else:
            for _ in storage.each(fetch, runs):
                pass
        return contents

    def _request(self, number: int, start: int, stop: int) -> Any:
        path = self._paths[number]
        request = self._request_object if self._is_remote else self._request_local
        content = storage.retried(path, lambda: request(path, start, stop))
        storage.check_length(path, start, stop - start, len(content))
        return content

    def _request_object(self, path: str, start: int, stop: int) -> Any:
        return object_store.read(path, start, stop)

    def _request_local(self, path: str, start: int, stop: int) -> bytes:
        file = self._descriptors.get(path)
        try:
            return storage.read_descriptor(file.number, start, stop - start)
        except OSError:
            # A server that restarted does not know it any more.
            self._descriptors.forget(path)
            raise


def _divided(
    run: tuple[int, int], first: list[int], last: list[int]
) -> list[tuple[int, int]]:
    """A run of ranges as several of about `_DISTANT_BYTES`."""
    begin, end = run
    if max(last[begin:end]) - first[begin] <= _DISTANT_BYTES:
        return [run]
    parts = []
    for i in range(begin + 1, end):
        if last[i] - first[begin] > _DISTANT_BYTES:
            parts.append((begin, i))
            begin = i
    return [*parts, (begin, end)]


class _Descriptor:
    """An open file, closed when nobody uses it any more."""

    __slots__ = ("number",)

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        # Absent if the file could not be opened.
        if hasattr(self, "number"):
            os.close(self.number)


class Opened(Generic[_File]):
    """The files used last, open; any thing that closes itself when nobody uses it."""

    def __init__(self, function: Callable[[str], _File]) -> None:
        """Takes the function that opens a path."""
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if allowed == resource.RLIM_INFINITY:
            allowed = 4 * _MAX_OPEN
        # Other datasets and the rest of the process need some too.
        self._limit = max(min(allowed // 4, _MAX_OPEN), 1)
        self._function = function
        self._open: collections.OrderedDict[str, _File] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: str) -> _File:
        """The open file of a path."""
        with self._lock:
            if path in self._open:
                self._open.move_to_end(path)
                return self._open[path]
        opened = self._function(path)  # may wait for a disk
        with self._lock:
            self._open[path] = opened
            if len(self._open) > self._limit:
                self._open.popitem(last=False)
        return opened

    def forget(self, path: str) -> None:
        """Opens a path anew the next time."""
        with self._lock:
            self._open.pop(path, None)
