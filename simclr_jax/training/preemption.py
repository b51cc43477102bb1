"""Ending a run in order: SIGTERM, which spot machines and schedulers send first."""

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """A context in which SIGTERM asks the run to save and end.

    With several processes JAX listens for the signal, and agrees with all of them on
    the step to end at, whichever of them got it.
    """

    def __init__(self) -> None:
        self._asked = False
        self._listens = jax.process_count() == 1
        # Python lets only the main thread set handlers.
        self._listens &= threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "StopRequest":
        if self._listens:
            self._former = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._former)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True

    def asked(self, step: int) -> bool:
        """Whether to end behind this step; the same on all processes.

        Every process has to call it for every step.
        """
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._asked
