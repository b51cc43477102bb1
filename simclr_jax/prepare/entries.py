"""Which images an input holds, in which order, with which labels and splits."""

import collections
import dataclasses
import glob
import hashlib
import os
import pathlib
import re
import stat
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from simclr_jax.data.sources import kept, object_store, storage
from simclr_jax.data.sources.base import NO_LABEL
from simclr_jax.data.sources.folder import SPLITS
from simclr_jax.data.sources.folder_files import IMAGE_SUFFIXES
from simclr_jax.errors import DataError

SUFFIXES = IMAGE_SUFFIXES


class Entry(NamedTuple):
    """One image of an input.

    Attributes:
      path: within the input, with '/'.
      size: in bytes; 0 where one had to read it to know.
      time: of the last change, where there is one.
      place: how the input finds it, where the path is not enough.
      label: its class, where the input itself has labels.
      split: its split, where the input itself has splits.
    """

    path: str
    size: int
    time: int = 0
    place: Any = None
    label: int = NO_LABEL
    split: str | None = None


class Input(Protocol):
    """Somebody's images. Travels to other processes, which read from it.

    Attributes:
      name: for messages.
      packed: whether one more folder may lie around all, as in most archives.
      class_names: what the entries' own labels mean, [] if they have none; None where
        names tell which files are images, and folders are the classes.
    """

    name: str
    packed: bool

    @property
    def class_names(self) -> list[str] | None:
        """See above."""
        ...

    def entries(self) -> list[Entry]:
        """Everything in it, images or not, in any order."""
        ...

    def read(self, entry: Entry) -> bytes:
        """The bytes of one image; any OSError, RuntimeError or ValueError if broken."""
        ...


@dataclasses.dataclass(frozen=True)
class Listing:
    """The images of an input, in their order.

    Attributes:
      entries: sorted by path.
      labels: int32, -1 where there is none.
      splits: the split of each, None where the input has none.
      class_names: None for unlabelled images.
      ignored: how many files are no images by name, by suffix.
    """

    entries: list[Entry]
    labels: np.ndarray
    splits: list[str] | None
    class_names: list[str] | None
    ignored: dict[str, int]

    def stamp(self, *, times: bool) -> str:
        """A checksum of paths and sizes, and of times of change if asked for."""
        digest = hashlib.sha256()
        for entry in self.entries:
            line = f"{entry.path}\0{entry.size}\0{entry.time if times else ''}\0"
            digest.update(line.encode(errors="surrogateescape"))
        digest.update(self.labels.tobytes())
        return digest.hexdigest()


def list_images(source: Input) -> Listing:
    """Lists an input's images.

    Labels are those of the input itself or, as for `folder:PATH`, the top folders if
    all images lie in several. Top folders with the names of splits are splits.

    Raises:
      DataError: there is no image in it.
    """
    ignored: collections.Counter[str] = collections.Counter()
    found = {}
    by_name = source.class_names is None
    for entry in source.entries():
        if f"/{kept.FOLDER}/" in f"/{entry.path}":
            continue  # what training keeps about a folder of images
        name = entry.path.rsplit("/", 1)[-1]
        suffix = pathlib.PurePosixPath(name).suffix.lower()
        # What macOS adds to archives is named like the images.
        stray = name.startswith("._") or entry.path.startswith("__MACOSX/")
        if by_name and (stray or suffix not in SUFFIXES):
            ignored[suffix] += 1
        else:
            # The last one of a path is what unpacking an archive would leave.
            found[entry.path] = entry
    if not found:
        raise DataError(
            f"--input: {source.name}: holds no image (looked for "
            f"{', '.join(SUFFIXES)} among {sum(ignored.values())} files)"
        )
    entries = sorted(found.values(), key=lambda entry: entry.path.split("/"))
    if source.class_names is None:
        splits, labels, class_names = _by_folders(entries, packed=source.packed)
    else:
        class_names = source.class_names
        labels = np.array([entry.label for entry in entries], np.int32)
        splits = [entry.split for entry in entries if entry.split] or None
    return Listing(entries, labels, splits, class_names or None, dict(ignored))


