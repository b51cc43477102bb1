"""Evaluation protocols, the frozen-encoder guard and the result files."""

import dataclasses
import functools
import json
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import config_dict

from simclr_jax import parallel
from simclr_jax.data import augment, pipeline
from simclr_jax.data.composition import Composition
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.data.records import Source
from simclr_jax.errors import ConfigError, DataError, EncoderChanged
from simclr_jax.evaluation import encoder as encoders
from simclr_jax.evaluation import features, knn, linear, linear_sgd
from simclr_jax.evaluation.encoder import PretrainedEncoder
from simclr_jax.evaluation.features import Encode
from simclr_jax.parallel import processes
from simclr_jax.training import inputs, run_directory, validation

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass
class Task:
    """A labelled dataset and a representation of it to measure.

    Attributes:
      encode: the representation.
      preprocessing: of the images.
      config: of the run, with overrides.
      train: the training split.
      test: the test split.
      mesh: all devices.
    """

    encode: Encode
    preprocessing: Preprocessing
    config: config_dict.ConfigDict
    train: Source
    test: Source
    mesh: Mesh

    @functools.cached_property
    def train_features(self) -> tuple[np.ndarray, np.ndarray]:
        """(features, labels) of the training split; computed once."""
        return self._features(self.train)

    @functools.cached_property
    def test_features(self) -> tuple[np.ndarray, np.ndarray]:
        """(features, labels) of the test split; computed once."""
        return self._features(self.test)

    def _features(self, source: Source) -> tuple[np.ndarray, np.ndarray]:
        batches = pipeline.eval_batches(
            source,
            functools.partial(
                augment.center_crop_and_resize,
                **dataclasses.asdict(self.preprocessing),
            ),
            batch_size=self.config.evaluation.batch_size,
            host_index=jax.process_index(),
            num_hosts=jax.process_count(),
            threads=self.config.data.threads,
        )
        return features.extract(
            self.encode, batches, self.mesh, num_examples=source.num_examples
        )


Result = tuple[float, dict[str, Any]]


def _knn(task: Task) -> Result:
    evaluation = task.config.evaluation
    settings = {"k": evaluation.knn_k, "temperature": evaluation.knn_temperature}
    value = knn.knn_accuracy(
        *task.train_features, *task.test_features, **settings, mesh=task.mesh
    )
    return value, settings


def _linear(task: Task) -> Result:
    evaluation = task.config.evaluation
    value, chosen = linear.linear_accuracy(
        *task.train_features,
        *task.test_features,
        l2_penalties=evaluation.l2_penalties,
        max_steps=evaluation.lbfgs_steps,
        mesh=task.mesh,
        seed=task.config.seed,
    )
    return value, {"solver": "lbfgs", "max_steps": evaluation.lbfgs_steps, **chosen}


def _linear_sgd(task: Task) -> Result:
    evaluation, config = task.config.evaluation, task.config
    batch_size = evaluation.sgd_batch_size
    steps_per_epoch = task.train.num_examples // batch_size
    steps = max(1, round(evaluation.sgd_epochs * steps_per_epoch))
    settings = {
        "epochs": evaluation.sgd_epochs,
        "batch_size": batch_size,
        "learning_rate": evaluation.sgd_learning_rate * batch_size / 256,
        "momentum": evaluation.sgd_momentum,
    }
    crops_and_flips = Composition(
        ("crop", "flip"),
        {"crop": dict(config.augment.crop), "flip": {"probability": 0.5}},
        image_size=task.preprocessing.image_size,
    )
    batches = pipeline.train_batches(
        task.train,
        crops_and_flips,
        seed=config.seed,
        batch_size=batch_size,
        num_views=1,
        stop_step=steps,
        host_index=jax.process_index(),
        num_hosts=jax.process_count(),
        buffers=inputs.make_buffers(config, batch_size=batch_size, num_views=1),
    )
    classifier = linear_sgd.train_classifier(
        task.encode,
        batches,
        num_classes=task.train.num_classes or 0,
        num_steps=steps,
        learning_rate=settings["learning_rate"],
        momentum=settings["momentum"],
        mesh=task.mesh,
    )
    return linear.accuracy(classifier, *task.test_features), settings


