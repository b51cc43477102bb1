"""Number of training images of a config, also without the data."""

import dataclasses

from ml_collections import config_dict

from simclr_jax.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What a plan needs to know of the training images.

    Attributes:
      num_examples: images in the training split.
      num_classes: of the labels; None where there are none.
      image_shape: (height, width) that all images have; None where sizes differ.
    """

    num_examples: int
    num_classes: int | None
    image_shape: tuple[int, int] | None = None


# By TFDS's name (without version) and split.
_KNOWN = {
    ("cifar10", "train"): Dataset(50_000, 10, (32, 32)),
    ("cifar100", "train"): Dataset(50_000, 100, (32, 32)),
    ("imagenet2012", "train"): Dataset(1_281_167, 1000),
    ("imagenette/full-size-v2", "train"): Dataset(9_469, 10),
    ("imagenette/320px-v2", "train"): Dataset(9_469, 10),
    ("imagenette/160px-v2", "train"): Dataset(9_469, 10),
    ("stl10", "train"): Dataset(5_000, 10, (96, 96)),
    ("stl10", "unlabelled"): Dataset(100_000, 10, (96, 96)),
    ("stl10", "unlabelled+train"): Dataset(105_000, 10, (96, 96)),
}


def describe(
    config: config_dict.ConfigDict, *, num_examples: int | None, num_classes: int | None
) -> Dataset:
    """The training images of a config.

    What is given counts; then the published sizes of well-known datasets, for which
    nothing has to be here; then the dataset itself.

    Args:
      config: valid.
      num_examples: overrides the dataset's; it is then not opened.
      num_classes: overrides the dataset's.

    Raises:
      ConfigError: the number of images is unknown.
    """
    data = config.data
    known = _KNOWN.get((data.dataset.partition(":")[0], data.split))
    if num_examples is not None:
        known = (
            dataclasses.replace(known, num_examples=num_examples)
            if known
            else Dataset(num_examples, None)
        )
    elif known is None:
        known = _open(config)
    if num_classes is not None:
        known = dataclasses.replace(known, num_classes=num_classes)
    return known


def _open(config: config_dict.ConfigDict) -> Dataset:
    # Imported here: TensorFlow takes seconds.
    from simclr_jax.training import input_pipeline

    try:
        source = input_pipeline.open_source(config, config.data.split, to_train=True)
    except DataError as error:
        raise ConfigError(
            f"config.data.dataset={config.data.dataset!r}: its size is not known here; "
            f"give --num_examples ({error})"
        ) from error
    return Dataset(source.num_examples, source.num_classes, source.image_shape)
