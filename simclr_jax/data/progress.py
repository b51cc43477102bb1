"""Says now and then how far long work is, and how long it will take."""

import logging
import threading
import time

_EVERY_SECS = 10.0


class Progress:
    """Counts what is done of some work; may be used by many threads."""

    def __init__(
        self,
        logger: logging.Logger,
        total: int,
        unit: str,
        *,
        what: str = "",
        done: int = 0,
    ) -> None:
        """Starts the clock.

        Args:
          logger: to write to.
          total: of the work.
          unit: in which it is counted, such as 'files'.
          what: is done, as in 'Indexing cifar10/train: '.
          done: before.
        """
        self._logger, self._total = logger, total
        self._unit, self._what = unit, what
        self._before = self._done = done
        self._start = self._last = time.monotonic()
        self._lock = threading.Lock()

    def add(self, count: int = 1, note: str = "") -> None:
        """Counts more.

        Args:
          count: of what is done.
          note: on what else happened so far, as in ' | 3 broken'.
        """
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now - self._last < _EVERY_SECS and self._done < self._total:
                return
            self._last = now
            done = self._done
        rate = (done - self._before) / max(now - self._start, 1e-6)
        left = round((self._total - done) / max(rate, 1e-6))
        self._logger.info(
            "%s%s/%s %s%s | %.0f %s/s | %d:%02d:%02d left",
            self._what,
            f"{done:,}",
            f"{self._total:,}",
            self._unit,
            note,
            rate,
            self._unit,
            left // 3600,
            left // 60 % 60,
            left % 60,
        )
