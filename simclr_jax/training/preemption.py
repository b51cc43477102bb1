"""Graceful shutdown: SIGTERM asks a run to save a checkpoint and exit.

Spot machines get it before they are taken, and schedulers send it at the time limit.
"""

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """A context in which SIGTERM asks the run to save and exit.

    With several processes JAX handles the signal, and all of them agree on the last
    step, whichever of them received it.
    """

    def __init__(self) -> None:
        self._requested = False
        self._listens = jax.process_count() == 1
        # Python lets only the main thread set handlers.
        self._listens &= threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "StopRequest":
        if self._listens:
            self._previous = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._previous)

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        self._requested = True

    def requested(self, step: int) -> bool:
        """Whether to end after this step; the same on all processes.

        Every process must call it at every step.
        """
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._requested
