"""The loop of all trainings."""

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Iterator

import jax
from jax.sharding import Mesh
from ml_collections import config_dict

from simclr_jax import losses, optim, parallel
from simclr_jax.config import rules
from simclr_jax.data.sources.base import Source
from simclr_jax.errors import RunStopped, TrainingDiverged
from simclr_jax.parallel import processes
from simclr_jax.runs import directory
from simclr_jax.runs.checkpoints import Checkpoints, describe
from simclr_jax.runs.health import HealthMonitor
from simclr_jax.runs.metrics_writer import MetricsWriter, progress_line
from simclr_jax.training import bottleneck, build, device_views, input_pipeline, step
from simclr_jax.training.objectives import Metrics
from simclr_jax.training.preemption import StopRequest
from simclr_jax.training.step import Teacher, TrainState

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Job:
    """A training that is ready to run.

    Attributes:
      config: resolved.
      source: the training images, in memory where they should be.
      parts: what a step is made of.
      mesh: all devices.
      health: judges the metrics; None where nothing is known of them.
      begin: TrainState -> TrainState, gives the drawn state other weights to start
        from, which are its leaves.
      teacher: of objectives that learn from another model.
    """

    config: config_dict.ConfigDict
    source: Source
    parts: build.Recipe
    mesh: Mesh
    health: HealthMonitor | None = None
    begin: jax.tree_util.Partial | None = None
    teacher: Teacher | None = None


def train(
    config: config_dict.ConfigDict, workdir: str, *, allow_config_change: bool = False
) -> TrainState:
    """Pretrains, or goes on where the last start in this directory stopped.

    Args:
      config: as in `configs/base.py`.
      workdir: the run directory.
      allow_config_change: go on even though the directory's config differs.

    Returns:
      The final state.

    Raises:
      ConfigError, DataError: something cannot be run; raised before any device work,
        unless an image turns out to be damaged when it is read.
      CheckpointError: the newest checkpoint cannot be restored.
      TrainingDiverged: a loss, gradient or update is not finite. The checkpoints
        written before stay.
      RunStopped: SIGTERM came; the state is saved.
    """
    with processes.all_or_none():
        rules.validate(config)
        source = input_pipeline.open_source(config, config.data.split)
        input_pipeline.make_buffers(config, batch_size=config.batch.batch_size)
        source = input_pipeline.hold_in_memory(config, source)
        config = rules.resolve(config, num_examples=source.num_examples)
        mesh = parallel.create_mesh()
        parts = build.make_recipe(config, num_classes=source.num_classes, mesh=mesh)
    # With labels, few directions of z are no bad sign.
    health = HealthMonitor(rank_tells=not losses.LOSSES[config.loss.name].needs_labels)
    job = Job(config, source, parts, mesh, health)
    return run(job, workdir, allow_config_change=allow_config_change)


def run(job: Job, workdir: str, *, allow_config_change: bool = False) -> TrainState:
    """Makes the steps of a training that are yet to be made; see `train`."""
    config, source, parts, mesh = job.config, job.source, job.parts, job.mesh
    with processes.all_or_none():
        rules.check_devices(config, jax.device_count(), "batch")
        directory.check(workdir, config, allow_config_change=allow_config_change)
    _require_same_run(config, source)
    with contextlib.ExitStack() as stack:
        directory.make_folder(workdir)
        checkpoints = Checkpoints(
            workdir,
            keep_last=config.checkpoint.keep_last,
            keep_every_steps=config.checkpoint.keep_every_steps,
        )
        stack.callback(checkpoints.close)
        state = _initial_or_restored(job, checkpoints)
        # Only now: a config whose state cannot be restored must not replace another.
        directory.write_config(workdir, config)
        start_step = int(state.step)
        _log_start(config, source, state)
        batches = input_pipeline.global_batches(
            config, source, start_step, mesh, num_views=parts.objective.num_views
        )
        writer = MetricsWriter(
            workdir,
            resume_step=start_step,
            tensorboard=config.log.tensorboard,
            active=processes.is_main(),
        )
        stack.callback(writer.close)
        stop = stack.enter_context(StopRequest())
        reporter = _Reporter(job, writer, start_step)
        return _run_steps(job, state, batches, reporter, checkpoints, stop)


def _require_same_run(config: config_dict.ConfigDict, source: Source) -> None:
    """Checks that all processes are about to do the same thing on the same images."""
    processes.require_equal(
        "a config of the fingerprint",
        rules.fingerprint(directory.as_json(config)),
    )
    processes.require_equal(
        f"the training images of {config.data.dataset}:",
        f"{source.num_examples} of {source.num_classes} classes",
    )


def _log_start(
    config: config_dict.ConfigDict, source: Source, state: TrainState
) -> None:
    _LOG.info(
        "%d devices (%s)%s, %s: %d images, batch %d",
        jax.device_count(),
        jax.devices()[0].device_kind,
        f" of {jax.process_count()} processes" if jax.process_count() > 1 else "",
        source.name,
        source.num_examples,
        config.batch.batch_size,
    )
    _LOG.info(
        "Parameters:\n%s",
        optim.role_table(state.params, adapts=config.optimizer.name == "lars"),
    )


