"""The names of all files below a folder, on a disk or a store."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from simclr_jax.data.sources import kept, object_store, storage
from simclr_jax.data.sources.folder_layout import is_hidden
from simclr_jax.errors import DataError

_THREADS = 16
# Of a store: where so few folders lie at a level, the next one is listed first.
_FEW_FOLDERS, _MOST_LEVELS = 32, 4


class Names(NamedTuple):
    """What is below a folder.

    Attributes:
      paths: relative to it, with '/', in the order of their parts. Those that end in
        '/' are not entered: hidden folders, and links to a folder around them.
      known: size and time of the files of a store, by path; {} on a disk.
    """

    paths: list[str]
    known: dict[str, tuple[int, int]]


def find(root: str, *, without: str = "") -> Names:
    """The names of all files below a folder, except what training keeps there.

    Links to files and folders are followed.

    Args:
      root: local or on a store.
      without: the real path of a local folder that is passed over.

    Raises:
      DataError: a folder cannot be read.
    """
    known: dict[str, tuple[int, int]] = {}
    if storage.is_remote(root):
        found, objects = _find_objects(root)
        known = {path: (size, time) for path, size, time in objects}
        found += known
    else:
        found = _find_local(root, without)
    # As if paths were split at '/', which sorts before everything else.
    found.sort(key=lambda path: path.replace("/", "\0"))
    return Names(found, known)


class _Folder(NamedTuple):
    """A folder to list.

    Attributes:
      path: relative to the root.
      real: its path without links.
      around: the folders that were left by links on the way to it, likewise.
    """

    path: str
    real: str
    around: tuple[str, ...]


def _find_local(root: str, without: str) -> list[str]:
    found: list[str] = []
    folders = [_Folder("", os.path.realpath(root), ())]
    with ThreadPoolExecutor(_THREADS) as pool:
        while folders:
            results = list(pool.map(lambda folder: _scan(root, folder), folders))
            folders = [f for inner, _ in results for f in inner if f.real != without]
            for _, names in results:
                found += names
    return found


def _scan(root: str, folder: _Folder) -> tuple[list[_Folder], list[str]]:
    """The folders directly in a folder, and the names of what else is there."""
    path = os.path.join(root, folder.path)
    try:
        return storage.retried(path, lambda: _scan_once(path, folder))
    except OSError as error:
        raise DataError(f"folder {path}: cannot be read ({error.strerror})") from error


def _scan_once(path: str, folder: _Folder) -> tuple[list[_Folder], list[str]]:
    folders: list[_Folder] = []
    names: list[str] = []
    before = f"{folder.path}/" if folder.path else ""
    with os.scandir(path) as entries:
        for entry in entries:
            name = before + entry.name
            if entry.is_file(follow_symlinks=False):
                names.append(name)
            elif entry.name == kept.FOLDER:
                continue
            elif entry.is_dir():
                inner = _inner(name, entry, folder)
                if inner is None or is_hidden(entry.name):
                    names.append(f"{name}/")
                else:
                    folders.append(inner)
            # A link to nothing is a file that is gone.
            elif entry.is_file() or entry.is_symlink():
                names.append(name)
    return folders, names


def _inner(name: str, entry: os.DirEntry, folder: _Folder) -> _Folder | None:
    """A folder in another; None for a link to a folder around it."""
    if not entry.is_symlink():
        return _Folder(name, os.path.join(folder.real, entry.name), folder.around)
    real = os.path.realpath(entry.path)
    around = (*folder.around, folder.real)
    inside = os.path.join(real, "")
    if any(os.path.join(other, "").startswith(inside) for other in around):
        return None
    return _Folder(name, real, around)


def _find_objects(root: str) -> tuple[list[str], list[tuple[str, int, int]]]:
    """(the hidden folders, the objects) below a folder; lists folders side by side."""
    start = len(root) + 1
    objects: list[object_store.Object] = []
    hidden: list[str] = []
    folders = [root]

    def list_one(folder: str) -> tuple[list[str], list[object_store.Object]]:
        return storage.retried(folder, lambda: object_store.list_folder(folder))

    def below(folder: str) -> list[object_store.Object]:
        return storage.retried(folder, lambda: list(object_store.list_below(folder)))

    try:
        # The first levels are mostly few splits around many classes.
        for _ in range(_MOST_LEVELS):
            if not 0 < len(folders) <= _FEW_FOLDERS:
                break
            listed = list(storage.each(list_one, folders))
            folders = [folder for inner, _ in listed for folder in inner]
            objects += [o for _, own in listed for o in own]
            hidden += [f for f in folders if is_hidden(f.rstrip("/").rsplit("/", 1)[1])]
            folders = [folder for folder in folders if folder not in hidden]
        for more in storage.each(below, folders):
            objects += more
    except OSError as error:
        raise DataError(f"folder {root}: cannot be read ({error.strerror})") from error
    names = [f"{folder[start:].rstrip('/')}/" for folder in hidden]
    own = f"/{kept.FOLDER}/"
    return (
        [name for name in names if not f"/{name}".endswith(own)],
        [
            (o.path[start:], o.size, o.time)
            for o in objects
            if own not in f"/{o.path[start:]}"
        ],
    )
