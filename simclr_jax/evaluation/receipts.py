"""Measurements that cannot touch the encoder, and the files that record them."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh
from ml_collections import config_dict

from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.errors import EncoderChanged
from simclr_jax.evaluation import metrics
from simclr_jax.evaluation.tasks import Dataset, Representation, Task
from simclr_jax.parallel import processes
from simclr_jax.runs import atomic
from simclr_jax.weights import encoder as encoders
from simclr_jax.weights.encoder import PretrainedEncoder

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a protocol found.

    Attributes:
      value: the figure, in [0, 1].
      settings: what it was found with.
      metric: what it is.
      values: where there are several figures, each by its name.
    """

    value: float
    settings: dict[str, Any]
    metric: str = metrics.TOP1
    values: dict[str, float] = dataclasses.field(default_factory=dict)


Protocol = Callable[[Task], Result]
# By representation.
Results = dict[str, Result]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A frozen encoder that is measured, and the run that its receipts lie in.

    Attributes:
      workdir: the run directory.
      pretrained: the encoder.
      representations: what to measure, by name.
      preprocessing: of all images.
      config: of the run, with overrides.
      mesh: all devices.
    """

    workdir: str
    pretrained: PretrainedEncoder
    representations: dict[str, Representation]
    preprocessing: Preprocessing
    config: config_dict.ConfigDict
    mesh: Mesh

    def tasks(self, dataset: Dataset) -> dict[str, Task]:
        """A task for each representation."""
        return {
            name: Task(
                name,
                representation.encode,
                representation.layers,
                representation.network,
                dataset,
                self.preprocessing,
                self.config,
                self.mesh,
            )
            for name, representation in self.representations.items()
        }

    def measure(self, name: str, protocol: Protocol, tasks: dict[str, Task]) -> Results:
        """Runs a protocol on every representation and writes `eval/<name>.json`.

        Raises:
          EncoderChanged: the protocol altered the encoder; nothing is written.
        """
        before = encoders.checksum(self.pretrained.variables)
        results = {}
        for representation, task in tasks.items():
            _LOG.info("%s of %s ...", name, representation)
            results[representation] = protocol(task)
            value = 100 * results[representation].value
            _LOG.info("%s of %s: %.2f %%", name, representation, value)
        dataset = tasks["pretrained"].dataset
        self._write(name, results, before, _described(dataset))
        return results

    def summarise(self, name: str, results: Results) -> None:
        """Writes `eval/<name>.json` of what was measured on several datasets."""
        before = encoders.checksum(self.pretrained.variables)
        self._write(name, results, before, {"dataset": name})

    def _write(
        self, name: str, results: Results, before: str, data: dict[str, Any]
    ) -> None:
        after = encoders.checksum(self.pretrained.variables)
        if after != before:
            raise EncoderChanged(
                f"--protocol={name}: changed the encoder (checksum {before[:12]} to "
                f"{after[:12]}), so it is no measure of it; nothing was written"
            )
        result = results["pretrained"]
        receipt = {
            "protocol": name,
            "value": result.value,
            "metric": result.metric,
            "values": result.values,
            "settings": result.settings,
            "baselines": {
                other: found.value
                for other, found in results.items()
                if other != "pretrained"
            },
            "layer": self.config.evaluation.layer,
            "preprocessing": dataclasses.asdict(self.preprocessing),
            **data,
            "checkpoint_step": self.pretrained.step,
            "config_hash": self.pretrained.config_hash,
            "encoder_checksum_before": before,
            "encoder_checksum_after": after,
        }
        if processes.is_main():
            path = pathlib.Path(self.workdir) / "eval" / f"{name}.json"
            atomic.write_file(path, json.dumps(receipt, indent=2) + "\n")
            _LOG.info("wrote %s", path)


def _described(dataset: Dataset) -> dict[str, Any]:
    return {
        "dataset": dataset.name,
        "train_split": dataset.train_split,
        "test_split": dataset.test_split,
        "num_train": dataset.train.num_examples,
        "num_test": dataset.test.num_examples,
    }
