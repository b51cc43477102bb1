"""Bytes of files on local and mounted disks and on stores (gs://, s3://).

Stores and mounted disks fail now and then: requests with transient errors are retried.
What happens at a distance happens side by side: see `each`.
"""

import dataclasses
import errno
import functools
import logging
import os
import random
import stat
import sys
import time
import types
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple, TypeVar

from simclr_jax import paths
from simclr_jax.data.sources import object_store
from simclr_jax.errors import DataError, StoreFailed, first_line

_LOG = logging.getLogger(__name__)
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

# Errors of mounted disks (NFS, gcsfuse) while their server or network is down.
_PASSING = (
    *(errno.EAGAIN, errno.EBUSY, errno.EIO, errno.ESTALE, errno.ETIMEDOUT),
    *(errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOTCONN),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
    # macOS does not have it.
    getattr(errno, "EREMOTEIO", errno.EIO),
)
# Requests of this process that are under way at a time. They wait, so that this may be
# many more than there are cores; more than this, and stores answer 429.
REQUESTS = 256
# Of a request: larger files are read in pieces of this size, side by side.
_PIECE_BYTES, _PIECES = 16 << 20, 16


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
    return paths.is_store(path)


def is_distant(path: str) -> bool:
    """Whether a request takes long, however short it is: of a store or its mount."""
    return is_remote(path) or paths.is_mounted_bucket(path)


def expanded(path: str) -> str:
    """The path with `~` expanded, without a slash at its end.

    Raises:
      DataError: no known store, or no bucket.
    """
    if is_remote(path):
        object_store.split(path)
        return path.rstrip("/")
    return os.path.expanduser(path).rstrip("/") or "/"


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(REQUESTS, "store")


@functools.cache
def _pieces_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_PIECES, "store-pieces")


def each(
    function: Callable[[_Item], _Result], items: Iterable[_Item]
) -> Iterator[_Result]:
    """The results of a function for some items, in order, from threads that wait.

    The function must not call `each`, since its threads might all wait for one more.
    """
    return _pool().map(function, items)


def _may_pass(error: Exception) -> bool:
    if isinstance(error, object_store.Unavailable):
        return True
    return isinstance(error, OSError) and error.errno in _PASSING


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
            if not _may_pass(error):
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


class UnderWay(NamedTuple):
    """A request that has not returned yet.

    Attributes:
      path: of the file.
      failed: whether a try has failed, so that this is one of its `RETRIES`.
    """

    path: str
    failed: bool


def under_way() -> list[UnderWay]:
    """The requests under way in this process.

    They are found on the stacks of its threads, so that no request has to be noted.
    """
    found = []
    for frame in sys._current_frames().values():
        inner: types.FrameType | None = frame
        while inner is not None:
            if inner.f_code is retried.__code__:
                variables = inner.f_locals
                found.append(UnderWay(variables["path"], "pause" in variables))
            inner = inner.f_back
    return found


def is_folder(path: str) -> bool:
    """Whether the path is a folder; on a store, whether there are objects below it.

    Raises:
      StoreFailed: its store does not answer.
      DataError: there is no such bucket, or no permission.
    """
    if not is_remote(path):
        return os.path.isdir(path)
    check_bucket(path)
    return retried(path, lambda: object_store.is_folder(path))


def check_bucket(path: str) -> None:
    """Checks that the bucket of a path on a store is there and can be listed.

    Raises:
      DataError: it is not.
    """
    if is_remote(path):
        object_store.check_bucket(path)


def file_size(path: str) -> int | None:
    """The bytes of a file; None if there is none.

    Raises:
      StoreFailed: its disk or store does not answer.
      PermissionError: a store refuses to say.
    """
    return retried(path, lambda: _file_size(path))


