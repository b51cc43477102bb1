"""The life of a pretraining job: what is rehearsed, in order."""

import contextlib
import functools
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import config_dict

from simclr_jax import paths, signals
from simclr_jax.config import rules
from simclr_jax.doctor import checks as machine
from simclr_jax.errors import ConfigError, RunFailed, RunStopped, first_line
from simclr_jax.evaluation import watching
from simclr_jax.parallel import processes
from simclr_jax.rehearse import afterwards
from simclr_jax.rehearse.checking import Checks
from simclr_jax.runs import directory, metrics_writer
from simclr_jax.runs.checkpoints import Checkpoints
from simclr_jax.training import (
    build,
    compiling,
    device_views,
    input_pipeline,
    loop,
    rematerialization,
)
from simclr_jax.training.loop import TrainingJob
from simclr_jax.training.step import TrainState
from simclr_jax.verdicts import Verdict

_LOG = logging.getLogger(__name__)

NUM_STEPS = 3
# Time to measure the input pipeline.
_INPUT_SECS = 5.0
# Time from SIGTERM to SIGKILL that schedulers and spot machines give.
_GRACE_SECS = 30.0


def rehearse(
    config: config_dict.ConfigDict, workdir: str, *, keep: bool = False
) -> Iterator[Verdict]:
    """Yields a verdict for each part of a job's life.

    Every process must call it. Everything is written into a new folder in the run
    directory, and removed at the end, whatever happens.

    Args:
      config: as in `configs/base.py`.
      workdir: the run directory of the job; need not be there.
      keep: leave what was written.

    Raises:
      ConfigError: the config breaks a rule.
      RunStopped: a signal asked to stop.
    """
    with processes.all_or_none():
        rules.validate(config)
        rules.check_devices(config, jax.device_count(), "batch")
    name = processes.gather_texts(f"rehearsal-{secrets.token_hex(4)}")[0]
    life = _Life(config, workdir, name)

    def remove(reason: str) -> None:
        if not keep:
            life.remove()

    checks = Checks()
    with contextlib.ExitStack() as stack:
        # Also where an error or a signal ends the rehearsal.
        stack.callback(remove, "")
        stack.enter_context(signals.before_ending(remove))
        for part, check in machine.OF_MACHINES:
            yield from checks.check(part, check)
        yield from checks.check("run directory", life.write)
        yield from checks.check("data", life.open_data)
        yield from checks.check("input", life.measure_input, "data")
        yield from checks.check("compile", life.compile, "data")
        needs = ("run directory", "compile")
        yield from checks.check("steps", life.make_steps, *needs)
        yield from checks.check("save", life.save, "steps")
        yield from checks.check("stop", life.stop, "steps")
        yield from checks.check("resume", life.resume, "stop")
        yield from checks.check("evaluate", life.evaluate, "steps")
        yield from checks.check("export", life.export, "steps")
        yield from checks.check("rate", life.rate, "input", "compile")
        if not keep:
            yield from checks.check("clean up", life.clean_up, "run directory")


