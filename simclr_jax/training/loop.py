"""The training loop shared by pretraining, fine-tuning and distillation."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator

import jax
from jax.sharding import Mesh
from ml_collections import config_dict

from simclr_jax import losses, optim, parallel
from simclr_jax.config import identity, resolve, rules
from simclr_jax.data.sources.base import Source
from simclr_jax.errors import RunStopped
from simclr_jax.parallel import processes
from simclr_jax.runs import directory
from simclr_jax.runs.checkpoints import Checkpoints
from simclr_jax.runs.health import HealthMonitor
from simclr_jax.runs.metrics_writer import MetricsWriter
from simclr_jax.training import build, compiling, device_views, input_pipeline, step
from simclr_jax.training.objectives import Batch, Metrics
from simclr_jax.training.out_of_memory import explained
from simclr_jax.training.preemption import StopRequest
from simclr_jax.training.reporter import Reporter
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
      initialize: TrainState -> TrainState, replaces random weights by pretrained ones,
        which are the leaves of this pytree.
      teacher: the teacher model of distillation.
    """

    config: config_dict.ConfigDict
    source: Source
    parts: StepParts
    mesh: Mesh
    health: HealthMonitor | None = None
    initialize: jax.tree_util.Partial | None = None
    teacher: Teacher | None = None


def pretraining_job(config: config_dict.ConfigDict) -> TrainingJob:
    """Checks and opens everything that pretraining needs; no step runs yet.

    Args:
      config: as in `configs/base.py`.

    Raises:
      ConfigError, DataError: the config or the dataset cannot be run.
    """
    with processes.all_or_none():
        rules.validate(config)
        source = input_pipeline.open_source(config, config.data.split)
        source = input_pipeline.hold_in_memory(config, source)
        config = resolve.resolve(config, num_examples=source.num_examples)
        mesh = parallel.create_mesh()
        parts = step.pretraining_parts(
            config, num_classes=source.num_classes, mesh=mesh
        )
    # With labels, a low rank of z is expected.
    needs_labels = losses.LOSSES[config.loss.name].needs_labels
    health = HealthMonitor(check_rank=not needs_labels)
    return TrainingJob(config, source, parts, mesh, health)


def run(
    job: TrainingJob, workdir: str, *, allow_config_change: bool = False
) -> TrainState:
    """Runs a training, or resumes it from the newest checkpoint of its directory.

    Args:
      job: from `pretraining_job`, `finetuning.make_job` or `distillation.make_job`.
      workdir: the run directory.
      allow_config_change: resume even though the directory's config differs.

    Returns:
      The final state.

    Raises:
      ConfigError: the directory or the number of devices does not fit the config;
        raised before any device work.
      DataError: an image cannot be read.
      CheckpointError: the newest checkpoint cannot be restored.
      TrainingDiverged: a loss, gradient or update is not finite. Earlier checkpoints
        are unchanged.
      RunStopped: SIGTERM was received; the state is saved.
    """
    config = job.config
    with processes.all_or_none():
        rules.check_devices(config, jax.device_count(), "batch")
        directory.check(workdir, config, allow_config_change=allow_config_change)
    _require_same_config_and_data(config, job.source)
    compiled = input_pipeline.use_compiled_views(config)
    num_views = job.parts.objective.num_views
    with contextlib.ExitStack() as stack:
        directory.make_folder(workdir)
        checkpoints = Checkpoints(
            workdir,
            keep_last=config.checkpoint.keep_last,
            keep_every_steps=config.checkpoint.keep_every_steps,
        )
        stack.callback(checkpoints.close)
        state = _initial_or_restored(job, checkpoints)
        # After restoring, so that a failed restore leaves the old config in place.
        directory.write_config(workdir, config)
        start_step = int(state.step)
        _log_start(job, state)
        batches = input_pipeline.global_batches(
            config, job.source, start_step, job.mesh, num_views, compiled
        )
        writer = MetricsWriter(
            workdir,
            resume_step=start_step,
            tensorboard=config.log.tensorboard,
            active=processes.is_main(),
        )
        stack.callback(writer.close)
        stop = stack.enter_context(StopRequest())
        reporter = Reporter(
            config,
            writer,
            start_step=start_step,
            chance=job.parts.objective.chance,
            health=job.health,
        )
        return _run_steps(job, state, batches, reporter, checkpoints, stop)


