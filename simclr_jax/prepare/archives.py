"""Images inside .tar and .zip archives, read from there without unpacking."""

import bz2
import functools
import gzip
import lzma
import os
import posixpath
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

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
SUFFIXES = (".tar", *_PACKED, ".zip")
_BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError)


class TarInput:
    """A .tar file, read at random."""

    class_names = None

    def __init__(self, path: str, *, scratch: str) -> None:
        """Opens an archive.

        Args:
          path: of the archive.
          scratch: a folder for its unpacked form, if it is compressed: its images could
            only be read one after the other.
        """
        self.name = path
        self._path = path
        unpack = next((_PACKED[s] for s in _PACKED if path.lower().endswith(s)), None)
        if unpack:
            self._path = os.path.join(scratch, "input.tar")
            if not os.path.exists(self._path):
                _unpack(path, unpack, self._path)

    def entries(self) -> list[Entry]:
        """See `Input`."""
        found = []
        size = os.path.getsize(self._path)
        try:
            with tarfile.open(self._path, "r:") as archive:
                for member in archive:
                    if not member.isreg() or member.issparse():
                        continue
                    if member.offset_data + member.size > size:
                        raise tarfile.ReadError(f"ends within {member.name}")
                    path = posixpath.normpath(member.name).lstrip("/")
                    found.append(
                        Entry(path, member.size, int(member.mtime), member.offset_data)
                    )
        except _BROKEN as error:
            raise DataError(
                f"--input: file {self.name}: is no whole .tar file "
                f"({first_line(error)})"
            ) from error
        return found

    def read(self, entry: Entry) -> bytes:
        """See `Input`."""
        return storage.read_range(self._path, entry.place, entry.size)


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
