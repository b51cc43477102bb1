"""Checks that all processes make together, and whose verdict is the same on all."""

import logging
import time
from collections.abc import Callable, Iterator

from simclr_jax.errors import InvalidInput, RunFailed, RunStopped, first_line
from simclr_jax.parallel import processes
from simclr_jax.verdicts import Verdict

_LOG = logging.getLogger(__name__)

# A check that failed on one process may leave the others in a collective for ever.
_OTHERS_SECS = 60.0
_ALL_SECS = 24 * 3600.0


class Checks:
    """Runs checks, and skips those that need one that did not pass."""

    def __init__(self) -> None:
        self._passed: dict[str, bool] = {}

    def check(
        self, name: str, act: Callable[[], str], *needs: str
    ) -> Iterator[Verdict]:
        """Yields the verdict of one check.

        Args:
          name: of the check.
          act: makes the check on every process; returns what was found, and raises
            where it fails.
          needs: names of checks that must have passed before.

        Raises:
          RunStopped: a signal asked to stop.
          RunFailed: the check failed on this process, and others do not end it.
        """
        missing = [need for need in needs if not self._passed.get(need)]
        if missing:
            self._passed[name] = False
            yield Verdict(name, None, f"not tried, for want of: {', '.join(missing)}")
            return
        start = time.monotonic()
        failure, detail = "", ""
        try:
            detail = act()
        except RunStopped:
            raise
        except (InvalidInput, RunFailed) as error:
            failure = str(error) or type(error).__name__
        except Exception as error:  # whatever it is, it would end the job
            _LOG.debug("check %s", name, exc_info=error)
            failure = f"{type(error).__name__}: {first_line(error)}"
        failure = _of_all(name, failure)
        self._passed[name] = not failure
        secs = time.monotonic() - start
        yield Verdict(name, not failure, " ".join((failure or detail).split()), secs)


def _of_all(name: str, failure: str) -> str:
    """The first failure among all processes; '' if all passed."""
    secs = _OTHERS_SECS if failure else _ALL_SECS
    if not processes.agreement().meet(f"check {name}", timeout_secs=secs):
        raise RunFailed(
            f"{name}: {failure or 'passed here'}; other processes did not end this "
            f"check within {secs:g} s"
        )
    texts = processes.gather_texts(failure)
    if len(texts) == 1:
        return failure
    failed = {number: text for number, text in enumerate(texts) if text}
    # Others say of it: process 1 of 2 on HOST: ...
    first_hand = [
        f"process {number}: {text}"
        for number, text in failed.items()
        if not text.startswith("process ")
    ]
    return next(iter([*first_hand, *failed.values()]), "")
