"""Labelled datasets that a classifier is trained and tested on."""

import dataclasses
import logging
from collections.abc import Sequence

from ml_collections import config_dict

from simclr_jax.data.sources import registry, subsets
from simclr_jax.data.sources.base import Source
from simclr_jax.errors import ConfigError, DataError
from simclr_jax.evaluation import metrics
from simclr_jax.training import input_pipeline

_LOG = logging.getLogger(__name__)
_NUM_NAMED = 5
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
    evaluation = config.evaluation
    train = _open_labelled(config, evaluation.train_split)
    test = _open_labelled(config, evaluation.test_split)
    if train.class_names != test.class_names:
        raise DataError(
            f"dataset {config.data.dataset}: the classes of {train.name} "
            f"({train.class_names}) and {test.name} ({test.class_names}) must be "
            "the same"
        )
    # The names that are there, where similar ones were found.
    found = (
        registry.split_of(train, evaluation.train_split),
        registry.split_of(test, evaluation.test_split),
    )
    dataset = Dataset(config.data.dataset, *found, train, test)
    for what, names in absent_classes(dataset).items():
        _LOG.warning(
            "%s: %d of %d classes have no images in %s (%s%s); figures are those of "
            "the images that are there",
            *(config.data.dataset, len(names), train.num_classes, what),
            *(", ".join(names[:_NUM_NAMED]), ", ..." if names[_NUM_NAMED:] else ""),
        )
    return dataset


def absent_classes(dataset: Dataset) -> dict[str, list[str]]:
    """The classes that a split has no images of, where that is known, by the split."""
    absent: dict[str, list[str]] = {}
    for split, source in (
        (dataset.train_split, dataset.train),
        (dataset.test_split, dataset.test),
    ):
        if source.class_names and source.labels is not None:
            there = set(source.labels.tolist())
            names = [n for i, n in enumerate(source.class_names) if i not in there]
            absent |= {split: names} if names else {}
    return absent


def _open_labelled(config: config_dict.ConfigDict, split: str) -> Source:
    why = "evaluation needs them"
    return subsets.labelled(input_pipeline.open_labelled(config, split, why=why))


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
