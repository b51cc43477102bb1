"""What is asked of a run from outside or by the clock: to save, and to stop.

Spot machines get SIGTERM before they are taken, schedulers send it at the time limit,
and Ctrl-C sends SIGINT.
"""

import contextlib
import dataclasses
import logging
import signal
import time

from simclr_jax import signals
from simclr_jax.parallel import processes
from simclr_jax.runs.checkpoints import Checkpoints

_LOG = logging.getLogger(__name__)

_SAVE, _STOP = "save", "stop"


@dataclasses.dataclass(frozen=True)
class Asked:
    """What to do after a step, the same on all processes.

    Attributes:
      save: a checkpoint is due by the clock, or before stopping.
      stop: the run is to end.
    """

    save: bool
    stop: bool


class Requests:
    """A context in which signals and the clock ask a run to save or to stop.

    Until the first step is made, a signal ends the process at once: nothing would be
    saved that is not saved already. Later the first one asks all processes to save and
    to stop after the same step, and a second one ends the process at once. Both only
    in commands, which listen to signals (`signals.listening`).
    """

    def __init__(
        self, checkpoints: Checkpoints, *, save_every_secs: float | None
    ) -> None:
        """Nothing is asked yet.

        Args:
          checkpoints: of the run; checked after every step.
          save_every_secs: time from one checkpoint to the next; None for no limit. The
            clock of process 0 counts.
        """
        self._every_secs = save_every_secs if processes.is_main() else None
        self._checkpoints = checkpoints
        self._agreement = processes.agreement()
        self._stack = contextlib.ExitStack()
        self._saved_at: float | None = None
        self._asked_to_save = False

    def __enter__(self) -> "Requests":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def after_step(self) -> Asked:
        """What to do now; every process must call it after every step.

        Raises:
          CheckpointError: a checkpoint could not be saved.
          RunFailed: the run directory is no longer this process's.
        """
        self._checkpoints.check()
        now = time.monotonic()
        if self._saved_at is None:
            self._stack.enter_context(signals.on_first(self._stop))
            self._saved_at = now
        every = self._every_secs
        if every and not self._asked_to_save and now - self._saved_at >= every:
            self._asked_to_save = True
            self._agreement.ask(_SAVE)
        due = self._agreement.due()
        return Asked(save=bool(due), stop=_STOP in due)

    def saved(self) -> None:
        """Starts the clock again, after a checkpoint."""
        self._saved_at, self._asked_to_save = time.monotonic(), False

    def _stop(self, heard: signal.Signals) -> None:
        self._agreement.ask(_STOP)
        _LOG.warning(
            "%s: saving after this step, then stopping. A second one ends at once.",
            heard.name,
        )
