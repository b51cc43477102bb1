"""Files and folders that appear as a whole or not at all."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from simclr_jax.errors import ConfigError


def write_file(path: pathlib.Path, text: str) -> None:
    """Writes a file of a run as a whole or not at all.

    Raises:
      ConfigError: it cannot be written.
    """
    replacement = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replacement.write_text(text, encoding="utf-8")
        os.replace(replacement, path)
    except OSError as error:
        raise ConfigError(f"file {path}: cannot be written ({error})") from error


def check_no_file(workdir: str, *, flag: str = "workdir") -> None:
    """Raises ConfigError if there is a file in the place of the run directory."""
    folder = pathlib.Path(workdir)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--{flag}={workdir}: must be a folder, and is a file")


def check_free(path: str, *, flag: str) -> None:
    """Raises ConfigError unless the folder that a flag names can be created."""
    if "://" in path:
        raise ConfigError(f"--{flag}={path}: must be a local folder")
    folder = pathlib.Path(path)
    if folder.resolve() == pathlib.Path.cwd():
        raise ConfigError(f"--{flag}={path}: must not be the current folder")
    check_no_file(path, flag=flag)
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"--{flag}={path}: must be new or empty")


@contextlib.contextmanager
def filled(path: str, *, flag: str) -> Iterator[pathlib.Path]:
    """An empty folder that replaces `path` unless an error is raised in the context.

    Raises:
      ConfigError: it cannot be written, or `path` is a folder with files in it.
    """
    target = pathlib.Path(os.path.realpath(path))
    # In the same parent folder, so that one rename is enough.
    unfinished = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        os.replace(unfinished, target)
    except OSError as error:
        raise ConfigError(f"--{flag}={path}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
