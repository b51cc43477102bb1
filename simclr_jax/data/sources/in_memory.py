"""Datasets that are decoded once and kept in memory as pixels."""

import logging

import numpy as np

from simclr_jax.data.sources import pixels
from simclr_jax.data.sources.arrays import ArraySource, HeldFiles
from simclr_jax.data.sources.base import NO_LABEL, Source
from simclr_jax.data.sources.listings import Listing
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
        self._source = source

    def describe(self, index: int) -> str:
        """See `Source`."""
        return self._source.describe(index)

    def listing(self) -> Listing:
        """See `Source`."""
        return self._source.listing()


def hold(source: Source, *, limit_mb: int) -> Source | None:
    """The source with the pixels of all its images in memory; None if they do not fit.

    Args:
      source: the source.
      limit_mb: MiB of pixels.

    Returns:
      An `ArraySource`, or for images of different sizes `HeldFiles`.

    Raises:
      DataError: an image cannot be read, or has another size than its dataset says;
        the message names it.
    """
    limit = limit_mb * _MIB
    if source.image_shape is not None:
        height, width = source.image_shape
        if source.num_examples * height * width * 3 > limit:
            return None
    if pixels.are_held(source):
        return source
    if source.image_shape is not None:
        return _load_images_of_one_size(source)
    if not pixels.are_records(source):
        return None
    shapes = _measure(source, limit)
    return None if shapes is None else _load_files(source, shapes)


def _measure(source: Source, limit: int) -> list[tuple[int, int]] | None:
    """(height, width) of all images; None if they take more than `limit` bytes.

    Reads no further than to the images that are too much.
    """
    result: list[tuple[int, int]] = []
    total = 0
    if limit:
        for shapes in pixels.in_chunks(source, pixels.shapes):
            result += shapes
            total += _num_bytes(shapes)
            if total > limit:
                break
    return result if total <= limit and result else None


def _num_bytes(shapes: list[tuple[int, int]]) -> int:
    return sum(3 * height * width for height, width in shapes)


def _load_files(source: Source, shapes: list[tuple[int, int]]) -> Source:
    """Decodes image files with Pillow."""
    _log_load(source, _num_bytes(shapes))
    images = [
        image for chunk, _ in pixels.in_chunks(source, pixels.read) for image in chunk
    ]
    assert source.labels is not None
    if len(set(shapes)) > 1:
        return HeldFiles(source, images, source.labels)
    return _MemorySource(source, np.stack(images), source.labels)


def _load_images_of_one_size(source: Source) -> ArraySource:
    assert source.image_shape is not None
    if not source.encoded:
        return _MemorySource(source, *source.read(np.arange(source.num_examples)))
    # Imported here, since it needs TensorFlow, as do files in records of TFDS.
    from simclr_jax.data.sources import reading

    images = np.empty((source.num_examples, *source.image_shape, 3), np.uint8)
    labels = np.empty(source.num_examples, np.int32)
    _log_load(source, images.nbytes)
    start = 0
    for batch in reading.pixel_batches(source, batch_size=_BATCH_SIZE):
        stop = start + len(batch["labels"])
        images[start:stop], labels[start:stop] = batch["images"], batch["labels"]
        start = stop
    return _MemorySource(source, images, labels)


def _log_load(source: Source, num_bytes: int) -> None:
    _LOG.info(
        "%s: decoding %d images into %d MiB of memory",
        source.name,
        source.num_examples,
        num_bytes // _MIB,
    )


def whole(source: ArraySource) -> tuple[np.ndarray, np.ndarray]:
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
