"""Bytes of files on local disks and on stores that TensorFlow reads, such as gs://."""

import os
from typing import Any

from simclr_jax.errors import DataError


def is_remote(path: str) -> bool:
    """Whether a path names a store, not a local or mounted disk."""
    return "://" in path


def gfile() -> Any:
    """TensorFlow's file functions."""
    # Imported here: local files do not wait for TensorFlow.
    from simclr_jax.data.tf_cpu import tf

    return tf.io.gfile


def is_folder(path: str) -> bool:
    """Whether there is a folder of that name."""
    return bool(gfile().isdir(path)) if is_remote(path) else os.path.isdir(path)


def file_size(path: str) -> int | None:
    """The bytes of a file; None if there is none."""
    if is_remote(path):
        return int(gfile().stat(path).length) if gfile().exists(path) else None
    return os.path.getsize(path) if os.path.isfile(path) else None


def read_file(path: str) -> bytes:
    """All bytes of a file.

    Raises:
      OSError: it cannot be read.
    """
    if is_remote(path):
        with gfile().GFile(path, "rb") as file:
            return bytes(file.read())
    with open(path, "rb") as file:
        return file.read()


def read_range(path: str, offset: int, length: int) -> bytes:
    """Some bytes of a file, in one request.

    Raises:
      DataError: the file ends before them.
      OSError: it cannot be read.
    """
    if is_remote(path):
        with gfile().GFile(path, "rb") as file:
            file.seek(offset)
            content = bytes(file.read(length))
    else:
        with open(path, "rb", buffering=0) as file:
            content = os.pread(file.fileno(), length, offset)
            while 0 < len(content) < length:
                # One call returns 2 GiB at most.
                rest = length - len(content)
                more = os.pread(file.fileno(), rest, offset + len(content))
                if not more:
                    break
                content += more
    if len(content) < length:
        raise DataError(
            f"file {path}: ends within bytes {offset} to {offset + length}, so it is "
            "damaged"
        )
    return content
