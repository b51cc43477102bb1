"""Files and folders that appear as a whole or not at all."""

import contextlib
import os
import pathlib
import secrets
import tempfile
from collections.abc import Iterator

from etils import epath

from simclr_jax import paths
from simclr_jax.errors import ConfigError, InvalidInput, first_line

_UNFINISHED = ".tmp"


def write_file(path: pathlib.Path | epath.Path, text: str) -> None:
    """Writes a file of a run as a whole or not at all.

    Raises:
      ConfigError: it cannot be written.
    """
    path = epath.Path(path)
    with one_line(f"file {path}: cannot be written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        if paths.is_store(path):
            # An object appears when all of it was sent.
            path.write_text(text, encoding="utf-8")
            return
        # Two processes, maybe on two hosts, may write the same file.
        replacement = path.with_name(f".{secrets.token_hex(8)}{_UNFINISHED}")
        try:
            replacement.write_text(text, encoding="utf-8")
            os.replace(replacement, path)
        except BaseException:
            replacement.unlink(missing_ok=True)
            raise


def check_no_file(workdir: str, *, flag: str = "workdir") -> None:
    """Raises ConfigError if there is a file in the place of the run directory.

    On a store, also if its bucket cannot be read.
    """
    paths.check_reachable(workdir, flag=flag)
    folder = paths.as_path(workdir)
    with one_line(f"--{flag}={workdir}: cannot be read"):
        is_file = folder.exists() and not folder.is_dir()
    if is_file:
        raise ConfigError(f"--{flag}={workdir}: must be a folder, and is a file")


def make_folder(path: str, *, flag: str) -> None:
    """Creates the folder that a flag names; on a store, where none is needed, checks.

    Raises:
      ConfigError: as `check_no_file`, or it cannot be created.
    """
    check_no_file(path, flag=flag)
    if not paths.is_store(path):
        with one_line(f"--{flag}={path}: cannot be created"):
            paths.as_path(path).mkdir(parents=True, exist_ok=True)


def check_output(path: str, *, flag: str) -> None:
    """Checks, before the work for it, that the file that a flag names can be written.

    On a store, that its bucket can be read.

    Raises:
      ConfigError: it is a folder, there is no folder for it, or none that takes files.
    """
    located = paths.as_path(path)
    if paths.is_store(path):
        paths.check_reachable(path, flag=flag)
        return
    folder = located.absolute().parent
    if located.is_dir():
        raise ConfigError(f"--{flag}={path}: must be a file, and is a folder")
    if not folder.is_dir():
        raise ConfigError(f"--{flag}={path}: there is no folder {folder}")
    with one_line(f"--{flag}={path}: cannot be written"):
        tempfile.TemporaryFile(dir=folder).close()


def check_free(path: str, *, flag: str) -> None:
    """Raises ConfigError unless the folder that a flag names can be created.

    Files that `write_file` has not finished do not count.
    """
    check_no_file(path, flag=flag)
    folder = paths.as_path(path)
    if not paths.is_store(path) and os.path.realpath(folder) == os.getcwd():
        raise ConfigError(f"--{flag}={path}: must not be the current folder")
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if not all(n.startswith(".") and n.endswith(_UNFINISHED) for n in names):
        raise ConfigError(f"--{flag}={path}: must be new or empty")


@contextlib.contextmanager
def filled(path: str, *, flag: str) -> Iterator[epath.Path]:
    """An empty folder to fill, which becomes `path` unless an error is raised.

    On a local disk it has another name until then, and one rename is enough. On a
    store or a mounted bucket, where folders cannot be renamed in one step, it is `path`
    itself, and an error removes it.

    Raises:
      ConfigError: it cannot be written, or `path` is a folder with files in it.
    """
    in_place = paths.is_store(path) or paths.is_mounted_bucket(path)
    target = paths.as_path(path)
    if not in_place:
        target = epath.Path(os.path.realpath(target))
    unfinished = target if in_place else target.with_name(f".{target.name}.unfinished")
    with one_line(f"--{flag}={path}: cannot be written"):
        if in_place:
            check_free(path, flag=flag)
        else:
            unfinished.rmtree(missing_ok=True)
        try:
            unfinished.mkdir(parents=True, exist_ok=in_place)
            yield unfinished
            if not in_place:
                os.replace(unfinished, target)
        except BaseException:
            with contextlib.suppress(Exception):
                unfinished.rmtree(missing_ok=True)
            raise


@contextlib.contextmanager
def filled_locally(path: str, *, flag: str) -> Iterator[pathlib.Path]:
    """`filled`, with a folder on a local disk, which is copied to a store at the end.

    The files of its sub-folders are copied first, and then its own.

    Raises:
      ConfigError: as `filled`.
    """
    with filled(path, flag=flag) as unfinished:
        if not paths.is_store(unfinished):
            yield pathlib.Path(unfinished)
            return
        with tempfile.TemporaryDirectory() as staging:
            yield pathlib.Path(staging)
            paths.upload(pathlib.Path(staging), unfinished)


@contextlib.contextmanager
def one_line(what: str) -> Iterator[None]:
    """Turns the errors of disks and of the stores' libraries into one line."""
    try:
        yield
    except Exception as error:
        if not paths.is_failure(error) or isinstance(error, InvalidInput):
            raise
        raise ConfigError(f"{what} ({first_line(error)})") from error