class _Life:
    """What the checks make and leave to the next ones."""

    def __init__(self, config: config_dict.ConfigDict, workdir: str, name: str) -> None:
        # Nothing else differs from the job, so that its programs are compiled.
        self._config = config.copy_and_resolve_references()
        self._config.log.every_steps = 1
        self._workdir = workdir
        self._folder = f"{workdir.rstrip('/')}/{name}"
        self._job: TrainingJob | None = None
        self._state: TrainState | None = None
        self._digest = ""
        self._stopped_at = 0
        self._host_rate: float | None = None
        self._step_secs = 0.0
        self._created_workdir = False

    @property
    def job(self) -> TrainingJob:
        """The opened job."""
        assert self._job is not None
        return self._job

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def write(self) -> str:
        """All processes create, see, read and remove files in the run directory."""
        with processes.all_or_none():
            paths.check_reachable(self._workdir, flag="workdir")
        self._created_workdir = not paths.as_path(self._workdir).exists()
        directory.make_folder(self._folder)
        written = os.urandom(1 << 20)
        mine = paths.as_path(self._path(f"process-{jax.process_index()}"))
        with processes.all_or_none():
            try:
                mine.write_bytes(written)
                same = mine.read_bytes() == written
                mine.unlink()
            except Exception as error:
                if not paths.is_failure(error):
                    raise
                raise ConfigError(
                    f"--workdir={self._workdir}: cannot be written "
                    f"({first_line(error)})"
                ) from error
            if not same or mine.exists():
                raise ConfigError(
                    f"--workdir={self._workdir}: a file reads back differently, or "
                    "stays after it was removed"
                )
        return f"{self._folder} can be written, read and removed by all processes"

    def open_data(self) -> str:
        """The dataset opens, and the job that trains on it."""
        self._job = watching.watched(loop.pretraining_job(self._config))
        steps = self._job.config.schedule.train_steps
        if steps < NUM_STEPS:
            raise ConfigError(
                f"config.schedule.train_steps={steps}: must be at least {NUM_STEPS} to "
                "be rehearsed"
            )
        source = self._job.source
        classes = (
            "no labels"
            if source.num_classes is None
            else f"{source.num_classes} classes"
        )
        return f"{source.name}: {source.num_examples} images, {classes}"

    def measure_input(self) -> str:
        """Batches come, as fast as this host can make them."""
        config = self.job.config
        if config.augment.placement == "accelerator":
            return "views are made on the devices, of images in their memory"
        compiled = input_pipeline.use_compiled_views(config)
        with processes.all_or_none():
            start = time.monotonic()
            batches = input_pipeline.local_batches(
                config, self.job.source, 0, compiled=compiled
            )
            next(batches)
            first_secs = time.monotonic() - start
            count, start = 0, time.monotonic()
            steps = config.schedule.train_steps - 1
            while count < steps and (
                count < NUM_STEPS or time.monotonic() - start < _INPUT_SECS
            ):
                next(batches)
                count += 1
            secs = time.monotonic() - start
            del batches
        local = config.batch.batch_size // jax.process_count()
        rates = processes.gather_texts(str(count * local / secs if count else 0.0))
        self._host_rate = min(map(float, rates)) or None
        if self._host_rate is None:
            return f"the first batch after {first_secs:.1f} s"
        return (
            f"the first batch after {first_secs:.1f} s, then {self._host_rate:,.0f} "
            "images/s of a host" + (", the slowest" if len(rates) > 1 else "")
        )

    def compile(self) -> str:
        """The step compiles, fits, and is timed, again and again on the first batch."""
        job, config = self.job, self.job.config
        views = device_views.from_config(config, job.mesh)
        make_step = functools.partial(
            compiling.compile_step,
            mesh=job.mesh,
            views=views,
            deterministic=config.parallel.deterministic,
        )
        step = rematerialization.fitting(make_step, job.parts, config)
        init = compiling.compile_init(job.parts, job.mesh, image_size=config.image_size)
        batch = next(input_pipeline.global_batches(config, job.source, 0, job.mesh))
        start = time.monotonic()
        state, *_ = jax.block_until_ready(step(init(jax.random.key(0)), batch))
        compile_secs = time.monotonic() - start
        start = time.monotonic()
        for _ in range(NUM_STEPS):
            state, *_ = jax.block_until_ready(step(state, batch))
        self._step_secs = (time.monotonic() - start) / NUM_STEPS
        return f"{compile_secs:.1f} s, then {self._step_secs:.3g} s a step"

    def make_steps(self) -> str:
        """The job runs its first steps, which are logged and saved."""
        self._state = loop.run(self.job, self._path("run"), last_step=NUM_STEPS)
        self._digest = digest(self._state)
        text = ""
        with processes.all_or_none():
            if processes.is_main():  # which writes them
                file = paths.as_path(self._path("run")) / metrics_writer.FILE_NAME
                losses = [r["loss"] for r in metrics_writer.read_metrics(file)]
                text = ", ".join(f"{loss:.4f}" for loss in losses)
        return f"{NUM_STEPS} steps, loss {processes.gather_texts(text)[0]}"

    @property
    def _batch_size(self) -> int:
        return int(self.job.config.batch.batch_size)

    def save(self) -> str:
        """The state is saved and read back, bit for bit."""
        job, state = self.job, self._state
        assert state is not None
        description = build.describe(job.config, job.parts.model)
        checkpoints = Checkpoints(
            self._path("saved"), keep_last=1, keep_every_steps=None
        )
        with contextlib.closing(checkpoints):
            start = time.monotonic()
            checkpoints.save(NUM_STEPS, state, description)
            checkpoints.wait()
            save_secs = time.monotonic() - start
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
            # So that the devices hold it once.
            self._state = state = None
            start = time.monotonic()
            sharding = compiling.state_sharding(job.parts, job.mesh)
            restored = checkpoints.restore_newest(
                like, sharding, description["config_hash"]
            )
            read_secs = time.monotonic() - start
        assert restored is not None
        self._compare(restored, "the state that was read back")
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(like)) / 1e6
        late = ""
        if save_secs > _GRACE_SECS:
            late = (
                f"; saving takes longer than the {_GRACE_SECS:g} s that most "
                "schedulers leave after SIGTERM"
            )
        return (
            f"{size:,.0f} MB saved in {save_secs:.1f} s and read back in "
            f"{read_secs:.1f} s, equal bit for bit{late}"
        )

    def stop(self) -> str:
        """A request to stop, as after SIGTERM, saves and ends."""
        if processes.is_main():
            processes.agreement().ask("stop")
        try:
            loop.run(self.job, self._path("stopped"), last_step=NUM_STEPS)
        except RunStopped as stopped:
            if signals.received():
                raise
            return str(stopped).partition(";")[0]
        raise RunFailed(f"asked to stop, it did not stop within {NUM_STEPS} steps")

    def resume(self) -> str:
        """The stopped run resumes to the state of the one that did not stop."""
        state = loop.run(self.job, self._path("stopped"), last_step=NUM_STEPS)
        self._compare(state, "the state of the resumed run")
        return (
            f"to step {NUM_STEPS}; state equal to the uninterrupted run's bit for bit "
            f"({self._digest[:12]})"
        )

    def _compare(self, state: TrainState, what: str) -> None:
        with processes.all_or_none():
            found = digest(state)
            if found != self._digest:
                raise RunFailed(
                    f"{what} differs from that of the uninterrupted run after step "
                    f"{NUM_STEPS} ({found[:12]} and {self._digest[:12]}). On GPUs set "
                    "config.parallel.deterministic=True; elsewhere doubt the memory of "
                    "this machine, or the store"
                )

    def evaluate(self) -> str:
        """The saved encoder is evaluated on a few batches."""
        return afterwards.evaluate(self.job, self._path("run"))

    def export(self) -> str:
        """The saved encoder is exported, by process 0."""
        with processes.all_or_none():
            if not processes.is_main():
                return ""
            return afterwards.export(self._path("run"), self._path("export"))

    def rate(self) -> str:
        """An estimate: steps/s, the length of the job, and what the input must give."""
        config = self.job.config
        need = self._batch_size / self._step_secs
        steps = config.schedule.train_steps
        if self._host_rate is None:
            secs = self._step_secs
            words = "the input does not count"
        else:
            have = self._host_rate * jax.process_count()
            secs = max(self._step_secs, self._batch_size / have)
            words = (
                f"the steps take {need / jax.process_count():,.0f} images/s of a host, "
                f"its input gives {self._host_rate:,.0f}"
            )
            if have < need:
                words += (
                    f", so the devices would wait {1 - have / need:.0%} of the time "
                    "(`python -m simclr_jax.bench` tells for what)"
                )
        return (
            f"about {1 / secs:.3g} steps/s, {self._batch_size / secs:,.0f} images/s, "
            f"{steps * secs / 3600:.3g} h for {steps} steps; {words}"
        )

    def clean_up(self) -> str:
        """Nothing of the rehearsal is left."""
        with processes.all_or_none():
            if processes.is_main():
                self.remove()
                if paths.as_path(self._folder).exists():
                    raise RunFailed(f"{self._folder}: cannot be removed")
        return f"{self._folder} is removed"

    def remove(self) -> None:
        """Removes the folder, if it is there; process 0 does."""
        if not processes.is_main():
            return
        folder = paths.as_path(self._folder)
        with contextlib.suppress(OSError):
            folder.rmtree(missing_ok=True)
        if self._created_workdir and not paths.is_store(self._workdir):
            with contextlib.suppress(OSError):  # not empty
                paths.as_path(self._workdir).rmdir()


def digest(state: TrainState) -> str:
    """Of the bits of a state that are on this process's devices."""
    result = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        result.update(jax.tree_util.keystr(path).encode())
        seen = set()
        for shard in leaf.addressable_shards:
            # Copies of the same part are compared by the step itself.
            if (place := str(shard.index)) not in seen:
                seen.add(place)
                result.update(place.encode())
                result.update(np.ascontiguousarray(shard.data).tobytes())
    return result.hexdigest()
