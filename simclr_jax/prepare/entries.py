"""Which images an input holds, in which order, with which labels and splits."""

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from simclr_jax.data.image_files import HEIF_SUFFIXES
from simclr_jax.data.sources import (
    folder_files,
    folder_names,
    kept,
    object_store,
    split_names,
    storage,
)
from simclr_jax.data.sources.base import NO_LABEL
from simclr_jax.data.sources.folder_files import IMAGE_SUFFIXES
from simclr_jax.data.sources.folder_layout import Layout, LeftOut, understand
from simclr_jax.data.sources.folder_reading import AUTO, SPLITS, Hints
from simclr_jax.errors import DataError
from simclr_jax.prepare import patterns

SUFFIXES = (*IMAGE_SUFFIXES, *HEIF_SUFFIXES)
_HINTS = Hints("--top_folders=classes", "--top_folders=splits")


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
      class_names: what the entries' own labels mean, [] if they have none; None where
        names tell which files are images, and folders are the classes.

    One with labels of its own may have `left_out`: how many of its files are no images
    of the dataset, by suffix or reason.
    """

    name: str

    @property
    def class_names(self) -> list[str] | None:
        """See above."""
        ...

    def entries(self) -> list[Entry]:
        """Everything in it, images or not, in any order.

        A path that ends in '/' is a folder that was not entered, as in `folder_names`.
        """
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
      splits: the split of each, or None where it has none; None if no image has.
      class_names: None for unlabelled images.
      meanings: of the names of splits, see `split_names`.
      left_out: files that are no images of the dataset, by reason.
      table: all this for people.
    """

    entries: list[Entry]
    labels: np.ndarray
    splits: list[str | None] | None
    class_names: list[str] | None
    meanings: dict[str, str | None]
    left_out: dict[str, LeftOut]
    table: str

    def counts_left_out(self) -> dict[str, int]:
        """How many files are left out, by reason."""
        return {reason: left.count for reason, left in self.left_out.items()}

    def stamp(self, *, times: bool) -> str:
        """A checksum of paths and sizes, and of times of change if asked for."""
        digest = hashlib.sha256()
        for entry in self.entries:
            line = f"{entry.path}\0{entry.size}\0{entry.time if times else ''}\0"
            digest.update(line.encode(errors="surrogateescape"))
        digest.update(self.labels.tobytes())
        return digest.hexdigest()


def list_images(source: Input, top_folders: str = AUTO) -> Listing:
    """Lists an input's images.

    Labels and splits are those of the input itself or, as for `folder:PATH`, those of
    its folders.

    Args:
      source: the input.
      top_folders: see `folder_layout.understand`.

    Raises:
      DataError: there is no image in it, or two splits have the same name.
    """
    # The last one of a path is what unpacking an archive would leave.
    found = {
        entry.path: entry
        for entry in source.entries()
        if f"/{kept.FOLDER}/" not in f"/{entry.path}"  # what training keeps there
    }
    entries = sorted(found.values(), key=lambda entry: entry.path.split("/"))
    if source.class_names is None:
        paths = [entry.path for entry in entries]
        layout = understand(paths, SUFFIXES, top_folders=top_folders, hints=_HINTS)
    else:
        layout = _as_declared(
            entries, source.class_names, getattr(source, "left_out", {})
        )
    if not len(layout.numbers):
        raise DataError(
            f"--input: {source.name}: holds no image (looked for "
            f"{', '.join(SUFFIXES)} among {len(entries)} files)"
        )
    names = _plain_names(source.name, layout, top_folders)
    return Listing(
        [entries[n] for n in layout.numbers.tolist()],
        layout.labels,
        [names[n] if n >= 0 else None for n in layout.split.tolist()]
        if names
        else None,
        layout.class_names,
        dict(zip(names, layout.splits.values(), strict=True)),
        layout.left_out,
        layout.table(),
    )