def _initial_or_restored(job: Job, checkpoints: Checkpoints) -> TrainState:
    config, mesh = job.config, job.mesh
    init = step.compile_init(job.parts, mesh, image_size=config.image_size)
    key = jax.random.key(config.seed)
    latest = checkpoints.latest_step()
    # A file system that shows files late would let processes start at different steps.
    processes.require_equal("as the newest checkpoint that of step", str(latest))
    sharding = step.state_sharding(job.parts, mesh)
    if latest is None:
        state = init(key)
        if job.begin is None:
            return state
        begin = jax.jit(_call, out_shardings=sharding, donate_argnums=1)
        return begin(job.begin, state)
    _LOG.info("Going on from the checkpoint of step %d.", latest)
    return checkpoints.restore(latest, jax.eval_shape(init, key), sharding)


def _call(begin: jax.tree_util.Partial, state: TrainState) -> TrainState:
    return begin(state)


def _run_steps(
    job: Job,
    state: TrainState,
    batches: Iterator[dict[str, jax.Array]],
    reporter: "_Reporter",
    checkpoints: Checkpoints,
    stop: StopRequest,
) -> TrainState:
    """The steps themselves. Metrics are read one step late: the device never waits."""
    config, parts, mesh = job.config, job.parts, job.mesh
    description = describe(config, parts.model)
    total_steps = config.schedule.train_steps
    made = device_views.of_config(config, mesh, num_views=parts.objective.num_views)
    fixed = () if job.teacher is None else (job.teacher,)
    advance = step.compile_step(parts, mesh, made, taught=bool(fixed))
    pending: tuple[int, Metrics] | None = None
    if reporter.start_step < total_steps:
        _LOG.info("Compiling the train step ...")
    for done in range(reporter.start_step + 1, total_steps + 1):
        with reporter.waiting_for_input():
            batch = next(batches)
        state, metrics = advance(state, batch, *fixed)
        if pending is not None:
            reporter.report(*pending)
        pending = (done, metrics)
        stopped = stop.asked(done) and done < total_steps
        if stopped or done % config.checkpoint.every_steps == 0 or done == total_steps:
            # Only a state known to be finite may become the newest checkpoint.
            reporter.report(*pending)
            pending = None
            checkpoints.save(done, state, description)
        if stopped:
            checkpoints.wait()
            raise RunStopped(
                f"stopped behind step {done} of {total_steps}, which is saved; the "
                "same command goes on from there"
            )
    checkpoints.wait()
    reporter.finish()
    return state


class _Reporter:
    """Checks and logs the metrics of each step, and keeps the time."""

    def __init__(self, job: Job, writer: MetricsWriter, start_step: int) -> None:
        config = job.config
        self.start_step = start_step
        self._every_steps = config.log.every_steps
        self._total_steps = config.schedule.train_steps
        self._batch_size = config.batch.batch_size
        self._chance = job.parts.objective.chance
        self._writer = writer
        self._health = job.health
        self._verdict = ""
        self._bottleneck = bottleneck.DEVICE  # not worth a line
        self._waited_secs = 0.0
        self._mark = (start_step, time.monotonic())

    def waiting_for_input(self) -> "_Stopwatch":
        """A context whose time counts as waiting for input."""
        return _Stopwatch(self)

    def add_wait(self, secs: float) -> None:
        self._waited_secs += secs

    def report(self, done: int, metrics: Metrics) -> None:
        """Takes the metrics of the update that made `done` updates complete."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name in ("loss", "gradient_norm", "update_norm"):
            if not math.isfinite(values[name]):
                raise TrainingDiverged(
                    f"step {done}: {name} is {values[name]}, so training has diverged; "
                    "the checkpoints written before are good. Try a lower "
                    "config.optimizer.learning_rate or a longer warm-up"
                )
        first = done == self.start_step + 1
        if first or done % self._every_steps == 0 or done == self._total_steps:
            self._log(done, values)

    def _log(self, done: int, values: dict[str, float]) -> None:
        marked_step, marked_secs = self._mark
        secs = time.monotonic() - marked_secs
        steps = done - marked_step
        values = {
            **values,
            "images_per_sec": steps * self._batch_size / secs,
            "input_wait_share": min(self._waited_secs / secs, 1.0),
        }
        if self._chance is not None:
            values["chance"] = self._chance
            values["loss_of_chance"] = values["loss"] / self._chance
        verdict = self._health.update(done, values) if self._health else ""
        # The first step's time is mostly compilation and tells nothing of the others.
        first = done == self.start_step + 1
        wait_share = values["input_wait_share"]
        side = "" if first else bottleneck.of_wait(wait_share)
        words = {"bottleneck": side or "too early to tell"}
        if verdict:
            words["health"] = verdict
        self._writer.write(done, {**values, **words})
        secs_left = None if first else (self._total_steps - done) * secs / steps
        _LOG.info(
            "%s", progress_line(done, self._total_steps, values, secs_left=secs_left)
        )
        if side and side != self._bottleneck:
            _LOG.info("%s", bottleneck.advice(side, wait_share))
            self._bottleneck = side
        if verdict != self._verdict:
            level = logging.WARNING if "since" in verdict else logging.INFO
            _LOG.log(level, "Health: %s", verdict)
            self._verdict = verdict
        self._mark, self._waited_secs = (done, time.monotonic()), 0.0

    def finish(self) -> None:
        """Says how the run ended."""
        if self.start_step >= self._total_steps:
            _LOG.info("Nothing to do: all %d steps were made.", self._total_steps)
            return
        health = f" Health: {self._verdict}" if self._verdict else ""
        _LOG.info("Done: %d steps.%s", self._total_steps, health)


class _Stopwatch:
    def __init__(self, reporter: _Reporter) -> None:
        self._reporter = reporter
        self._start = 0.0

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._reporter.add_wait(time.monotonic() - self._start)
