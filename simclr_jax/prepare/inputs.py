"""Which kind of input a name means: folder, glob, archive, dataset of Hugging Face."""

import glob
import os

from simclr_jax.data.sources import storage
from simclr_jax.errors import DataError
from simclr_jax.prepare import archives, hugging_face
from simclr_jax.prepare.entries import SUFFIXES, FolderInput, Input


def open_input(path: str, *, scratch: str, without: str) -> Input:
    """Finds out what somebody's images are.

    Args:
      path: of the input; see `simclr_jax.prepare`.
      scratch: a local folder for what has to be unpacked or fetched first.
      without: a local folder that is none of the input.

    Raises:
      DataError: there is no such thing, or it is of no known kind.
    """
    is_archive = path.lower().endswith(archives.SUFFIXES)
    is_table = path.endswith((".parquet", ".arrow"))
    if storage.is_folder(path):
        if storage.is_remote(path):
            return FolderInput(path, without=without)
        if hugging_face.is_saved_dataset(path) or _holds_only_tables(path):
            return hugging_face.TableInput(path, hugging_face.find_files(path))
        return FolderInput(path, without=without)
    if storage.file_size(path) is not None:
        if is_table and not storage.is_remote(path):
            folder, name = os.path.split(path)
            return hugging_face.TableInput(folder, [(name, None)])
        if is_archive:
            if storage.is_remote(path):
                path = _fetch(path, scratch)
            if path.lower().endswith(".zip"):
                return archives.ZipInput(path)
            return archives.TarInput(path, scratch=scratch)
        kinds = ", ".join(archives.SUFFIXES)
        raise DataError(
            f"--input={path}: must be a folder, a glob, a local .parquet file, or an "
            f"archive ({kinds})"
        )
    if glob.has_magic(path):
        return FolderInput(path, without=without)
    raise DataError(f"--input={path}: no such file or folder")


def _holds_only_tables(folder: str) -> bool:
    """Whether there are parquet files and no images; looks no further than needed."""
    found = False
    for _, _, names in os.walk(folder):
        if any(name.lower().endswith(SUFFIXES) for name in names):
            return False
        found = found or any(name.endswith(".parquet") for name in names)
    return found


def _fetch(path: str, scratch: str) -> str:
    """Copies an archive from a store: it is read at random and many times."""
    target = os.path.join(scratch, os.path.basename(path))
    if not os.path.exists(target):
        os.makedirs(scratch, exist_ok=True)
        with open(f"{target}.unfinished", "wb") as output:
            storage.copy(path, output)
        os.replace(f"{target}.unfinished", target)
    return target
