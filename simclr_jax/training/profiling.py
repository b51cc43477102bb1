"""Traces of some steps, for XProf and TensorBoard's profile plug-in."""

import dataclasses
import logging
import pathlib
import socket
import tempfile
from collections.abc import Callable
from typing import Any

import jax

from simclr_jax import paths
from simclr_jax.errors import ConfigError

_LOG = logging.getLogger(__name__)

# Where both look for traces, below a log directory.
FOLDER = "plugins/profile"
_SUFFIX = ".xplane.pb"


@dataclasses.dataclass(frozen=True)
class StepRange:
    """Steps to trace, numbered from 1 as in the log, the last one included."""

    first: int
    last: int


def parse(text: str | None, total_steps: int) -> StepRange | None:
    """The steps that `--profile_steps=FIRST:LAST` names.

    Args:
      text: FIRST:LAST, or None.
      total_steps: of the run.

    Raises:
      ConfigError: it is no range of steps of the run.
    """
    if text is None:
        return None
    first, colon, last = text.partition(":")
    is_range = colon and first.isdecimal() and last.isdecimal()
    # Python refuses to read numbers of thousands of digits.
    if not is_range or len(text) > 100:
        raise ConfigError(f"--profile_steps={text}: must be FIRST:LAST, such as 10:15")
    if not 1 <= int(first) <= int(last) <= total_steps:
        raise ConfigError(
            f"--profile_steps={text}: must be steps from 1 to {total_steps}, the first "
            "not after the last"
        )
    return StepRange(int(first), int(last))


class Profiler:
    """Runs steps, and traces some of them.

    Every process writes its own trace, and XProf shows them together:
    `WORKDIR/plugins/profile/steps_10_to_15/HOST_process_0.xplane.pb`.
    """

    def __init__(self, workdir: str, steps: StepRange | None, start_step: int) -> None:
        """Traces nothing yet.

        Args:
          workdir: the run directory.
          steps: to trace; None for none.
          start_step: number of steps made before.
        """
        if steps is not None and steps.first <= start_step:
            # No error: whoever starts a run again uses the same flags.
            _LOG.warning(
                "--profile_steps=%d:%d: no trace, since %d steps are made already.",
                steps.first,
                steps.last,
                start_step,
            )
            steps = None
        self._workdir = workdir
        self._steps = steps
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def run(self, number: int, step: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a step, as number `number`, and returns what it returns."""
        if self._steps is None:
            return step(*arguments)
        if number == self._steps.first:
            self._folder = tempfile.TemporaryDirectory(prefix="simclr_jax_profile_")
            jax.profiler.start_trace(self._folder.name)
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            result = step(*arguments)
        if number == self._steps.last:
            jax.block_until_ready(result)
            self.close()
        return result

    def close(self) -> None:
        """Ends a trace that is active, and puts it into the run directory."""
        if self._folder is None or self._steps is None:
            return
        jax.profiler.stop_trace()
        with self._folder as folder:
            name = f"steps_{self._steps.first}_to_{self._steps.last}"
            target = paths.as_path(self._workdir) / FOLDER / name
            target.mkdir(parents=True, exist_ok=True)
            # XProf takes a file's name for that of a host.
            who = f"{socket.gethostname()}_process_{jax.process_index()}"
            for path in pathlib.Path(folder).rglob(f"*{_SUFFIX}"):
                (target / f"{who}{_SUFFIX}").write_bytes(path.read_bytes())
        self._folder = None
        _LOG.info("A trace of %s is in %s.", name.replace("_", " "), target)
