"""Where a dataset goes: a local folder, or a folder on a store.

Unfinished work needs a local disk. It lies inside a local output, so that finished
files only have to be renamed, and elsewhere for a store.
"""

import hashlib
import os
import pathlib
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from simclr_jax import paths
from simclr_jax.data.sources import kept, storage
from simclr_jax.data.sources.prepared import MANIFEST
from simclr_jax.errors import DataError, first_line

WORK = ".prepare"
_UPLOADS = 8  # at a time


class Output(Protocol):
    """The folder that becomes a dataset.

    Attributes:
      name: for messages.
      work: the local folder of unfinished work.
      shared: a folder on the store for the work of other machines; None for a local
        output.
    """

    name: str
    work: pathlib.Path
    shared: str | None

    def is_finished(self) -> bool:
        """Whether it is a dataset."""
        ...

    def claim(self) -> None:
        """Creates it and the folder of work, unless it holds other files.

        Raises:
          DataError: it does, or cannot be written.
        """
        ...

    def publish(self, folder: pathlib.Path) -> None:
        """Moves the files of a local folder there, the manifest last."""
        ...

    def clean(self) -> None:
        """Removes what was only needed for the work."""
        ...


def open_output(path: str, *, scratch: str | None) -> Output:
    """The output with a path.

    Args:
      path: local or on a store.
      scratch: a local folder for the unfinished work of an output on a store; one in
        the user's cache when None.

    Raises:
      DataError: the path names no known store, or no bucket.
    """
    if storage.is_remote(path):
        return _Bucket(storage.expanded(path), scratch)
    if scratch is not None:
        raise DataError(
            f"--scratch={scratch}: is for an --output on a store; the work on a local "
            "one lies inside it"
        )
    return _Folder(pathlib.Path(path).expanduser())


class _Folder:
    """A local folder."""

    shared: str | None = None

    def __init__(self, folder: pathlib.Path) -> None:
        self.name = str(folder)
        self.work = folder / WORK
        self._folder = folder

    def is_finished(self) -> bool:
        return (self._folder / MANIFEST).exists()

    def claim(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"--output={self.name}: cannot be created ({error.strerror})"
            ) from error
        if not self.work.exists() and any(self._folder.iterdir()):
            raise DataError(
                f"--output={self.name}: must be new or empty, and holds other files"
            )
        self.work.mkdir(exist_ok=True)

    def publish(self, folder: pathlib.Path) -> None:
        for path in _manifest_last(folder):
            os.replace(path, self._folder / path.name)

    def clean(self) -> None:
        shutil.rmtree(self.work)


class _Bucket:
    """A folder on a store."""

    def __init__(self, folder: str, scratch: str | None) -> None:
        self.name = self._folder = folder
        digest = hashlib.sha256(folder.encode()).hexdigest()[:24]
        root = pathlib.Path(scratch).expanduser() if scratch else kept.cache_folder()
        self.work = root.absolute() / "prepare" / digest
        # Says on the store that somebody is at work, and proves that it can be written.
        self._claim = f"{folder}/{WORK}"
        self.shared: str | None = f"{folder}/{WORK}-shared"

    def is_finished(self) -> bool:
        storage.check_bucket(self._folder)
        return storage.file_size(f"{self._folder}/{MANIFEST}") is not None

    def claim(self) -> None:
        own = f"{socket.gethostname()}:{self.work}"
        if storage.file_size(self._claim) is not None:
            other = storage.read_file(self._claim).decode(errors="replace")
            if other != own:
                raise DataError(
                    f"--output={self.name}: is being prepared in {other}, or was when "
                    f"that stopped; continue there, or remove {self._claim} first"
                )
        elif storage.is_folder(self._folder):
            raise DataError(
                f"--output={self.name}: must be new or empty, and holds other files"
            )
        try:
            paths.as_path(self._claim).write_text(own)
        except Exception as error:  # stores' libraries have their own
            raise DataError(
                f"--output={self.name}: cannot be written ({first_line(error)})"
            ) from error
        try:
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"--scratch: folder {self.work} cannot be created ({error.strerror})"
            ) from error

    def publish(self, folder: pathlib.Path) -> None:
        there = storage.files_in(self._folder)
        files = _manifest_last(folder)
        todo = [
            path
            for path in files[:-1]
            if there.get(path.name, (None,))[0] != path.stat().st_size
        ]
        with ThreadPoolExecutor(_UPLOADS) as pool:
            list(pool.map(self._upload, todo))
        self._upload(files[-1])

    def _upload(self, path: pathlib.Path) -> None:
        upload(path, f"{self._folder}/{path.name}")

    def clean(self) -> None:
        shutil.rmtree(self.work)
        if self.shared and storage.is_folder(self.shared):
            paths.as_path(self.shared).rmtree()
        paths.as_path(self._claim).unlink(missing_ok=True)


def upload(path: pathlib.Path, target: str) -> None:
    """Copies a local file to a store.

    Raises:
      OSError: it cannot be written there.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file, paths.as_path(target).open("wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 22)
    except Exception as error:  # stores' libraries have their own
        raise OSError(f"{target}: cannot be written ({first_line(error)})") from error
    if storage.file_size(target) != size:
        raise OSError(f"{target}: has other than the {size} bytes that were written")


def _manifest_last(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.iterdir(), key=lambda path: (path.name == MANIFEST, path.name))
