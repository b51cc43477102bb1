"""Datasets of small images of one size, decoded once and kept as pixels."""

import logging

import numpy as np

from simclr_jax.data.sources import reading
from simclr_jax.data.sources.arrays import ArraySource
from simclr_jax.data.sources.base import NO_LABEL, Source
from simclr_jax.errors import DataError

_LOG = logging.getLogger(__name__)
_MIB = 2**20
_BATCH_SIZE = 1024


class _MemorySource(ArraySource):
    """The pixels of another source, under its name."""

    def __init__(self, source: Source, images: np.ndarray, labels: np.ndarray) -> None:
        labelled = source.num_classes is not None and (labels != NO_LABEL).all()
        super().__init__(images, labels if labelled else None, name=source.name)
        self.num_classes = source.num_classes
        self.class_names = source.class_names
        self.labels = labels
        self._describe = source.describe

    def describe(self, index: int) -> str:
        """See `Source`."""
        return self._describe(index)


def fits(source: Source, *, limit_mb: int) -> bool:
    """Whether all images have one known size and take at most `limit_mb` as pixels."""
    if source.image_shape is None:
        return False
    height, width = source.image_shape
    return source.num_examples * height * width * 3 <= limit_mb * _MIB


def load(source: Source) -> ArraySource:
    """Decodes all images of a source.

    Raises:
      DataError: an image cannot be read or has another size; the message names it.
    """
    if isinstance(source, ArraySource):
        return source
    assert source.image_shape is not None
    shape = (*source.image_shape, 3)
    images = np.empty((source.num_examples, *shape), np.uint8)
    labels = np.empty(source.num_examples, np.int32)
    _LOG.info(
        "%s: decoding %d images into %d MiB of memory",
        source.name,
        source.num_examples,
        images.nbytes // _MIB,
    )
    start = 0
    for batch in reading.pixel_batches(source, batch_size=_BATCH_SIZE):
        stop = start + len(batch["labels"])
        images[start:stop], labels[start:stop] = batch["images"], batch["labels"]
        start = stop
    return _MemorySource(source, images, labels)


def pixels(source: ArraySource) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 [N, H, W, 3], labels int32 [N]) of a source in memory.

    Raises:
      DataError: its images are synthetic.
    """
    images, labels = source.arrays()
    if len(images) != source.num_examples:
        raise DataError(
            f"dataset {source.name}: repeats {len(images)} synthetic images "
            f"{source.num_examples} times in all, so an accelerator cannot hold it"
        )
    return images, labels
