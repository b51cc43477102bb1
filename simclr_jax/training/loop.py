"""The training loop shared by pretraining, fine-tuning and distillation."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Iterator

import jax
from jax.sharding import Mesh
from ml_collections import config_dict

from simclr_jax import parallel
from simclr_jax.config import log_writers, rules
from simclr_jax.data.sources.base import Source
from simclr_jax.errors import RunStopped
from simclr_jax.parallel import processes
from simclr_jax.runs import dataset_record, directory, ownership
from simclr_jax.runs.checkpoints import Checkpoints
from simclr_jax.runs.health import HealthMonitor
from simclr_jax.training import (
    build,
    compiling,
    device_views,
    input_pipeline,
    pixel_moments,
    profiling,
    rematerialization,
    starting,
    step,
    watching,
)
from simclr_jax.training.objectives import Batch, Metrics
from simclr_jax.training.preemption import Requests
from simclr_jax.training.reporter import Reporter, open_reporter
from simclr_jax.training.step import StepParts, Teacher, TrainState

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainingJob:
    """A training job, ready to run.

    Attributes:
      config: resolved.
      source: the training images, in memory if the config asks for it.
      parts: of the train step.
      mesh: all devices.
      health: monitor of the metrics; None for objectives that it does not support.
      initialize: TrainState -> TrainState, puts in given weights, which are its leaves.
      teacher: the teacher model of distillation.
      teacher_classes: their names, where the teacher has them.
      held_out: measures the state on the way, if the config asks for it.
    """

    config: config_dict.ConfigDict
    source: Source
    parts: StepParts
    mesh: Mesh
    health: HealthMonitor | None = None
    initialize: jax.tree_util.Partial | None = None
    teacher: Teacher | None = None
    teacher_classes: tuple[str, ...] | None = None
    held_out: watching.HeldOut | None = None


def pretraining_job(config: config_dict.ConfigDict) -> TrainingJob:
    """Checks and opens everything that pretraining needs; no step runs yet.

    Args:
      config: as in `configs/base.py`.

    Raises:
      ConfigError, DataError: the config or the dataset cannot be run.
    """
    with processes.all_or_none():
        rules.validate(config)
        config, source = input_pipeline.open_to_train(config)
        config = pixel_moments.resolve(config, source)
        mesh = parallel.create_mesh()
        parts = step.pretraining_parts(
            config, num_classes=source.num_classes, mesh=mesh
        )
    return TrainingJob(config, source, parts, mesh, build.make_health_monitor(config))


def run(
    job: TrainingJob,
    workdir: str,
    *,
    allow_config_change: bool = False,
    allow_data_change: bool = False,
    profile_steps: str | None = None,
    last_step: int | None = None,
) -> TrainState:
    """Runs a training, or resumes it from the newest checkpoint of its directory.

    Args:
      job: from `pretraining_job`, `finetuning.make_job` or `distillation.make_job`.
      workdir: the run directory.
      allow_config_change: resume even though the directory's config differs.
      allow_data_change: resume even though the images differ.
      profile_steps: `FIRST:LAST`, the steps to trace; see `profiling.Profiler`.
      last_step: end after this step, which is saved; by default the schedule's last.

    Returns:
      The state after the last step, on the devices.

    Raises:
      ConfigError: the directory or the number of devices does not fit the config;
        raised before any device work.
      DataError: an image cannot be read, or too many that others would replace.
      CheckpointError: the newest checkpoint cannot be restored.
      TrainingDiverged: a loss, gradient or update is not finite. Earlier checkpoints
        are unchanged.
      RunOwned: another process trains in the directory.
      RunFailed: the directory was deleted, or taken over from this process.
      RunStopped: a signal asked to stop; the state is saved.
    """
    config = job.config
    with processes.all_or_none():
        watching.check(config, job.held_out)
        log_writers.check_installed(config)
        rules.check_devices(config, jax.device_count(), "batch")
        listing = dataset_record.check(workdir, job.source, allow_data_change)
        directory.check(workdir, config, listing, allow_config_change)
        traced = profiling.parse(profile_steps, config.schedule.train_steps)
    starting.require_same_config_and_data(config, listing)
    compiled = input_pipeline.use_compiled_views(config)
    chance, num_views = job.parts.objective.chance, job.parts.objective.num_views
    with contextlib.ExitStack() as stack:
        owner = stack.enter_context(ownership.owned(workdir))
        checkpoints = starting.open_checkpoints(config, workdir, owner)
        stack.callback(checkpoints.close)
        state = starting.initial_or_restored(
            config, job.parts, job.mesh, checkpoints, job.initialize, workdir
        )
        # After restoring, so that a failed restore leaves the old config in place.
        directory.write_config(workdir, config)
        dataset_record.write(workdir, listing, job.teacher_classes)
        start_step = int(state.step)
        starting.log(config, job.source, state)
        quarantine = input_pipeline.open_quarantine(config, job.source, workdir)
        stack.enter_context(quarantine)
        batches = input_pipeline.global_batches(
            config, job.source, start_step, job.mesh, num_views, compiled, quarantine
        )
        opened = open_reporter(
            config, workdir, state, chance, job.health, quarantine.collect, num_views
        )
        reporter = stack.enter_context(opened)
        requests = Requests(checkpoints, save_every_secs=config.checkpoint.every_secs)
        stack.enter_context(requests)
        profiler = profiling.Profiler(workdir, traced, start_step)
        stack.callback(profiler.close)
        return _run_steps(
            job, state, batches, reporter, checkpoints, requests, profiler, last_step
        )


def _run_steps(
    job: TrainingJob,
    state: TrainState,
    batches: Iterator[Batch],
    reporter: Reporter,
    checkpoints: Checkpoints,
    requests: Requests,
    profiler: profiling.Profiler,
    last_step: int | None,
) -> TrainState:
    """Runs the steps. Metrics are fetched one step late, to keep the device busy."""
    config, parts = job.config, job.parts
    description = build.describe(config, parts.model)
    total_steps = config.schedule.train_steps
    last_step = min(last_step or total_steps, total_steps)
    views = device_views.from_config(config, job.mesh, parts.objective.num_views)
    teacher = () if job.teacher is None else (job.teacher,)
    # `step.train_step`, jitted.
    make_step = functools.partial(
        compiling.compile_step,
        mesh=job.mesh,
        views=views,
        with_teacher=bool(teacher),
        deterministic=config.parallel.deterministic,
    )
    workdir = checkpoints.folder.parent
    train_step = rematerialization.fitting(make_step, parts, config, workdir)
    diagnose = compiling.compile_diagnostics(parts, job.mesh)
    watch = watching.Watch(job.held_out, config, checkpoints)
    pending: tuple[int, Metrics] | None = None
    if reporter.start_step < total_steps:
        _LOG.info("Compiling the train step ...")
    for done in range(reporter.start_step + 1, last_step + 1):
        batch = reporter.next_batch(batches)
        state, metrics, outputs = profiler.run(done, train_step, state, batch, *teacher)
        if reporter.is_logged(done):
            metrics |= diagnose(outputs)
        if pending is not None:
            reporter.report(*pending)
        pending = (done, metrics)
        asked = requests.after_step()
        stopped = asked.stop and done < last_step
        due = done % config.checkpoint.every_steps == 0 or done == last_step
        measure = watch.measurement(done, state)
        if due or asked.save or measure:
            # Only a state known to be finite may become the newest checkpoint.
            reporter.report(*pending, measure)
            pending = None
        if due or asked.save or watch.is_best():
            with reporter.saving():
                checkpoints.save(done, state, description | watch.describe())
            requests.saved()
        if stopped:
            checkpoints.wait()
            raise RunStopped(
                f"stopped after step {done} of {total_steps}, which is saved; the "
                "same command resumes from there"
            )
    checkpoints.wait()
    if last_step == total_steps:
        reporter.finish()
        watch.finish()
    return state