# Protocols by the name given to --protocol.
PROTOCOLS: dict[str, Callable[[Task], Result]] = {
    "knn": _knn,
    "linear": _linear,
    "linear_sgd": _linear_sgd,
}


def evaluate(
    workdir: str,
    protocols: Sequence[str],
    *,
    step: int | None = None,
    overrides: Sequence[str] = (),
    baselines: bool = False,
) -> dict[str, dict[str, float]]:
    """Measures the frozen encoder of a run and writes `eval/<protocol>.json`.

    Args:
      workdir: the run directory.
      protocols: names in `PROTOCOLS`.
      step: the checkpoint; the newest when None.
      overrides: 'key=value' for keys of the run's config.
      baselines: measure raw pixels and the untrained encoder too.

    Returns:
      Accuracies in [0, 1] by representation and protocol.

    Raises:
      ConfigError, DataError: something cannot be evaluated.
      EncoderChanged: a protocol altered the encoder; nothing is written for it.
    """
    for protocol in protocols:
        if protocol not in PROTOCOLS:
            raise ConfigError(
                f"--protocol={protocol}: must be one of {', '.join(PROTOCOLS)}"
            )
    pretrained = encoders.load(workdir, step=step)
    config = _with_overrides(pretrained.config, overrides)
    validation.validate(config)
    preprocessing = pretrained.preprocessing
    given = {override.partition("=")[0] for override in overrides}
    if "image_size" in given:
        preprocessing = dataclasses.replace(preprocessing, image_size=config.image_size)
    for name in ("crop_proportion", "resize"):
        if f"evaluation.{name}" in given:
            preprocessing = dataclasses.replace(
                preprocessing, **{name: config.evaluation[name]}
            )
    tasks = _make_tasks(pretrained, config, preprocessing, baselines=baselines)
    _check_sizes(config, protocols, tasks["pretrained"].train)

    values: dict[str, dict[str, float]] = {name: {} for name in tasks}
    for protocol in protocols:
        before = encoders.checksum(pretrained.variables)
        settings = {}
        for name, task in tasks.items():
            _LOG.info("%s of %s ...", protocol, name)
            values[name][protocol], settings[name] = PROTOCOLS[protocol](task)
            _LOG.info("%s of %s: %.2f %%", protocol, name, 100 * values[name][protocol])
        after = encoders.checksum(pretrained.variables)
        if after != before:
            raise EncoderChanged(
                f"--protocol={protocol}: changed the encoder (checksum {before[:12]} "
                f"to {after[:12]}), so it is no measure of it; nothing was written"
            )
        task = tasks["pretrained"]
        receipt = {
            "protocol": protocol,
            "value": values["pretrained"][protocol],
            "metric": "top-1 accuracy",
            "settings": settings["pretrained"],
            "baselines": {
                name: values[name][protocol] for name in tasks if name != "pretrained"
            },
            "layer": config.evaluation.layer,
            "preprocessing": dataclasses.asdict(task.preprocessing),
            "dataset": config.data.dataset,
            "train_split": config.evaluation.train_split,
            "test_split": config.evaluation.test_split,
            "num_train": task.train.num_examples,
            "num_test": task.test.num_examples,
            "checkpoint_step": pretrained.step,
            "config_hash": pretrained.config_hash,
            "encoder_checksum_before": before,
            "encoder_checksum_after": after,
        }
        _write(workdir, protocol, receipt)
    return values


