"""Protocols that are no measure of a frozen encoder: they train it, in a copy."""

import logging
import pathlib
import shutil
from collections.abc import Callable, Sequence

from ml_collections import config_dict

from simclr_jax.config import identity
from simclr_jax.errors import ConfigError
from simclr_jax.evaluation import metrics
from simclr_jax.evaluation.overrides import with_training_overrides
from simclr_jax.evaluation.receipts import Protocol, Result
from simclr_jax.evaluation.tasks import Task
from simclr_jax.parallel import processes
from simclr_jax.runs import directory
from simclr_jax.training import finetuning, loop
from simclr_jax.weights import encoder as encoders
from simclr_jax.weights.encoder import PretrainedEncoder

_LOG = logging.getLogger(__name__)
# A run's config and a share of the labels -> the config of its fine-tuning.
Adapt = Callable[[config_dict.ConfigDict, float], config_dict.ConfigDict]
# Protocols by the share of the labels that they use.
SHARES = {"finetune": 1.0, "finetune_10pct": 0.1, "finetune_1pct": 0.01}


def classifier(task: Task) -> Result:
    """The run's own classifier: a fine-tuned or distilled one, or the online probe."""
    assert task.network is not None
    value = _accuracy(task, task.network)
    place = "the fine-tuned network" if task.network.model.fine_tuned else "h, a probe"
    return Result(value, {"classifier": place})


def _accuracy(task: Task, network: PretrainedEncoder) -> float:
    num_classes = task.dataset.test.num_classes
    if network.model.num_classes != num_classes:
        raise ConfigError(
            f"--protocol: the weights have a classifier of {network.model.num_classes} "
            f"classes, and {task.dataset.test.name} has {num_classes}"
        )
    logits, labels = task.of_layer(network.classifier()).test_features
    return metrics.top1(logits, labels)


def make_protocol(
    name: str, workdir: str, adapt: Adapt, overrides: Sequence[str]
) -> Protocol:
    """A protocol of `SHARES`: trains a copy below `eval/<name>/`, then classifies.

    The training goes on where it was stopped, unless encoder or settings are others.

    Args:
      name: of the protocol.
      workdir: of the run.
      adapt: makes the config.
      overrides: 'key=value' for keys of that config.
    """

    def protocol(task: Task) -> Result:
        network = task.network
        assert network is not None
        config = adapt(task.config, SHARES[name])
        config = with_training_overrides(config, overrides)
        config.data.split = task.dataset.train_split
        config.finetune.init_checksum = encoders.checksum(network.variables)
        job = finetuning.make_job(config, network)
        folder = pathlib.Path(workdir) / "eval" / name / task.name
        _drop_others(folder, job.config)
        loop.run(job, str(folder))
        trained = encoders.load(str(folder))
        settings = {
            key: value
            for key, value in identity.flatten(identity.as_json(config)).items()
            if key.startswith(("finetune.", "optimizer.", "batch.", "schedule."))
        }
        train = f"{job.source.num_examples} of {task.dataset.train.name}"
        return Result(_accuracy(task, trained), {"train_images": train, **settings})

    return protocol


def _drop_others(folder: pathlib.Path, config: config_dict.ConfigDict) -> None:
    """Removes what another encoder or other settings left."""
    with processes.all_or_none():
        if not processes.is_main() or not (folder / directory.CONFIG).exists():
            return
        old = directory.read_config(str(folder))
        if identity.differing_keys(old, identity.as_json(config)):
            _LOG.info("%s: is of other settings, begins anew", folder)
            shutil.rmtree(folder)
