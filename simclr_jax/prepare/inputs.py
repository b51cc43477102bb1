"""Which kind of input a name means: folder, list, archives, dataset of Hugging Face."""

import os
from collections.abc import Iterable

from simclr_jax.data.sources import storage
from simclr_jax.errors import DataError
from simclr_jax.prepare import (
    archives,
    hugging_face,
    joined,
    lists,
    patterns,
    web_dataset,
)
from simclr_jax.prepare.entries import SUFFIXES, FolderInput, Input

_TABLES = (".parquet", ".arrow")


def open_input(text: str, *, scratch: str, without: str) -> Input:
    """Finds out what somebody's images are.

    Args:
      text: the inputs, see `simclr_jax.prepare`; several with commas between them.
      scratch: a local folder for what has to be unpacked or fetched first.
      without: a local folder that is none of the input.

    Raises:
      DataError: there is no such thing, or it is of no known kind.
    """
    names = patterns.split_inputs(text)
    if len(names) == 1:
        return _open_one(names[0], scratch=scratch, without=without)
    joined.check_distinct(names, name=text)
    return _join(names, name=text, scratch=scratch, without=without)


def _join(paths: list[str], *, name: str, scratch: str, without: str) -> Input:
    opened = []
    for number, path in enumerate(paths):
        folder = os.path.join(scratch, "inputs", str(number))
        opened.append((path, _open_one(path, scratch=folder, without=without)))
    return joined.JoinedInput(opened, name=name)


def _open_one(path: str, *, scratch: str, without: str) -> Input:
    if storage.is_folder(path):
        return _open_folder(path, scratch=scratch, without=without)
    if storage.file_size(path) is not None:
        return _open_file(path, scratch=scratch)
    if not patterns.is_pattern(path):
        raise DataError(f"--input={path}: no such file or folder")
    found = patterns.matches(path)
    if found and all(map(_is_file_of_many, found)):
        if all(map(_is_tar, found)):
            root = patterns.root_of(path)
            return web_dataset.TarsInput(found, name=path, root=root, scratch=scratch)
        return _join(found, name=path, scratch=scratch, without=without)
    tars = _only_tars(patterns.files_below(found)) if found else []
    if tars:
        root = patterns.root_of(path)
        return web_dataset.TarsInput(tars, name=path, root=root, scratch=scratch)
    return FolderInput(path, without=without)


def _open_folder(path: str, *, scratch: str, without: str) -> Input:
    if not storage.is_remote(path) and (
        hugging_face.is_saved_dataset(path) or _holds_only_tables(path)
    ):
        return hugging_face.TableInput(path, hugging_face.find_files(path))
    tars = storage.retried(
        path, lambda: _only_tars(patterns.files_below([path.rstrip("/")]))
    )
    if tars:
        return web_dataset.TarsInput(tars, name=path, root=path, scratch=scratch)
    return FolderInput(path, without=without)


def _open_file(path: str, *, scratch: str) -> Input:
    lower = path.lower()
    if path.endswith(_TABLES) and not storage.is_remote(path):
        folder, name = os.path.split(path)
        return hugging_face.TableInput(folder, [(name, None)])
    if lower.endswith(lists.SUFFIXES):
        return lists.ListInput(path)
    if lower.endswith(".zip"):
        if storage.is_remote(path):
            path = archives.fetch(path, scratch)
        return archives.ZipInput(path)
    if _is_tar(path):
        return web_dataset.open_tar(path, scratch=scratch)
    if lower.endswith(".npz"):
        raise DataError(
            f"--input={path}: holds arrays; they are trained on as they are, with "
            f"--config.data.dataset=npz:{path}"
        )
    kinds = ", ".join((*lists.SUFFIXES, *archives.SUFFIXES))
    raise DataError(
        f"--input={path}: must be a folder, a glob, a local .parquet file, a list or "
        f"an archive ({kinds})"
    )


def _is_tar(path: str) -> bool:
    return path.lower().endswith(archives.TAR_SUFFIXES)


def _is_file_of_many(path: str) -> bool:
    """Whether a name is that of a file that may hold many images."""
    kinds = (*archives.SUFFIXES, *lists.SUFFIXES, *_TABLES)
    return path.lower().endswith(kinds) and not storage.is_folder(path)


def _holds_only_tables(folder: str) -> bool:
    """Whether there are parquet files and no images; looks no further than needed."""
    found = False
    for path in patterns.files_below([folder]):
        if path.lower().endswith(SUFFIXES):
            return False
        found = found or path.endswith(".parquet")
    return found


def _only_tars(paths: Iterable[str]) -> list[str]:
    """The .tar files, sorted; none if there are images, which ends the search."""
    found = []
    for path in paths:
        if path.lower().endswith(SUFFIXES):
            return []
        if _is_tar(path):
            found.append(path)
    return sorted(found)