def _by_folders(
    entries: list[Entry], *, packed: bool
) -> tuple[list[str] | None, np.ndarray, list[str] | None]:
    """(splits, labels, class names) by the folders that images lie in."""
    folders = [entry.path.split("/")[:-1] for entry in entries]
    while packed and len(_tops(folders)) == 1:
        folders = [parts[1:] for parts in folders]
    splits = None
    tops = _tops(folders)
    if len(tops) > 1 and SPLITS.issuperset(tops):
        splits = [parts[0] for parts in folders]
        folders = [parts[1:] for parts in folders]
        tops = _tops(folders)
    if len(tops) < 2:
        return splits, np.full(len(entries), NO_LABEL, np.int32), None
    number = {name: i for i, name in enumerate(tops)}
    labels = np.array([number[parts[0]] for parts in folders], np.int32)
    return splits, labels, tops


def _tops(folders: list[list[str]]) -> list[str]:
    """The top folders, if all lie in one."""
    return sorted({parts[0] for parts in folders}) if all(folders) else []


class FolderInput:
    """A folder, or the files of a glob, with everything below."""

    packed = False
    class_names = None

    def __init__(self, pattern: str, *, without: str) -> None:
        """Finds the folder.

        Args:
          pattern: a folder or a glob; local or on a store.
          without: a local folder that is none of the input.
        """
        self.name = pattern
        self._without = os.path.realpath(without)
        self._pattern = None
        self._root = pattern.rstrip("/") or "/"
        if not storage.is_folder(pattern):
            self._pattern = pattern
            # The folders before the first wildcard.
            self._root = re.split(r"[^/]*[*?\[]", pattern, maxsplit=1)[0].rstrip("/")

    def entries(self) -> list[Entry]:
        """See `Input`."""
        start = len(self._root.rstrip("/")) + 1 if self._root else 0
        if storage.is_remote(self._root):
            return [Entry(o.path[start:], o.size, o.time) for o in self._list_objects()]
        tops: Iterable[str] = [self._root]
        if self._pattern is not None:
            tops = glob.iglob(self._pattern, recursive=True, include_hidden=True)
        found = {}
        for top in tops:
            for path, size, time in self._walk(top):
                found[path] = Entry(path[start:], size, time)
        return list(found.values())

    def _list_objects(self) -> list[object_store.Object]:
        """What is on a store: of a glob, what matches and what lies below that."""
        objects = storage.retried(
            self._root, lambda: list(object_store.list_below(self._root))
        )
        if self._pattern is None:
            return objects
        matching = re.compile(f"{_as_expression(self._pattern)}(/.*)?")
        return [o for o in objects if matching.fullmatch(o.path)]

    def read(self, entry: Entry) -> bytes:
        """See `Input`."""
        path = f"{self._root.rstrip('/')}/{entry.path}" if self._root else entry.path
        return storage.read_file(path)

    def _walk(
        self, top: str, parents: frozenset = frozenset()
    ) -> Iterator[tuple[str, int, int]]:
        """Files with size and time; links are followed."""
        try:
            status = os.stat(top)
        except OSError:
            # A link to nowhere; reading it will say so.
            yield top, 0, 0
            return
        if stat.S_ISDIR(status.st_mode):
            identity = (status.st_dev, status.st_ino)
            if identity not in parents and os.path.realpath(top) != self._without:
                for name in os.listdir(top):
                    path = os.path.join(top, name)
                    yield from self._walk(path, parents | {identity})
        elif stat.S_ISREG(status.st_mode):
            yield top, status.st_size, status.st_mtime_ns


def _as_expression(pattern: str) -> str:
    """A glob as a regular expression: only `**` matches `/`."""
    parts = re.split(r"(\*\*/|\*|\?|\[[^]]+\])", pattern)
    special = {"**/": "(?:[^/]+/)*", "*": "[^/]*", "?": "[^/]"}
    found = []
    for number, part in enumerate(parts):
        if number % 2 == 0:
            found.append(re.escape(part))
        else:
            found.append(special.get(part) or part.replace("[!", "[^"))
    return "".join(found)
