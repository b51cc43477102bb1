"""Datasets that are decoded once and kept in memory as pixels."""

import logging
from typing import TypeVar

import numpy as np

from simclr_jax.data.sources import bad_records, pixels
from simclr_jax.data.sources.arrays import ArraySource, HeldFiles
from simclr_jax.data.sources.base import NO_LABEL, Source
from simclr_jax.data.sources.listings import Listing
from simclr_jax.errors import BadRecord, DataError

_LOG = logging.getLogger(__name__)
_MIB = 2**20
_BATCH_SIZE = 1024
_Result = TypeVar("_Result")


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


def hold(
    source: Source,
    *,
    limit_mb: int,
    on_bad_record: bad_records.OnBadRecord = bad_records.stop,
) -> Source | None:
    """The source with the pixels of all its images in memory; None if they do not fit.

    Args:
      source: the source.
      limit_mb: MiB of pixels.
      on_bad_record: called with each image that cannot be read; if it returns, the next
        image that can, with its label, takes its place, as in `data/replacing.py`.

    Returns:
      An `ArraySource`, or for images of different sizes `HeldFiles`.

    Raises:
      DataError: an image has another size than its dataset says; none can be read; or
        by `on_bad_record`.
    """
    found: list[BadRecord] = []

    def note(error: BadRecord, step: int) -> None:
        on_bad_record(error, step)
        found.append(error)

    held = _hold(source, limit_mb * _MIB, note)
    if isinstance(held, ArraySource | HeldFiles) and found:
        held.bad_records = tuple(found)
    return held


def _hold(
    source: Source, limit: int, on_bad_record: bad_records.OnBadRecord
) -> Source | None:
    if source.image_shape is not None:
        height, width = source.image_shape
        if source.num_examples * height * width * 3 > limit:
            return None
    if pixels.are_held(source):
        return source
    if source.image_shape is not None:
        return _load_images_of_one_size(source, on_bad_record)
    if not pixels.are_records(source):
        return None
    num_bytes = _measure(source, limit)
    return None if num_bytes is None else _load_files(source, num_bytes, on_bad_record)


def _measure(source: Source, limit: int) -> int | None:
    """Bytes of all images; None if there are more than `limit`.

    Reads no further than to the images that are too much.
    """
    total = 0
    if limit:
        for shapes in pixels.in_chunks(source, pixels.each_shape):
            for shape in shapes:
                if not isinstance(shape, BadRecord):
                    total += 3 * shape[0] * shape[1]
            if total > limit:
                break
    return total if 0 < total <= limit else None


def _load_files(
    source: Source, num_bytes: int, on_bad_record: bad_records.OnBadRecord
) -> Source:
    """Decodes image files with Pillow."""
    images, labels = _read_all(source, num_bytes, on_bad_record)
    if len({image.shape for image in images}) > 1:
        return HeldFiles(source, images, labels)
    return _MemorySource(source, np.stack(images), labels)


def _read_all(
    source: Source, num_bytes: int, on_bad_record: bad_records.OnBadRecord
) -> tuple[list[np.ndarray], np.ndarray]:
    """All images and labels, with others in the place of bad ones."""
    _log_load(source, num_bytes)
    found: list[tuple[np.ndarray, int] | BadRecord] = []
    for chunk in pixels.in_chunks(source, pixels.read_each):
        for result in chunk:
            if isinstance(result, BadRecord):
                on_bad_record(result, 0)
            found.append(result)
    images, labels = zip(*_with_next(source, found), strict=True)
    return list(images), np.array(labels, np.int32)


def _with_next(source: Source, found: list[_Result | BadRecord]) -> list[_Result]:
    """Results with the next good one, in a ring, in the place of bad ones."""
    good = next((r for r in found if not isinstance(r, BadRecord)), None)
    if good is None:
        raise DataError(
            f"{source.name}: none of its {len(found)} images can be read, such as "
            f"{found[0]}"
        )
    results = []
    for result in reversed(found):
        good = good if isinstance(result, BadRecord) else result
        results.append(good)
    return results[::-1]


def _load_images_of_one_size(
    source: Source, on_bad_record: bad_records.OnBadRecord
) -> ArraySource:
    assert source.image_shape is not None
    if not source.encoded:
        return _MemorySource(source, *source.read(np.arange(source.num_examples)))
    # Imported here, since it needs TensorFlow, as do files in records of TFDS.
    from simclr_jax.data.sources import reading

    images = np.empty((source.num_examples, *source.image_shape, 3), np.uint8)
    labels = np.empty(source.num_examples, np.int32)
    _log_load(source, images.nbytes)
    start = 0
    try:
        for batch in reading.pixel_batches(source, batch_size=_BATCH_SIZE):
            stop = start + len(batch["labels"])
            images[start:stop], labels[start:stop] = batch["images"], batch["labels"]
            start = stop
    except BadRecord:
        # Slower, record by record.
        decoded, labels = _read_all(source, images.nbytes, on_bad_record)
        for index, image in enumerate(decoded):
            if image.shape != images.shape[1:]:
                raise reading.of_other_size(source, index, image) from None
            images[index] = image
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
