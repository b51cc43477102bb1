"""Checks the metrics of each step and logs them, with rates and a verdict."""

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator

import jax
from ml_collections import config_dict

from simclr_jax.config import identity
from simclr_jax.parallel import processes
from simclr_jax.runs.health import HealthMonitor
from simclr_jax.runs.metrics_writer import (
    FIRST_OF_A_START,
    MetricsWriter,
    progress_line,
)
from simclr_jax.training import bottleneck, divergence, shown_views, watching
from simclr_jax.training.objectives import Batch, Metrics
from simclr_jax.training.step import TrainState
from simclr_jax.training.step_clock import Interval, StepClock

_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def open_reporter(
    config: config_dict.ConfigDict,
    workdir: str,
    state: TrainState,
    chance: float | None,
    health: HealthMonitor | None,
    bad_records: Callable[[], int],
    num_views: int,
) -> Iterator["Reporter"]:
    """A context with the `Reporter` of a run that begins, or resumes, with a state."""
    start_step = int(state.step)
    writer = MetricsWriter(
        workdir,
        resume_step=start_step,
        writers=config.log.writers,
        active=processes.is_main(),
    )
    with contextlib.closing(writer):
        writer.writers.hparams(identity.flatten(identity.as_json(config)))
        show = None
        if start_step == 0 and writer.writers:
            show = functools.partial(
                shown_views.write, config, writer.writers, num_views
            )
        yield Reporter(
            config,
            writer,
            start_step=start_step,
            chance=chance,
            health=health,
            guard=divergence.Guard(config, state, writer.skipped_steps),
            bad_records=bad_records,
            show=show,
        )


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
        guard: divergence.Guard,
        bad_records: Callable[[], int] = lambda: 0,
        show: Callable[[Batch], None] | None = None,
    ) -> None:
        """Starts the clock.

        Args:
          config: resolved.
          writer: of metrics.
          start_step: number of updates before the first step.
          chance: the loss of a model that has learnt nothing, if there is such a level.
          health: judges the metrics, if given.
          guard: looks for values that are not finite.
          bad_records: how many images cannot be read; called at steps that are logged
            or saved.
          show: takes the first batch, for a picture of it.
        """
        self.start_step = start_step
        self._every_steps = config.log.every_steps
        self._measure_every_steps = config.evaluation.every_steps
        self._started_at, self._measuring_secs = time.monotonic(), 0.0
        self._total_steps = config.schedule.train_steps
        self._batch_size = config.batch.batch_size
        self._chance = chance
        self._writer = writer
        self._health = health
        self._guard = guard
        self._bad_records = bad_records
        self._show = show
        self._verdict = ""
        self._bottleneck = bottleneck.DEVICE  # not worth a line
        self._clock = StepClock(start_step)

    def next_batch(self, batches: Iterator[Batch]) -> Batch:
        """The next batch; its time counts as waiting for input."""
        with self._clock.waiting_for_input():
            batch = next(batches)
        if self._show is not None:
            self._show(batch)
            self._show = None
        return batch

    def is_logged(self, done: int) -> bool:
        """Whether update number `done`, from 1, is logged: with its diagnostics."""
        first = done == self.start_step + 1
        every = (self._every_steps, self._measure_every_steps or self._every_steps)
        due = any(done % steps == 0 for steps in every)
        return first or due or done == self._total_steps

    def report(
        self,
        done: int,
        metrics: Metrics,
        measure: watching.Measurement | None = None,
    ) -> None:
        """Takes the metrics of update number `done`, from 1.

        Args:
          done: number of updates, this one included.
          metrics: of the step, with the diagnostics if it `is_logged`.
          measure: measures the state, once it is known to be finite, at a step that
            `is_logged`; not called for a step that was skipped. Its time is not that
            of the step.

        Raises:
          TrainingDiverged: the loss, the gradient or the update is not finite.
        """
        # JAX's stubs do not have `is_ready`.
        was_ready = all(x.is_ready() for x in metrics.values())  # type: ignore[attr-defined]
        values = self._guard.check(done, jax.device_get(metrics))
        if values is not None and self.is_logged(done):
            interval = self._clock.read(done, was_ready=was_ready)
            self._log(done, values | self._measured(done, measure), interval)

    def _measured(
        self, done: int, measure: watching.Measurement | None
    ) -> dict[str, float]:
        """Held-out figures, with what they cost; none where nothing measures."""
        if measure is None:
            return {}
        start = time.monotonic()
        with self._clock.saving():
            figures = measure.figures()
            if measure.points is not None:
                self._writer.writers.embeddings(done, measure.points())
        secs = time.monotonic() - start
        self._measuring_secs += secs
        share = self._measuring_secs / (time.monotonic() - self._started_at)
        _LOG.info(
            "Held out: %s; took %.1f s, %.1f %% of the time since the start",
            ", ".join(
                f"{name.removeprefix(watching.PREFIX)} {100 * value:.2f} %"
                for name, value in figures.items()
            ),
            *(secs, 100 * share),
        )
        return {**figures, "held_out_secs": secs, "held_out_time_share": share}

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """A context in which a checkpoint is saved.

        The metrics and the list of bad images go where it goes.
        """
        with self._clock.saving():
            yield
        self._bad_records()
        self._writer.copy_soon()

    def _log(self, done: int, values: dict[str, float], interval: Interval) -> None:
        steps, secs, waited_secs = interval
        values = {
            **values,
            "images_per_sec": steps * self._batch_size / secs,
            "input_wait_share": waited_secs / secs,
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
        words = {"bottleneck": side or FIRST_OF_A_START}
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

    def finish(self) -> None:
        """Logs how the run ended."""
        if self.start_step >= self._total_steps:
            _LOG.info("Nothing to do: all %d steps are done.", self._total_steps)
            return
        health = f" Health: {self._verdict}" if self._verdict else ""
        _LOG.info("Done: %d steps.%s", self._total_steps, health)
