"""What is worked out about a dataset once and kept: indexes of records, listings.

It is kept in a folder beside the dataset or, where that cannot be written, in the
user's cache. Long work is divided into parts, which are kept too until all are done:
processes that open a dataset at the same time share them, and a start after a kill
continues.
"""

import contextlib
import dataclasses
import hashlib
import io
import logging
import os
import pathlib
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np

from simclr_jax import paths
from simclr_jax.data.sources import storage
from simclr_jax.errors import DataError, first_line

_LOG = logging.getLogger(__name__)
FOLDER = ".simclr_jax"
# How long the parts of other processes are waited for: as long as the own ones took,
# and this.
_PATIENCE_SECS = 5.0
_POLL_SECS = 1.0
_PART = ".part-"

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Sharing:
    """The processes that open a dataset at the same time.

    Attributes:
      index: of this one.
      count: of all.
    """

    index: int = 0
    count: int = 1


ALONE = Sharing()


def cache_folder() -> pathlib.Path:
    """The user's folder for what cannot be kept beside a dataset."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(root) / "simclr_jax"


class Place:
    """Where things about the dataset in a folder are kept, by name."""

    def __init__(self, folder: str) -> None:
        """Describes the place; nothing is read or written.

        Args:
          folder: of the dataset, local or on a store.
        """
        located = folder if storage.is_remote(folder) else os.path.realpath(folder)
        digest = hashlib.sha256(located.encode(errors="surrogateescape")).hexdigest()
        self._beside = f"{folder.rstrip('/')}/{FOLDER}"
        self._cache = str(cache_folder() / "datasets" / digest[:24])
        self._writable = [self._beside, self._cache]

    def load(self, name: str) -> Arrays | None:
        """The arrays kept under a name; None if there are none."""
        for folder in (self._beside, self._cache):
            path = f"{folder}/{name}.npz"
            try:
                content = storage.read_file(path)
            except OSError:  # there is none, or none that may be read
                continue
            try:
                with np.load(io.BytesIO(content)) as arrays:
                    return dict(arrays)
            except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
                _LOG.warning(
                    "file %s: cannot be used (%s); it is made anew",
                    path,
                    first_line(error),
                )
        return None

    def save(self, name: str, arrays: Arrays) -> str | None:
        """Keeps arrays, at once or not at all; returns the path, None if it failed."""
        buffer = io.BytesIO()
        np.savez(buffer, **cast(Any, arrays))
        while self._writable:
            path = f"{self._writable[0]}/{name}.npz"
            try:
                _write(path, buffer.getvalue())
            except Exception as error:  # stores' libraries have their own
                _LOG.info("%s: cannot be written (%s)", path, first_line(error))
                del self._writable[0]
            else:
                return path
        _LOG.warning(
            "what was worked out about %s cannot be kept, so the next start repeats it",
            os.path.dirname(self._beside),
        )
        return None

    def names(self) -> set[str]:
        """What is kept."""
        found: set[str] = set()
        for folder in (self._beside, self._cache):
            with contextlib.suppress(OSError, DataError):
                found |= set(storage.files_in(folder))
        return {name.removesuffix(".npz") for name in found}

    def remove(self, names: Sequence[str]) -> None:
        """Forgets what was kept under some names."""
        for folder in (self._beside, self._cache):
            for name in names:
                with contextlib.suppress(Exception):  # another process removed it
                    paths.as_path(f"{folder}/{name}.npz").unlink()


def _write(path: str, content: bytes) -> None:
    if storage.is_remote(path):
        paths.as_path(path).write_bytes(content)  # all or nothing, on stores
        return
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as file:
        try:
            file.write(content)
            os.fchmod(file.fileno(), 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def in_parts(
    place: Place,
    name: str,
    stamps: Sequence[str],
    compute: Callable[[int], Arrays],
    sharing: Sharing,
) -> list[Arrays]:
    """Computes the parts of some work, those of this process first.

    Each process starts at another part, skips those that others have kept meanwhile,
    and does what they leave undone, so that none depends on another.

    Args:
      place: where the parts are kept, until `forget_parts` in a later start: others may
        still have to read them in this one.
      name: of the work.
      stamps: of each part: a text that changes with what it is computed from.
      compute: the number of a part -> its arrays.
      sharing: the processes that do the same work.

    Returns:
      The arrays of each part.
    """
    parts = _Parts(place, name, stamps, compute)
    first, stop = ((sharing.index + n) * len(stamps) // sharing.count for n in (0, 1))
    start = time.monotonic()
    parts.take_kept()
    parts.work_on(range(first, stop))
    now = time.monotonic()
    while not parts.complete() and time.monotonic() < 2 * now - start + _PATIENCE_SECS:
        time.sleep(_POLL_SECS)
        parts.take_kept()
    for number in (*range(stop, len(stamps)), *range(first)):
        parts.take_kept()
        parts.work_on([number])
    return parts.results()


class _Parts:
    """The parts of some work; see `in_parts`."""

    def __init__(
        self,
        place: Place,
        name: str,
        stamps: Sequence[str],
        compute: Callable[[int], Arrays],
    ) -> None:
        self._place, self._compute = place, compute
        self._names = [
            f"{name}{_PART}{number:05}-{stamp}" for number, stamp in enumerate(stamps)
        ]
        self._results: dict[int, Arrays] = {}

    def complete(self) -> bool:
        return len(self._results) == len(self._names)

    def results(self) -> list[Arrays]:
        return [self._results[number] for number in range(len(self._names))]

    def take_kept(self) -> None:
        """Reads the parts that other processes or earlier starts have kept."""
        # A single part is no work to share.
        if self.complete() or len(self._names) == 1:
            return
        there = self._place.names()
        for number, name in enumerate(self._names):
            if number not in self._results and name in there:
                arrays = self._place.load(name)
                if arrays is not None:
                    self._results[number] = arrays

    def work_on(self, numbers: Iterable[int]) -> None:
        """Computes the parts that are not there."""
        for number in numbers:
            if number not in self._results:
                self._results[number] = self._compute(number)
                if len(self._names) > 1:
                    self._place.save(self._names[number], self._results[number])


def forget_parts(place: Place, name: str) -> None:
    """Removes the parts of finished work."""
    place.remove([kept for kept in place.names() if kept.startswith(f"{name}{_PART}")])


def stamp(*values: object) -> str:
    """A short text that changes with any of the values."""
    return hashlib.sha256("\0".join(map(str, values)).encode()).hexdigest()[:16]