def _as_declared(
    entries: list[Entry], class_names: list[str], left_out: Mapping[str, int]
) -> Layout:
    """The layout of an input that has labels and splits itself."""
    names = sorted({entry.split for entry in entries if entry.split})
    order = {name: n for n, name in enumerate(names)}
    other = -1 if names else 0
    return Layout(
        numbers=np.arange(len(entries)),
        labels=np.array([entry.label for entry in entries], np.int32),
        class_names=class_names or None,
        splits={name: split_names.meaning(name) for name in names},
        split=np.array([order.get(entry.split or "", other) for entry in entries]),
        base="",
        split_folders=False,
        left_out={reason: LeftOut(count) for reason, count in left_out.items()},
        remarks=[],
    )


def _plain_names(what: str, layout: Layout, top_folders: str) -> list[str]:
    """The names of the splits in the dataset, where they are parts of names of files.

    Raises:
      DataError: two are the same.
    """
    names: dict[str, str] = {}
    for name, means in layout.splits.items():
        plain = re.sub(r"\W", "_", name)
        if means and top_folders != SPLITS:
            plain = split_names.plain(name, means)
        if plain in (*names, "all"):
            raise DataError(
                f"--input: {what}: {names.get(plain, plain)} and {name} would both be "
                f"the split {plain!r}; prepare one of them alone, or with "
                f"{_HINTS.split} (as they are named) or {_HINTS.classes}"
            )
        names[plain] = name
    return list(names)


class FolderInput:
    """A folder, or the files of a glob, with everything below."""

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
            self._root = patterns.root_of(pattern)

    def entries(self) -> list[Entry]:
        """See `Input`."""
        start = len(self._root.rstrip("/")) + 1 if self._root else 0
        if storage.is_remote(self._root):
            return [Entry(o.path[start:], o.size, o.time) for o in self._list_objects()]
        if self._pattern is None:
            return list(self._below("", self._root))
        if "**" in self._pattern and self._root:
            # Not by `glob`, which goes round links to a folder around them.
            is_match = self._matches()
            everything = self._below("", self._root)
            return [e for e in everything if is_match(self._path(e))]
        found = {}
        for top in patterns.matches(self._pattern):
            for entry in self._below(top[start:], top):
                found[entry.path] = entry
        return list(found.values())

    def _below(self, path: str, top: str) -> Iterator[Entry]:
        """A file, or what is below a folder.

        Args:
          path: within the input.
          top: the same, to open it.
        """
        if not os.path.isdir(top):
            if os.path.isfile(top) or os.path.islink(top):
                yield Entry(path, *folder_files.size_and_time(top))
            return
        if os.path.realpath(top) == self._without:
            return
        before = f"{path}/" if path else ""
        names = folder_names.find(top, without=self._without).paths
        entered = [name for name in names if not name.endswith("/")]
        files = folder_files.measure(top, entered, {})
        columns = files.paths, files.sizes.tolist(), files.times.tolist()
        for name, size, time in zip(*columns, strict=True):
            yield Entry(before + name, size, time)
        yield from (Entry(before + n, 0) for n in names if n.endswith("/"))

    def _list_objects(self) -> list[object_store.Object]:
        """What is on a store: of a glob, what matches and what lies below that."""
        objects = patterns.objects_below(self._root)
        if self._pattern is None:
            return objects
        is_match = self._matches()
        return [o for o in objects if is_match(o.path)]

    def _matches(self) -> Callable[[str], bool]:
        """Tells paths that match the glob, or lie below one that does."""
        matching = [
            re.compile(f"{patterns.as_expression(name)}(/.*)?")
            for name in patterns.expand_braces(self._pattern or "")
        ]
        return lambda path: any(m.fullmatch(path) for m in matching)

    def read(self, entry: Entry) -> bytes:
        """See `Input`."""
        return storage.read_file(self._path(entry))

    def _path(self, entry: Entry) -> str:
        return f"{self._root.rstrip('/')}/{entry.path}" if self._root else entry.path
