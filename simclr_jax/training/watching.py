"""Held-out figures during a training: when they are due, and which is the best."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

from ml_collections import config_dict

from simclr_jax.errors import ConfigError
from simclr_jax.runs import best
from simclr_jax.runs.checkpoints import Checkpoints
from simclr_jax.runs.writers import Points
from simclr_jax.training.step import TrainState

_LOG = logging.getLogger(__name__)
# By name; those that begin with this prefix are shares in [0, 1].
Figures = dict[str, float]
PREFIX = "held_out_"


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """How a state is measured on held-out images.

    Attributes:
      measure: a collective that leaves the state as it is, and gives the same figures
        on all processes.
      main: the name of the figure by which checkpoints are compared.
      of: what it is a figure of; see `best.Best`.
      points: a collective, too: representations of some held-out images.
    """

    measure: Callable[[TrainState], Figures]
    main: str
    of: str
    points: Callable[[TrainState], Points] | None = None


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A measurement that is due.

    Attributes:
      figures: measures the state.
      points: its representations, where the log's writers take them: after the last
        step.
    """

    figures: Callable[[], Figures]
    points: Callable[[], Points] | None = None


def check(config: config_dict.ConfigDict, held_out: HeldOut | None) -> None:
    """Raises ConfigError if a config asks for figures that the job cannot give."""
    every_steps = config.evaluation.every_steps
    if every_steps is not None and held_out is None:
        raise ConfigError(
            f"config.evaluation.every_steps={every_steps}: only pretraining is "
            "measured on the way; must be None"
        )


class Watch:
    """Measures a training at some steps, and knows the best one."""

    def __init__(
        self,
        held_out: HeldOut | None,
        config: config_dict.ConfigDict,
        checkpoints: Checkpoints,
    ) -> None:
        """Measures nothing where `held_out` is None.

        Args:
          held_out: of the job.
          config: resolved.
          checkpoints: of the run, which know the best one so far.
        """
        self._held_out = held_out
        self._config = config
        self._checkpoints = checkpoints
        self._newest: dict[str, Any] = {}

    def is_due(self, done: int) -> bool:
        """Whether the state after `done` updates is measured."""
        if self._held_out is None:
            return False
        every_steps = self._config.evaluation.every_steps
        return done % every_steps == 0 or done == self._config.schedule.train_steps

    def measurement(self, done: int, state: TrainState) -> Measurement | None:
        """How the state is measured; None where that is not due."""
        self._newest = {}
        if self._held_out is None or not self.is_due(done):
            return None
        points = None
        is_last = done == self._config.schedule.train_steps
        if self._held_out.points and is_last and self._config.log.writers:
            points = functools.partial(self._held_out.points, state)
        return Measurement(functools.partial(self._measure, state), points)

    def _measure(self, state: TrainState) -> Figures:
        assert self._held_out is not None
        figures = self._held_out.measure(state)
        main = figures[PREFIX + self._held_out.main]
        self._newest = {best.HELD_OUT: {"value": main, "of": self._held_out.of}}
        return figures

    def is_best(self) -> bool:
        """Whether the state measured last, at this step, is to be kept for it."""
        return bool(self._newest) and self._checkpoints.is_best(
            self._newest[best.HELD_OUT]
        )

    def describe(self) -> dict[str, Any]:
        """What a description says of a state that was measured at this step."""
        return self._newest

    def finish(self) -> None:
        """Logs the best step, where its checkpoint is kept."""
        found = self._checkpoints.best
        if self._config.checkpoint.keep_best and found.step is not None:
            _LOG.info(
                "Best held-out figure: %.2f %% at step %d, whose checkpoint is kept "
                "(`evaluate --step=%d`).",
                *(100 * found.value, found.step, found.step),
            )
