"""Which checkpoint has the best held-out figure, and that it stays.

A checkpoint that was measured says so in its description, so that the figure is as
durable as the checkpoint: after a kill at any moment, the best one of those that are
there is the best one of the run so far, since it is never removed for another.
"""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from orbax.checkpoint import checkpoint_managers

from simclr_jax.errors import CheckpointError
from simclr_jax.parallel import processes

_LOG = logging.getLogger(__name__)

# In a description: {'value': the figure, 'of': what it is a figure of}.
HELD_OUT = "held_out"


class Best:
    """The step with the best figure so far; also a policy of Orbax that keeps it.

    Attributes:
      step: None where nothing was measured.
      value: its figure; higher is better.
      of: what it is a figure of, such as data and settings, in at most 200 characters.
        Figures of other things do not compare: with them the search begins anew.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self.value, self.of = 0.0, ""

    def find(
        self, steps: Iterable[int], describe: Callable[[int], dict[str, Any]]
    ) -> None:
        """Looks through the checkpoints that are there; a collective.

        Args:
          steps: of the checkpoints.
          describe: the description of one; CheckpointError, as of a damaged one, passes
            it over.
        """
        self.step, self.value, self.of = None, 0.0, ""
        if processes.is_main():
            # What was measured last decides what figures compare with.
            for step in sorted(steps):
                try:
                    found = describe(step).get(HELD_OUT)
                except CheckpointError:
                    continue
                if found is not None:
                    self.update(step, found)
        # A file system could show processes different files.
        told = json.dumps([self.step, self.value, self.of])
        self.step, self.value, self.of = json.loads(processes.gather_texts(told)[0])

    def is_better(self, held_out: dict[str, Any]) -> bool:
        """Whether a new figure is the best; of equal ones the first is."""
        if self.step is None or self.of != held_out["of"]:
            return True
        return bool(held_out["value"] > self.value)

    def update(self, step: int, held_out: dict[str, Any]) -> None:
        """Takes the figure of another step, if it is better."""
        if not self.is_better(held_out):
            return
        if self.step is not None and self.of != held_out["of"]:
            _LOG.warning(
                "The figure of step %d does not compare with the best before (of step "
                "%d): %s is now %s.",
                *(step, self.step, self.of, held_out["of"]),
            )
        self.step, self.value, self.of = step, held_out["value"], held_out["of"]

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> list[bool]:
        """See `orbax.checkpoint.checkpoint_managers.PreservationPolicy`."""
        del context
        return [checkpoint.step == self.step for checkpoint in checkpoints]


def policy(keep_last: int, keep_every_steps: int | None, best: Best | None) -> Any:
    """Orbax's policy: the newest checkpoints, those at multiples, and the best."""
    policies: list[Any] = [checkpoint_managers.LatestN(keep_last)]
    if keep_every_steps is not None:
        policies.append(checkpoint_managers.EveryNSteps(keep_every_steps))
    if best is not None:
        policies.append(best)
    return checkpoint_managers.AnyPreservationPolicy(policies)