def _require_same_config_and_data(
    config: config_dict.ConfigDict, source: Source
) -> None:
    """Checks that all processes run the same config on the same images."""
    fingerprint = identity.fingerprint(identity.as_json(config))
    processes.require_equal("the config fingerprint", fingerprint)
    processes.require_equal(
        f"the training images of {config.data.dataset}:",
        f"{source.num_examples} of {source.num_classes} classes",
    )


def _log_start(job: TrainingJob, state: TrainState) -> None:
    _LOG.info(
        "%d devices (%s)%s, %s: %d images, batch %d",
        jax.device_count(),
        jax.devices()[0].device_kind,
        f" of {jax.process_count()} processes" if jax.process_count() > 1 else "",
        job.source.name,
        job.source.num_examples,
        job.config.batch.batch_size,
    )
    adapts = job.config.optimizer.name == "lars"
    _LOG.info("Parameters:\n%s", optim.role_table(state.params, adapts=adapts))


def _initial_or_restored(job: TrainingJob, checkpoints: Checkpoints) -> TrainState:
    init = compiling.compile_init(job.parts, job.mesh, image_size=job.config.image_size)
    key = jax.random.key(job.config.seed)
    latest = checkpoints.latest_step()
    # An eventually consistent file system could show processes different steps.
    processes.require_equal("the newest checkpoint", f"of step {latest}")
    sharding = compiling.state_sharding(job.parts, job.mesh)
    if latest is not None:
        _LOG.info("Resuming from the checkpoint of step %d.", latest)
        return checkpoints.restore(latest, jax.eval_shape(init, key), sharding)
    state = init(key)
    if job.initialize is None:
        return state
    initialize = jax.jit(
        lambda function, state: function(state),
        out_shardings=sharding,
        donate_argnums=1,
    )
    return initialize(job.initialize, state)


def _run_steps(
    job: TrainingJob,
    state: TrainState,
    batches: Iterator[Batch],
    reporter: Reporter,
    checkpoints: Checkpoints,
    stop: StopRequest,
) -> TrainState:
    """Runs the steps. Metrics are fetched one step late, to keep the device busy."""
    config, parts = job.config, job.parts
    description = build.describe(config, parts.model)
    total_steps = config.schedule.train_steps
    views = device_views.from_config(config, job.mesh, parts.objective.num_views)
    teacher = () if job.teacher is None else (job.teacher,)
    # `step.train_step`, jitted.
    train_step = compiling.compile_step(
        parts,
        job.mesh,
        views,
        with_teacher=bool(teacher),
        deterministic=config.parallel.deterministic,
    )
    train_step = explained(train_step, config)
    pending: tuple[int, Metrics] | None = None
    if reporter.start_step < total_steps:
        _LOG.info("Compiling the train step ...")
    for done in range(reporter.start_step + 1, total_steps + 1):
        with reporter.waiting_for_input():
            batch = next(batches)
        state, metrics = train_step(state, batch, *teacher)
        if pending is not None:
            reporter.report(*pending)
        pending = (done, metrics)
        stopped = stop.requested(done) and done < total_steps
        if stopped or done % config.checkpoint.every_steps == 0 or done == total_steps:
            # Only a state known to be finite may become the newest checkpoint.
            reporter.report(*pending)
            pending = None
            checkpoints.save(done, state, description)
        if stopped:
            checkpoints.wait()
            raise RunStopped(
                f"stopped after step {done} of {total_steps}, which is saved; the "
                "same command resumes from there"
            )
    checkpoints.wait()
    reporter.finish()
    return state
