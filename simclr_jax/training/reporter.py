"""Checks the metrics of each step and logs them, with rates and a verdict."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator

import jax
from ml_collections import config_dict

from simclr_jax.errors import TrainingDiverged
from simclr_jax.runs.health import HealthMonitor
from simclr_jax.runs.metrics_writer import MetricsWriter, progress_line
from simclr_jax.training import bottleneck
from simclr_jax.training.objectives import Metrics

_LOG = logging.getLogger(__name__)


class Reporter:
    """Checks and logs the metrics of each step, and measures time."""

    def __init__(
        self,
        config: config_dict.ConfigDict,
        writer: MetricsWriter,
        *,
        start_step: int,
        chance: float | None,
        health: HealthMonitor | None,
        bad_records: Callable[[], int] = lambda: 0,
    ) -> None:
        """Starts the clock.

        Args:
          config: resolved.
          writer: of metrics.
          start_step: number of updates before the first step.
          chance: the loss of a model that has learnt nothing, if there is such a level.
          health: judges the metrics, if given.
          bad_records: how many images cannot be read; called at steps that are logged
            or saved.
        """
        self.start_step = start_step
        self._every_steps = config.log.every_steps
        self._total_steps = config.schedule.train_steps
        self._batch_size = config.batch.batch_size
        self._chance = chance
        self._writer = writer
        self._health = health
        self._bad_records = bad_records
        self._verdict = ""
        self._bottleneck = bottleneck.DEVICE  # not worth a line
        self._waited_secs = 0.0
        self._mark = (start_step, time.monotonic())

    @contextlib.contextmanager
    def waiting_for_input(self) -> Iterator[None]:
        """A context whose time counts as waiting for input."""
        start = time.monotonic()
        yield
        self._waited_secs += time.monotonic() - start

    def is_logged(self, done: int) -> bool:
        """Whether update number `done`, from 1, is logged: with its diagnostics."""
        first = done == self.start_step + 1
        return first or done % self._every_steps == 0 or done == self._total_steps

    def report(self, done: int, metrics: Metrics) -> None:
        """Takes the metrics of update number `done`, from 1.

        Args:
          done: number of updates, this one included.
          metrics: of the step, with the diagnostics if it `is_logged`.

        Raises:
          TrainingDiverged: the loss, the gradient or the update is not finite.
        """
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name in ("loss", "gradient_norm", "update_norm"):
            if not math.isfinite(values[name]):
                raise TrainingDiverged(
                    f"step {done}: {name} is {values[name]}, so training has diverged; "
                    "earlier checkpoints are good. Try a lower "
                    "config.optimizer.learning_rate or a longer warm-up"
                )
        if self.is_logged(done):
            self._log(done, values)

    def saved(self) -> None:
        """Brings metrics and the list of bad images to where the checkpoint goes."""
        self._bad_records()
        self._writer.copy_soon()

    def _log(self, done: int, values: dict[str, float]) -> None:
        marked_step, marked_secs = self._mark
        secs = time.monotonic() - marked_secs
        steps = done - marked_step
        values = {
            **values,
            "images_per_sec": steps * self._batch_size / secs,
            "input_wait_share": min(self._waited_secs / secs, 1.0),
            "bad_records": self._bad_records(),
        }
        if self._chance is not None:
            values["chance"] = self._chance
            values["loss_of_chance"] = values["loss"] / self._chance
        verdict = self._health.update(done, values) if self._health else ""
        # The first step's time is mostly compilation and says nothing of the others.
        first = done == self.start_step + 1
        wait_share = values["input_wait_share"]
        side = "" if first else bottleneck.of_wait(wait_share)
        words = {"bottleneck": side or "too early to tell"}
        if verdict:
            words["health"] = verdict
        self._writer.write(done, {**values, **words})
        secs_left = None if first else (self._total_steps - done) * secs / steps
        line = progress_line(done, self._total_steps, values, secs_left=secs_left)
        _LOG.info("%s", line)
        if side and side != self._bottleneck:
            _LOG.info("%s", bottleneck.advice(side, wait_share))
            self._bottleneck = side
        if verdict != self._verdict:
            level = logging.WARNING if "since" in verdict else logging.INFO
            _LOG.log(level, "Health: %s", verdict)
            self._verdict = verdict
        self._mark, self._waited_secs = (done, time.monotonic()), 0.0

    def finish(self) -> None:
        """Logs how the run ended."""
        if self.start_step >= self._total_steps:
            _LOG.info("Nothing to do: all %d steps are done.", self._total_steps)
            return
        health = f" Health: {self._verdict}" if self._verdict else ""
        _LOG.info("Done: %d steps.%s", self._total_steps, health)
