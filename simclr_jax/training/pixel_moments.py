"""Decides what a config leaves open, with the dataset at hand.

That is what `config/resolve.py` decides, and the normalisation of pixels where it is to
be measured from the dataset.
"""

import logging

import numpy as np
from ml_collections import config_dict

from simclr_jax.config import resolve as resolving
from simclr_jax.data.sources import pixels
from simclr_jax.data.sources.base import Source
from simclr_jax.errors import BadRecord, DataError
from simclr_jax.models import normalization

_LOG = logging.getLogger(__name__)

# With 512 images of ordinary contrast the mean is known to 0.01.
_MOST_IMAGES = 512
_DIGITS = 4


def resolve(config: config_dict.ConfigDict, source: Source) -> config_dict.ConfigDict:
    """As `resolve.resolve`, and numbers instead of `encoder.normalization='dataset'`.

    Args:
      config: valid.
      source: the training images.

    Raises:
      ConfigError: as `resolve.resolve`.
      DataError: an image cannot be read, or a channel has one value in all of them.
    """
    config = resolving.resolve(config, num_examples=source.num_examples)
    if config.encoder.normalization != normalization.MEASURED:
        return config
    found = measure(source)
    _LOG.info("config.encoder.normalization='dataset': measured %s", found)
    config.encoder.normalization = found
    return config


def measure(source: Source) -> str:
    """The normalisation of a dataset's pixels, from up to 512 images of all its parts.

    Every image counts the same, whatever its size. Images that cannot be decoded are
    left out.

    Raises:
      DataError: as `resolve`.
    """
    count = min(source.num_examples, _MOST_IMAGES)
    indices = np.linspace(0, source.num_examples - 1, count).astype(np.int64)
    # As exact sums of whole numbers, so that all processes find the same.
    found = []
    for start in range(0, count, 16):
        for result in pixels.read_each(source, indices[start : start + 16]):
            if not isinstance(result, BadRecord):
                found.append(_of_image(result[0]))
    if not found:
        raise DataError(f"dataset {source.name}: no image of {count} can be decoded")
    mean, square = np.mean(found, axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0.0))
    rounded = [np.round(values, _DIGITS).tolist() for values in (mean, std)]
    try:
        return normalization.canonical(rounded)
    except ValueError as error:
        raise DataError(
            f"dataset {source.name}: its pixels have the means {rounded[0]} and the "
            f"standard deviations {rounded[1]}, and config.encoder.normalization "
            f"{normalization.RULE}"
        ) from error


def _of_image(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and mean square [3] of an image uint8 [H, W, 3], in [0, 1]."""
    levels = np.arange(256) / 255
    counts = [
        np.bincount(image[..., channel].ravel(), minlength=256) for channel in range(3)
    ]
    shares = np.asarray(counts) / (image.size // 3)
    return shares @ levels, shares @ levels**2
