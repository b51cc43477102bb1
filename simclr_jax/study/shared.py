"""What the cells of a study share in one process: images, and compiled programs.

Cells whose steps are the same, such as those that differ in their seed or their
augmentations, get the same `StepParts`, for which `compiling` keeps the programs.
"""

import json

from ml_collections import config_dict

from simclr_jax import parallel
from simclr_jax.config import identity
from simclr_jax.data.sources import bad_records, in_memory
from simclr_jax.data.sources.base import Source
from simclr_jax.evaluation import datasets
from simclr_jax.evaluation.datasets import Dataset
from simclr_jax.parallel import processes
from simclr_jax.training import build, input_pipeline, pixel_moments, step
from simclr_jax.training.loop import TrainingJob
from simclr_jax.training.step import StepParts

# Keys on which neither the images nor the step depend.
_OF_RUN = ("log.", "checkpoint.", "evaluation.")
# Those on which a step with views from the host does not depend.
_NOT_OF_STEP = (*_OF_RUN, "seed", "data.", "augment.")


class Shared:
    """Opens jobs and labelled images, each once."""

    def __init__(self) -> None:
        """Opens nothing yet."""
        self.mesh = parallel.create_mesh()
        self._images: dict[str, tuple[config_dict.ConfigDict, Source]] = {}
        self._parts: dict[str, StepParts] = {}
        self._datasets: dict[str, Dataset] = {}

    def job(self, config: config_dict.ConfigDict) -> TrainingJob:
        """The training of a cell, as `training.loop.pretraining_job` makes it.

        Args:
          config: valid.

        Raises:
          ConfigError, DataError: as there.
        """
        with processes.all_or_none():
            source_key = _key(config, "data.", "augment.placement")
            if source_key not in self._images:
                self._images[source_key] = input_pipeline.open_to_train(config)
            handled, source = self._images[source_key]
            config = config.copy_and_resolve_references()
            config.data = handled.data
            config = pixel_moments.resolve(config, source)
            parts = self._step_parts(config, source.num_classes)
        health = build.make_health_monitor(config)
        return TrainingJob(config, source, parts, self.mesh, health)

    def _step_parts(
        self, config: config_dict.ConfigDict, num_classes: int | None
    ) -> StepParts:
        flat = identity.flatten(identity.as_json(config))
        kept = {k: v for k, v in flat.items() if not k.startswith(_NOT_OF_STEP)}
        key = json.dumps([num_classes, kept], sort_keys=True)
        if key not in self._parts:
            self._parts[key] = step.pretraining_parts(
                config, num_classes=num_classes, mesh=self.mesh
            )
        return self._parts[key]

    def dataset(self, config: config_dict.ConfigDict) -> Dataset:
        """The labelled images of `evaluation.train_split` and `test_split`, in memory.

        Those that do not fit in `data.in_memory_mb` are read each time.

        Args:
          config: of a run.

        Raises:
          DataError: they cannot be read, or have no labels.
        """
        key = _key(config, "data.", "evaluation.train_split", "evaluation.test_split")
        if key not in self._datasets:
            opened = datasets.open_dataset(config)
            limit = config.data.in_memory_mb
            train, test = (
                in_memory.hold(s, limit_mb=limit, on_bad_record=bad_records.refuse) or s
                for s in (opened.train, opened.test)
            )
            self._datasets[key] = Dataset(
                opened.name,
                opened.train_split,
                opened.test_split,
                train,
                test,
                opened.metric,
            )
        return self._datasets[key]


def _key(config: config_dict.ConfigDict, *prefixes: str) -> str:
    """The values of the keys that start with a prefix."""
    flat = identity.flatten(identity.as_json(config))
    return json.dumps({k: v for k, v in flat.items() if k.startswith(prefixes)})
