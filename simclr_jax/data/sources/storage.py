"""Bytes of files on local disks and on stores that TensorFlow reads, such as gs://.

Stores and mounted disks fail now and then: requests with transient errors are retried.
"""

import dataclasses
import errno
import logging
import os
import random
import stat
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from simclr_jax.errors import DataError, StoreFailed, first_line

_LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")

# Errors of mounted disks (NFS, gcsfuse) while their server or network is down.
_PASSING = (
    *(errno.EAGAIN, errno.EBUSY, errno.EIO, errno.ESTALE, errno.ETIMEDOUT),
    *(errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOTCONN),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
    # macOS does not have it.
    getattr(errno, "EREMOTEIO", errno.EIO),
)
# Between the data of two TFRecords there are a checksum, a length and its checksum:
# reading them costs less than a request.
_GAP_BYTES = 16


@dataclasses.dataclass(frozen=True)
class Retries:
    """How failed requests are retried: for about a minute.

    Attributes:
      tries: number of attempts.
      first_wait_secs: after the first failure.
      growth: of the waits, which are 0.5, 1.5, 4.5, 13.5 and 40.5 seconds.
      jitter: multiplies each wait, so that hosts do not retry all at once.
      sleep: waits some seconds.
    """

    tries: int = 6
    first_wait_secs: float = 0.5
    growth: float = 3.0
    # Not the shared generator, which may have the same seed on all hosts.
    jitter: Callable[[], float] = lambda: random.SystemRandom().uniform(0.5, 1.5)
    sleep: Callable[[float], None] = time.sleep


RETRIES = Retries()


def is_remote(path: str) -> bool:
    """Whether a path names a store, not a local or mounted disk."""
    return "://" in path


def gfile() -> Any:
    """TensorFlow's file functions."""
    # Imported here: local files do not wait for TensorFlow.
    from simclr_jax.data.tf_cpu import tf

    return tf.io.gfile


def _may_pass(error: Exception, path: str) -> bool:
    if not is_remote(path):
        return isinstance(error, OSError) and error.errno in _PASSING
    from simclr_jax.data.tf_cpu import tf

    # For stores that TensorFlow itself retries, such as gs://, the final error is
    # Aborted.
    return isinstance(
        error,
        (
            tf.errors.UnavailableError,
            tf.errors.DeadlineExceededError,
            tf.errors.AbortedError,
            tf.errors.InternalError,
            tf.errors.ResourceExhaustedError,
            tf.errors.UnknownError,
        ),
    )


def retried(path: str, request: Callable[[], _Result]) -> _Result:
    """Runs a request for (part of) a file, with retries.

    Args:
      path: of the file.
      request: may be called several times, see `RETRIES`.

    Raises:
      StoreFailed: all attempts failed.
      Exception: a permanent error of `request`, such as that there is no such file.
    """
    policy = RETRIES
    wait = policy.first_wait_secs
    for number in range(1, policy.tries + 1):
        try:
            return request()
        except Exception as error:
            if not _may_pass(error, path):
                raise
            # Without the path, which the message names already.
            cause = getattr(error, "strerror", None) or first_line(error)
            if number == policy.tries:
                raise StoreFailed(
                    f"file {path}: could not be read in {number} tries ({cause})"
                ) from error
        pause = wait * policy.jitter()
        _LOG.warning(
            "file %s: try %d of %d failed (%s); the next in %.1f seconds",
            path,
            number,
            policy.tries,
            cause,
            pause,
        )
        policy.sleep(pause)
        wait *= policy.growth
    raise AssertionError("a policy has at least one try")


def is_folder(path: str) -> bool:
    """Whether the path is a folder."""
    return bool(gfile().isdir(path)) if is_remote(path) else os.path.isdir(path)


def file_size(path: str) -> int | None:
    """The bytes of a file; None if there is none.

    Raises:
      StoreFailed: its disk or store does not answer.
    """
    return retried(path, lambda: _file_size(path))


def _file_size(path: str) -> int | None:
    if is_remote(path):
        if not gfile().exists(path):
            return None
        return int(gfile().stat(path).length)
    try:
        status = os.stat(path)
    except OSError as error:
        if _may_pass(error, path):
            raise
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def read_file(path: str) -> bytes:
    """All bytes of a file.

    Raises:
      StoreFailed: its disk or store does not answer.
      OSError, tf.errors.OpError: it cannot be read, for another reason.
    """
    return retried(path, lambda: _read_file(path))


def _read_file(path: str) -> bytes:
    if is_remote(path):
        with gfile().GFile(path, "rb") as file:
            return bytes(file.read())
    with open(path, "rb") as file:
        return file.read()


def read_range(path: str, offset: int, length: int) -> bytes:
    """Some bytes of a file, in one request to a disk.

    On a store TensorFlow first checks that `offset` exists, and then reads 512 KiB at a
    time, one after the other.

    Raises:
      DataError: the file ends before them.
      StoreFailed: its disk or store does not answer.
      OSError, tf.errors.OpError: it cannot be read, for another reason.
    """
    read = _read_remote_range if is_remote(path) else _read_local_range
    content = retried(path, lambda: read(path, offset, length))
    if len(content) < length:
        raise DataError(
            f"file {path}: ends within bytes {offset} to {offset + length}, so it is "
            "damaged"
        )
    return content


def _read_remote_range(path: str, offset: int, length: int) -> bytes:
    from simclr_jax.data.tf_cpu import tf

    with gfile().GFile(path, "rb") as file:
        try:
            file.seek(offset)
        except tf.errors.OutOfRangeError:
            return b""
        return bytes(file.read(length))


def _read_local_range(path: str, offset: int, length: int) -> bytes:
    with open(path, "rb", buffering=0) as file:
        content = os.pread(file.fileno(), length, offset)
        while 0 < len(content) < length:
            # One call returns 2 GiB at most.
            rest = length - len(content)
            more = os.pread(file.fileno(), rest, offset + len(content))
            if not more:
                break
            content += more
    return content


def read_ranges(
    paths: Sequence[str], files: np.ndarray, offsets: np.ndarray, lengths: np.ndarray
) -> np.ndarray:
    """Reads many ranges, with one request for ranges that are adjacent in a file.

    Args:
      paths: of the files.
      files: for each range the number of its file in `paths`, [n].
      offsets: in bytes, [n].
      lengths: in bytes, [n].

    Returns:
      The bytes of each range, in the order of the arguments, object [n].

    Raises:
      Exception: as `read_range`.
    """
    contents = np.empty(len(files), object)
    order = np.lexsort((offsets, files))
    files, starts = files[order], offsets[order].astype(np.int64)
    stops = starts + lengths[order].astype(np.int64)
    apart = (np.diff(files) != 0) | (starts[1:] - stops[:-1] > _GAP_BYTES)
    for run in np.split(np.arange(len(order)), np.flatnonzero(apart) + 1):
        if not len(run):
            continue
        start, stop = int(starts[run[0]]), int(stops[run].max())
        content = read_range(paths[files[run[0]]], start, stop - start)
        for i in run:
            contents[order[i]] = content[starts[i] - start : stops[i] - start]
    return contents
