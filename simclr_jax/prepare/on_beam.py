"""The work of `prepare` on many machines, by Apache Beam.

Beam runs the functions that processes of one machine run, on the same tasks: only where
a task's files lie differs. So the dataset is the same byte for byte. With an output on
a store, the workers put finished parts and shards there; only what is known of each,
some kilobytes, comes to the machine that started the command.
"""

import dataclasses
import functools
import json
import logging
import os
import pathlib
import pickle
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from simclr_jax import paths
from simclr_jax.data import optional
from simclr_jax.data.sources import storage
from simclr_jax.errors import ConfigError, RunFailed, first_line
from simclr_jax.prepare import outputs
from simclr_jax.prepare.files import ShardTask, write_shard
from simclr_jax.prepare.parts import Part, write_part

_LOG = logging.getLogger(__name__)
_PARTS, _RECEIPTS = "parts", "receipts"
# Checking an image catches what C code prints for the whole process.
_ONE_AT_A_TIME = threading.Lock()


@dataclasses.dataclass(frozen=True)
class _Job:
    """What all tasks of a pipeline share.

    Attributes:
      function: to be applied to each.
      tasks: the file with all of them.
      results: the folder for what it returns.
      shared: the folder on a store for parts; None if the tasks' own paths can be
        written by all workers.
      output: the folder on a store for shards.
    """

    function: Callable[[Any], Any]
    tasks: str
    results: str
    shared: str | None
    output: str


def check(flags: Sequence[str]) -> None:
    """Checks that Beam is installed, and that its flags name a runner that is there.

    Raises:
      ConfigError: they do not, or it is not.
    """
    if not optional.is_installed("apache_beam"):
        raise ConfigError(
            optional.install_hint("--beam", "apache_beam", extra="beam")
            + ", in an environment of its own if it does not fit into this one"
        )
    from apache_beam import runners
    from apache_beam.options.pipeline_options import StandardOptions

    name = None
    try:
        name = _options(flags).view_as(StandardOptions).runner
        runners.create_runner(name or StandardOptions.DEFAULT_RUNNER)
    except (Exception, SystemExit) as error:  # argparse ends the process
        raise ConfigError(
            f"--beam={' '.join(flags)}: must be flags of an Apache Beam runner, as in "
            f"--beam=--runner=DirectRunner ({first_line(error)})"
        ) from error


def _options(flags: Sequence[str]) -> Any:
    from apache_beam.options.pipeline_options import PipelineOptions

    return PipelineOptions(list(flags))


class Beam:
    """Applies functions to tasks, as `workers.run_all` does, on Beam's workers."""

    def __init__(
        self, flags: Sequence[str], *, work: pathlib.Path, shared: str | None, name: str
    ) -> None:
        """Fetches what an earlier start has finished.

        Args:
          flags: of Beam.
          work: the local folder of unfinished work.
          shared: a folder on a store for it; None if all workers can write `work`.
          name: of the output.
        """
        self._flags = flags
        self._work = work
        self._shared = shared
        self._name = name
        self._fetch()

    def __call__(
        self, function: Callable[[Any], Any], tasks: Sequence[Any]
    ) -> Iterator[tuple[Any, Any]]:
        """Yields (task, result) of all tasks, once all are done.

        Raises:
          RunFailed: the pipeline failed, or its workers write elsewhere.
        """
        if not tasks:
            return
        root = self._shared or str(self._work)
        folder = f"{root}/beam-{uuid.uuid4().hex}"
        job = _Job(function, f"{folder}/tasks", folder, self._shared, self._name)
        # Not part of the pipeline, whose description runners keep small.
        content = [pickle.dumps(task) for task in tasks]
        paths.as_path(folder).mkdir(parents=True, exist_ok=True)
        paths.as_path(job.tasks).write_bytes(b"".join(content))
        places, start = [], 0
        for number, pickled in enumerate(content):
            places.append((number, start, len(pickled)))
            start += len(pickled)
        _LOG.info("Beam: %d tasks with %s", len(tasks), " ".join(self._flags))
        self._run(places, job)
        self._fetch()
        files = [f"{folder}/{number}.json" for number in range(len(tasks))]
        for task, result in zip(tasks, storage.each(self._read, files), strict=True):
            yield task, json.loads(result)

    def _run(self, places: list[tuple[int, int, int]], job: _Job) -> None:
        import apache_beam as beam

        try:
            pipeline = beam.Pipeline(options=_options(self._flags))
            _ = (
                pipeline
                | beam.Create(places)
                | beam.Reshuffle()
                | beam.Map(functools.partial(_work, job=job))
            )
            state = pipeline.run().wait_until_finish()
        except Exception as error:  # each runner has its own
            raise RunFailed(
                f"--beam: the pipeline failed ({first_line(error)}); the same command "
                "resumes"
            ) from error
        if state not in (None, "DONE"):
            raise RunFailed(
                f"--beam: the pipeline is {state}; the same command resumes"
            )

    def _read(self, path: str) -> bytes:
        try:
            return storage.read_file(path)
        except FileNotFoundError as error:
            raise RunFailed(
                f"--beam: file {path} was not written; --output={self._name} must be "
                "on a store, or on a disk that all workers share"
            ) from error

    def _fetch(self) -> None:
        """Brings here what is known of parts and shards, not these themselves."""
        if self._shared is None:
            return
        for name, suffix in ((_PARTS, ".npz"), (_RECEIPTS, ".json")):
            target = self._work / name
            missing = [
                file
                for file in storage.files_in(f"{self._shared}/{name}")
                if file.endswith(suffix) and not (target / file).exists()
            ]
            origins = [f"{self._shared}/{name}/{file}" for file in missing]
            for file, content in zip(
                missing, storage.each(storage.read_file, origins), strict=True
            ):
                unfinished = target / f"{file}.unfinished"
                unfinished.write_bytes(content)
                os.replace(unfinished, target / file)


def _work(place: tuple[int, int, int], *, job: _Job) -> None:
    """Does a task, on a worker."""
    number, start, size = place
    task = pickle.loads(storage.read_range(job.tasks, start, size))
    with _ONE_AT_A_TIME:
        result = job.function(task) if job.shared is None else _on_store(task, job)
    paths.as_path(f"{job.results}/{number}.json").write_text(json.dumps(result))


def _on_store(task: Any, job: _Job) -> Any:
    """Does a task with its files on a store."""
    parts = f"{job.shared}/{_PARTS}"
    with tempfile.TemporaryDirectory(prefix="simclr_jax-") as name:
        folder = pathlib.Path(name)
        if isinstance(task, Part):
            part = dataclasses.replace(task, stem=str(folder / task.table.stem))
            result: Any = write_part(part)
            # A part is done once its table is there.
            for path in (part.records, part.table):
                outputs.upload(path, f"{parts}/{path.name}")
            return result
        assert isinstance(task, ShardTask)
        shard = ShardTask(
            folder / task.path.name,
            folder / task.receipt.name,
            [(f"{parts}/{os.path.basename(path)}", run) for path, run in task.runs],
        )
        result = write_shard(shard)
        outputs.upload(shard.path, f"{job.output}/{shard.path.name}")
        outputs.upload(shard.receipt, f"{job.shared}/{_RECEIPTS}/{shard.receipt.name}")
        return result
