"""Images inside .tar and .zip archives, read from there without unpacking."""

import bz2
import functools
import gzip
import io
import lzma
import os
import posixpath
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from simclr_jax.data.sources import storage
from simclr_jax.errors import DataError, first_line
from simclr_jax.prepare.entries import Entry

_PACKED: dict[str, Callable[..., Any]] = {
    ".tar.gz": gzip.open,
    ".tgz": gzip.open,
    ".tar.bz2": bz2.open,
    ".tbz2": bz2.open,
    ".tar.xz": lzma.open,
    ".txz": lzma.open,
}
TAR_SUFFIXES = (".tar", *_PACKED)
SUFFIXES = (*TAR_SUFFIXES, ".zip")
_MOST_WANTED_BYTES = 1 << 20
# Some dozens of images: read in one request, also where only names are asked for.
_REMOTE_BUFFER_BYTES = 4 << 20
_BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError)


class TarInput:
    """A .tar file, read at random."""

    class_names = None

    def __init__(self, path: str, *, scratch: str) -> None:
        """Opens an archive.

        Args:
          path: of the archive, local or on a store.
          scratch: a local folder for its unpacked form, if it is compressed.
        """
        self.name = path
        self._path = locate_tar(path, scratch=scratch)

    def entries(self) -> list[Entry]:
        """See `Input`."""
        return [member.entry for member in members(self._path, name=self.name)]

    def read(self, entry: Entry) -> bytes:
        """See `Input`."""
        return storage.read_range(self._path, entry.place, entry.size)


def locate_tar(path: str, *, scratch: str) -> str:
    """Where a .tar file can be read at random.

    Args:
      path: of the file; where it is not compressed, this is returned.
      scratch: a local folder for the unpacked form of another: its files could only be
        read one after the other.

    Raises:
      DataError: it cannot be unpacked.
    """
    unpack = next((_PACKED[s] for s in _PACKED if path.lower().endswith(s)), None)
    if not unpack:
        return path
    target = os.path.join(scratch, "input.tar")
    if not os.path.exists(target):
        located = fetch(path, scratch) if storage.is_remote(path) else path
        _unpack(located, unpack, target)
    return target


class Member(NamedTuple):
    """A file in an archive.

    Attributes:
      entry: its path, size, time, and in `place` its first byte in the archive.
      content: its bytes, if they were wanted.
    """

    entry: Entry
    content: bytes | None


def members(
    path: str, *, name: str, wanted: Callable[[str], bool] = lambda path: False
) -> Iterator[Member]:
    """The regular files in a .tar file that is not compressed, in its order.

    Args:
      path: of the archive, local or on a store.
      name: of the archive, for messages.
      wanted: whether the content of a file is, by its path; at most 1 MiB of it.

    Raises:
      DataError: it is no whole .tar file.
      StoreFailed: its store does not answer.
    """
    try:
        size = storage.file_size(path) or 0
        with (
            _opened(path, size) as file,
            tarfile.open(fileobj=file, mode="r:") as archive,
        ):
            for member in archive:
                if not member.isreg() or member.issparse():
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"ends within {member.name}")
                inside = posixpath.normpath(member.name).lstrip("/")
                content = None
                if wanted(inside) and member.size <= _MOST_WANTED_BYTES:
                    opened = archive.extractfile(member)
                    content = opened.read() if opened else None
                place = member.offset_data
                entry = Entry(inside, member.size, int(member.mtime), place)
                yield Member(entry, content)
    except _BROKEN as error:
        raise DataError(
            f"--input: file {name}: is no whole .tar file ({first_line(error)})"
        ) from error


def _opened(path: str, size: int) -> BinaryIO:
    if not storage.is_remote(path):
        return open(path, "rb")
    return io.BufferedReader(_RemoteFile(path, size), _REMOTE_BUFFER_BYTES)


class _RemoteFile(io.RawIOBase):
    """A file on a store; what is skipped is not read."""

    def __init__(self, path: str, size: int) -> None:
        self._path, self._size, self._position = path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        before = {io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        self._position = before.get(whence, 0) + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self._size - self._position))
        if length:
            content = storage.read_range(self._path, self._position, length)
            buffer[:length] = content
            self._position += length
        return length


def fetch(path: str, scratch: str) -> str:
    """Copies an archive from a store, to be read as a whole; returns its path."""
    target = os.path.join(scratch, os.path.basename(path))
    if not os.path.exists(target):
        os.makedirs(scratch, exist_ok=True)
        with open(f"{target}.unfinished", "wb") as output:
            storage.copy(path, output)
        os.replace(f"{target}.unfinished", target)
    return target


def _unpack(path: str, opened: Callable[..., Any], target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    unfinished = f"{target}.unfinished"
    with open(unfinished, "wb") as output:
        try:
            with opened(path, "rb") as packed:
                shutil.copyfileobj(packed, output, 1 << 20)
        except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
            raise DataError(
                f"--input: file {path}: cannot be unpacked ({first_line(error)})"
            ) from error
    os.replace(unfinished, target)


class ZipInput:
    """A .zip file."""

    class_names = None

    def __init__(self, path: str) -> None:
        """Opens an archive."""
        self.name = path

    def entries(self) -> list[Entry]:
        """See `Input`."""
        found = []
        for number, member in enumerate(_open_zip(self.name).infolist()):
            if member.filename and not member.is_dir():
                path = posixpath.normpath(member.filename).lstrip("/")
                found.append(Entry(path, member.file_size, member.CRC, number))
        return found

    def read(self, entry: Entry) -> bytes:
        """See `Input`."""
        archive = _open_zip(self.name)
        try:
            return archive.read(archive.infolist()[entry.place])
        except MemoryError:
            raise
        except Exception as error:  # zipfile raises anything on damaged archives
            raise ValueError(first_line(error)) from error


@functools.lru_cache(maxsize=1)
def _open_zip(path: str) -> zipfile.ZipFile:
    # Kept open: a large archive's table of contents takes seconds to read.
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # zipfile raises anything on damaged archives
        raise DataError(
            f"--input: file {path}: is no whole .zip file ({first_line(error)})"
        ) from error