def _file_size(path: str) -> int | None:
    if is_remote(path):
        return object_store.size(path)
    try:
        status = os.stat(path)
    except OSError as error:
        if _may_pass(error):
            raise
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def files_in(folder: str) -> dict[str, tuple[int, int]]:
    """The files directly in a folder: name -> (bytes, time of the last change in ns).

    Raises:
      StoreFailed: its disk or store does not answer.
      OSError: it cannot be listed, for another reason; on a store a folder that is not
        there is empty.
    """
    return retried(folder, lambda: _files_in(folder))


def _files_in(folder: str) -> dict[str, tuple[int, int]]:
    if is_remote(folder):
        _, objects = object_store.list_folder(folder)
        return {o.path.rsplit("/", 1)[1]: (o.size, o.time) for o in objects}
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file():
                status = entry.stat()
                found[entry.name] = status.st_size, status.st_mtime_ns
    return found


def read_file(path: str) -> bytes:
    """All bytes of a file.

    Raises:
      StoreFailed: its disk or store does not answer.
      OSError: it cannot be read, for another reason.
    """
    return retried(path, lambda: _read_file(path))


def read_beginning(path: str, num_bytes: int) -> bytes:
    """The first bytes of a file; fewer if it is shorter; errors as of `read_file`."""
    return retried(path, lambda: _read_beginning(path, num_bytes))


def _read_beginning(path: str, num_bytes: int) -> bytes:
    if is_remote(path):
        return bytes(object_store.read_start(path, num_bytes)[0])
    with open(path, "rb") as file:
        return file.read(num_bytes)


def _read_file(path: str) -> bytes:
    if not is_remote(path):
        with open(path, "rb") as file:
            return file.read()
    first, size = object_store.read_start(path, _PIECE_BYTES)
    if size <= _PIECE_BYTES:
        return bytes(first)
    # Not by `each`, whose threads may be what calls this.
    rest = _pieces_pool().map(
        lambda start: read_range(path, start, min(_PIECE_BYTES, size - start)),
        range(_PIECE_BYTES, size, _PIECE_BYTES),
    )
    return b"".join([bytes(first), *rest])


def copy(path: str, output: BinaryIO) -> None:
    """Copies a file to an open one, piece by piece; several are read at a time.

    Raises:
      DataError: there is no such file.
      StoreFailed: its disk or store does not answer.
      OSError: it cannot be read, for another reason.
    """
    size = file_size(path)
    if size is None:
        raise DataError(f"file {path}: no such file")
    step = _PIECE_BYTES * _PIECES
    for first in range(0, size, step):
        starts = range(first, min(first + step, size), _PIECE_BYTES)
        for content in _pieces_pool().map(
            lambda start: read_range(path, start, min(_PIECE_BYTES, size - start)),
            starts,
        ):
            output.write(content)


def read_range(path: str, offset: int, length: int) -> bytes:
    """Some bytes of a file, in one request.

    Raises:
      DataError: the file ends before them.
      StoreFailed: its disk or store does not answer.
      OSError: it cannot be read, for another reason.
    """
    read = _read_remote_range if is_remote(path) else _read_local_range
    content = retried(path, lambda: read(path, offset, length))
    check_length(path, offset, length, len(content))
    return content


def check_length(path: str, offset: int, length: int, found: int) -> None:
    """Raises DataError if fewer bytes were found than a file should have there."""
    if found < length:
        raise DataError(
            f"file {path}: ends within bytes {offset} to {offset + length}, so it is "
            "damaged"
        )


def _read_remote_range(path: str, offset: int, length: int) -> bytes:
    return bytes(object_store.read(path, offset, offset + length))


def _read_local_range(path: str, offset: int, length: int) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return read_descriptor(file.fileno(), offset, length)


def read_descriptor(descriptor: int, offset: int, length: int) -> bytes:
    """Some bytes of an open file, or as many as there are."""
    content = os.pread(descriptor, length, offset)
    while 0 < len(content) < length:
        # One call returns 2 GiB at most.
        rest = length - len(content)
        more = os.pread(descriptor, rest, offset + len(content))
        if not more:
            break
        content += more
    return content
