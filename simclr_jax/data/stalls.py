"""Says so where the next batch does not come for long.

A read of a disk whose server is gone may never return, and Python cannot end it. The
run waits, and goes on when it does return.
"""

import logging
import threading
import time
from collections.abc import Iterator

from simclr_jax.data.sources import storage
from simclr_jax.data.sources.base import Batch

_LOG = logging.getLogger(__name__)
FIRST_SECS = 60.0
# Waits are looked at ten times before the first line.
_LOOKS = 10


def watched(batches: Iterator[Batch], name: str) -> Iterator[Batch]:
    """The same batches, with a log line each time that a wait doubles.

    Args:
      batches: any iterator.
      name: of the dataset, for the log.
    """
    watch = _Watch(name)
    try:
        while True:
            watch.begin()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                watch.end()
            yield batch
    finally:
        watch.close()


class _Watch:
    """A thread that looks at how long a wait has taken."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._since: float | None = None
        self._due_secs = FIRST_SECS
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="stalls")
        self._thread.start()

    def begin(self) -> None:
        self._since = time.monotonic()

    def end(self) -> None:
        since, self._since = self._since, None
        if self._due_secs > FIRST_SECS and since is not None:
            secs = time.monotonic() - since
            _LOG.warning("The batch of %s came after %.0f s.", self._name, secs)
            self._due_secs = FIRST_SECS

    def close(self) -> None:
        self._closing.set()

    def _run(self) -> None:
        while not self._closing.wait(FIRST_SECS / _LOOKS):
            since = self._since
            if since is None or time.monotonic() - since < self._due_secs:
                continue
            _LOG.warning(
                "No batch of %s for %.0f s; %s. The run goes on when it comes.",
                self._name,
                time.monotonic() - since,
                _reads(),
            )
            self._due_secs *= 2


def _reads() -> str:
    """What is being read now."""
    under_way = storage.under_way()
    if not under_way:
        return "no read of a file or store is known to be under way"
    failed = [request for request in under_way if request.failed]
    again = f" ({len(failed)} are tried again after failures)" if failed else ""
    example = (failed or under_way)[0].path
    return f"{len(under_way)} reads are under way{again}, such as of {example}"