def _check_sizes(
    config: config_dict.ConfigDict, protocols: Sequence[str], train: Source
) -> None:
    """Checks before the work that there are training images enough for it."""
    for protocol, key in (("knn", "knn_k"), ("linear_sgd", "sgd_batch_size")):
        value = config.evaluation[key]
        if protocol in protocols and value > train.num_examples:
            raise ConfigError(
                f"config.evaluation.{key}={value}: must not exceed the "
                f"{train.num_examples} images of {train.name} (lower it with "
                f"--set=evaluation.{key}=...)"
            )


def _make_tasks(
    pretrained: PretrainedEncoder,
    config: config_dict.ConfigDict,
    preprocessing: Preprocessing,
    *,
    baselines: bool,
) -> dict[str, Task]:
    """What to measure, by name."""
    layer = config.evaluation.layer
    try:
        frozen = pretrained.layer(layer)
    except ValueError as error:
        raise ConfigError(f"config.evaluation.{error}") from error
    mesh = parallel.create_mesh()
    with processes.together():
        validation.check_devices(config, mesh.size, "evaluation")
        train = _open_labelled(config, config.evaluation.train_split)
        test = _open_labelled(config, config.evaluation.test_split)
        if train.class_names != test.class_names:
            raise DataError(
                f"dataset {config.data.dataset}: the classes of {train.name} "
                f"({train.class_names}) and {test.name} ({test.class_names}) must be "
                "the same"
            )
    encodes: dict[str, Encode] = {}
    if baselines:
        encodes["pixels"] = features.pixels
        encodes["untrained"] = encoders.untrained(pretrained).layer(layer)
    encodes["pretrained"] = frozen
    return {
        name: Task(encode, preprocessing, config, train, test, mesh)
        for name, encode in encodes.items()
    }


def _open_labelled(config: config_dict.ConfigDict, split: str) -> Source:
    source = inputs.open_source(config, split)
    if source.num_classes is None:
        raise DataError(
            f"dataset {source.name}: has no labels, and evaluation needs some (for a "
            "folder: one sub-folder for each class)"
        )
    return source


# Keys that `--set` may change: those that say what is measured on, and how.
_SETTABLE = ("evaluation.", "data.", "augment.crop.", "image_size", "seed")


def _with_overrides(
    config: dict[str, Any], overrides: Sequence[str]
) -> config_dict.ConfigDict:
    result = config_dict.ConfigDict(config)
    flat = validation.flatten(result)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or key not in flat or not key.startswith(_SETTABLE):
            raise ConfigError(
                f"--set={override}: must be KEY=VALUE with a key that starts with "
                f"{', '.join(_SETTABLE)}"
            )
        value = _parse_like(flat[key], text)
        if value is None:
            kind = type(flat[key]).__name__
            raise ConfigError(f"--set={override}: the value must be of type {kind}")
        with result.ignore_type():
            result.update_from_flattened_dict({key: value})
    return result


def _parse_like(current: Any, text: str) -> Any:
    """The value that a text stands for, or None if it is not of the type of another."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    if current is None or isinstance(value, type(current)):
        return value
    if isinstance(current, str):
        return text
    if isinstance(current, float) and isinstance(value, int):
        return float(value)
    if isinstance(current, tuple | list) and isinstance(value, list):
        return tuple(value)
    return None


def _write(workdir: str, protocol: str, receipt: dict[str, Any]) -> None:
    if not processes.is_main():
        return
    path = pathlib.Path(workdir) / "eval" / f"{protocol}.json"
    run_directory.write_file(path, json.dumps(receipt, indent=2) + "\n")
    _LOG.info("wrote %s", path)


def table(values: dict[str, dict[str, float]]) -> str:
    """Accuracies in percent, a representation a row and a protocol a column."""
    protocols = list(next(iter(values.values())))
    rows = ["representation".ljust(16) + "".join(p.rjust(12) for p in protocols)]
    rows += [
        name.ljust(16) + "".join(f"{100 * row[p]:>11.1f}%" for p in protocols)
        for name, row in values.items()
    ]
    return "\n".join(rows)
