"""What is measured: representations of labelled images."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import config_dict

from simclr_jax.data import pipeline
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.data.sources import subsets
from simclr_jax.data.sources.base import Source
from simclr_jax.data.views import definition
from simclr_jax.errors import ConfigError, DataError
from simclr_jax.evaluation import features, metrics
from simclr_jax.evaluation.features import Encode
from simclr_jax.training import input_pipeline
from simclr_jax.weights import encoder as encoders
from simclr_jax.weights.encoder import PretrainedEncoder

# Of which TFDS has official subsets for 1 and 10 % of the labels.
_IMAGENET = "imagenet2012"
_IMAGENET_SUBSETS = {0.01: "1pct", 0.1: "10pct"}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Labelled images to train and to test on.

    Attributes:
      name: of the dataset.
      train_split: its split.
      test_split: its split.
      train: the images of `train_split`, or some of them.
      test: those of `test_split`.
      metric: what is usual on it, of `metrics.METRICS`.
    """

    name: str
    train_split: str
    test_split: str
    train: Source
    test: Source
    metric: str = metrics.TOP1


@dataclasses.dataclass(frozen=True)
class Representation:
    """A function of images.

    Attributes:
      encode: what the protocols measure.
      layers: by name, what the protocol `layers` does; the first is h.
      network: whose representation it is; None where it is of no network.
    """

    encode: Encode
    layers: dict[str, Encode]
    network: PretrainedEncoder | None = None


@dataclasses.dataclass
class Task:
    """A labelled dataset and a representation of it to measure.

    Attributes:
      name: of the representation.
      encode: the representation.
      layers: that of each layer, by name.
      network: whose it is; None where it is of no network.
      dataset: the images.
      preprocessing: of the images.
      config: of the run, with overrides.
      mesh: all devices.
      known: (features, labels) that were computed, by source.
    """

    name: str
    encode: Encode
    layers: dict[str, Encode]
    network: PretrainedEncoder | None
    dataset: Dataset
    preprocessing: Preprocessing
    config: config_dict.ConfigDict
    mesh: Mesh
    known: dict[Source, tuple[np.ndarray, np.ndarray]] = dataclasses.field(
        default_factory=dict
    )

    @property
    def train_features(self) -> tuple[np.ndarray, np.ndarray]:
        """(features, labels) of the training images; computed once."""
        return self._features(self.dataset.train)

    @property
    def test_features(self) -> tuple[np.ndarray, np.ndarray]:
        """(features, labels) of the test images; computed once."""
        return self._features(self.dataset.test)

    def of_layer(self, encode: Encode) -> "Task":
        """The same with another representation."""
        return dataclasses.replace(self, encode=encode, known={})

    def of(self, dataset: Dataset) -> "Task":
        """The same with another dataset; what is known of a source stays known."""
        return dataclasses.replace(self, dataset=dataset)

    def _features(self, source: Source) -> tuple[np.ndarray, np.ndarray]:
        if source not in self.known:
            batches = pipeline.eval_batches(
                source,
                functools.partial(
                    definition.center_crop_and_resize,
                    **dataclasses.asdict(self.preprocessing),
                ),
                batch_size=self.config.evaluation.batch_size,
                host_index=jax.process_index(),
                num_hosts=jax.process_count(),
                threads=self.config.data.threads,
            )
            self.known[source] = features.extract(
                self.encode, batches, self.mesh, num_examples=source.num_examples
            )
        return self.known[source]


def baselines(pretrained: PretrainedEncoder, layer: int) -> dict[str, Representation]:
    """What an encoder has to beat: raw pixels, and itself untrained."""
    pixels = Representation(features.pixels, {"h": features.pixels})
    untrained = encoders.untrained(pretrained)
    return {"pixels": pixels, "untrained": representation(untrained, layer)}


def representation(pretrained: PretrainedEncoder, layer: int) -> Representation:
    """A layer of an encoder, and all of its layers: h, those of the head, z.

    Raises:
      ConfigError: there is no such layer.
    """
    last = pretrained.head.num_outputs - 1
    names = ["h", *(f"layer {i}" for i in range(1, last)), *(["z"] if last else [])]
    layers = {name: pretrained.layer(i) for i, name in enumerate(names)}
    try:
        return Representation(pretrained.layer(layer), layers, pretrained)
    except ValueError as error:
        raise ConfigError(f"config.evaluation.{error}") from error


def open_dataset(config: config_dict.ConfigDict) -> Dataset:
    """The dataset of a config.

    Raises:
      DataError: it cannot be read, or has no labels, or its splits not the same ones.
    """
    splits = config.evaluation.train_split, config.evaluation.test_split
    train, test = (_open_labelled(config, split) for split in splits)
    if train.class_names != test.class_names:
        raise DataError(
            f"dataset {config.data.dataset}: the classes of {train.name} "
            f"({train.class_names}) and {test.name} ({test.class_names}) must be "
            "the same"
        )
    return Dataset(config.data.dataset, *splits, train, test)


def _open_labelled(config: config_dict.ConfigDict, split: str) -> Source:
    return input_pipeline.open_labelled(config, split, why="evaluation needs some")


def open_share(
    config: config_dict.ConfigDict, dataset: Dataset, fraction: float
) -> Source:
    """Some of a dataset's training images, in every class the same share.

    On ImageNet's training split those of TFDS's official subset, on which 1 and 10 % of
    the labels are measured everywhere; elsewhere drawn by the config's seed.

    Args:
      config: of the evaluation.
      dataset: what to take them from.
      fraction: in (0, 1].

    Raises:
      NotPrepared: the official subset is not there.
      DataError: the labels cannot be read.
    """
    official = _IMAGENET_SUBSETS.get(fraction)
    is_imagenet = dataset.name.partition(":")[0] == _IMAGENET
    if official and is_imagenet and dataset.train_split == "train":
        config = config.copy_and_resolve_references()
        config.data.dataset = f"{_IMAGENET}_subset/{official}"
        return _open_labelled(config, "train")
    return subsets.class_balanced(dataset.train, fraction, seed=config.seed)


def check_sizes(
    config: config_dict.ConfigDict, protocols: Sequence[str], train: Source
) -> None:
    """Checks before the work that there are training images enough for it.

    Raises:
      ConfigError: a protocol needs more.
    """
    evaluation = config.evaluation
    needed = {
        "knn": ("knn_k", evaluation.knn_k, max(evaluation.knn_k)),
        "linear_sgd": ("sgd_batch_size", *[evaluation.sgd_batch_size] * 2),
    }
    for protocol in set(protocols) & set(needed):
        key, value, count = needed[protocol]
        if count > train.num_examples:
            raise ConfigError(
                f"config.evaluation.{key}={value}: must not exceed the "
                f"{train.num_examples} images of {train.name} (lower it with "
                f"--set=evaluation.{key}=...)"
            )
