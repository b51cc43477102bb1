"""Labelled datasets that a classifier is trained and tested on."""

import dataclasses
from collections.abc import Sequence

from ml_collections import config_dict

from simclr_jax.data.sources import subsets
from simclr_jax.data.sources.base import Source
from simclr_jax.errors import ConfigError, DataError
from simclr_jax.evaluation import metrics
from simclr_jax.training import input_pipeline

_IMAGENET = "imagenet2012"
# TFDS's official subsets for 1 and 10 % of the labels.
_IMAGENET_SUBSETS = {0.01: "1pct", 0.1: "10pct"}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Labelled images to train and to test on.

    Attributes:
      name: the dataset's name, as in `config.data.dataset`.
      train_split: the name of its training split.
      test_split: the name of its test split.
      train: the images of `train_split`, or a subset of them.
      test: the images of `test_split`.
      metric: the usual metric of this dataset, a key of `metrics.METRICS`.
    """

    name: str
    train_split: str
    test_split: str
    train: Source
    test: Source
    metric: str = metrics.TOP1


def open_dataset(config: config_dict.ConfigDict) -> Dataset:
    """Opens the dataset of a config.

    Raises:
      DataError: it cannot be read, has no labels, or its splits have other classes.
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
    return input_pipeline.open_labelled(config, split, why="evaluation needs them")


def open_share(
    config: config_dict.ConfigDict, dataset: Dataset, fraction: float
) -> Source:
    """The same share of every class of a dataset's training images.

    For ImageNet's training split this is TFDS's official subset, which published
    figures of 1 and 10 % use; for other datasets the config's seed draws it.

    Args:
      config: of the evaluation.
      dataset: with all training images.
      fraction: in (0, 1].

    Raises:
      NotPrepared: the official subset is not prepared.
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
    """Checks that every protocol has enough training images.

    Raises:
      ConfigError: a protocol needs more images.
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
