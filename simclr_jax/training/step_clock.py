"""The time of steps and of waiting for input, without that of checkpoints."""

import contextlib
import time
from collections.abc import Iterator
from typing import NamedTuple


class Interval(NamedTuple):
    """What passed from one reading of the clock to the next.

    Attributes:
      steps: number of them.
      secs: their time.
      waited_secs: the part of it that was spent waiting for input.
    """

    steps: int
    secs: float
    waited_secs: float


class StepClock:
    """Measures steps whose results are looked at one step late, or at once.

    A device may still compute a step while the host begins the next one. A step ends
    when its results are there; if they were before the host asked, it ended when the
    host began the step after it.
    """

    def __init__(self, start_step: int) -> None:
        """Starts the clock.

        Args:
          start_step: number of steps before.
        """
        self._read_step, self._read_at = start_step, time.monotonic()
        self._begun, self._begun_at = start_step, self._read_at
        # Of the steps before the newest one, and of the newest.
        self._waited_secs, self._newest_wait_secs = 0.0, 0.0

    @contextlib.contextmanager
    def waiting_for_input(self) -> Iterator[None]:
        """A context in which the next step begins, and waits for its input."""
        self._begun, self._begun_at = self._begun + 1, time.monotonic()
        self._waited_secs += self._newest_wait_secs
        yield
        self._newest_wait_secs = time.monotonic() - self._begun_at

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """A context whose time does not count, such as that of a checkpoint."""
        start = time.monotonic()
        yield
        self._read_at += time.monotonic() - start

    def read(self, done: int, *, was_ready: bool) -> Interval:
        """The interval since the last reading, or since the start.

        Args:
          done: number of steps, of which the results of the last one are there now.
          was_ready: whether they were there before the host asked for them.
        """
        if was_ready and self._begun > done:
            now = self._begun_at
            waited, self._waited_secs = self._waited_secs, 0.0
        else:
            now = time.monotonic()
            waited = self._waited_secs + self._newest_wait_secs
            self._waited_secs = self._newest_wait_secs = 0.0
        steps, secs = done - self._read_step, now - self._read_at
        self._read_step, self._read_at = done, now
        return Interval(steps, secs, min(waited, secs))
