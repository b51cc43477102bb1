"""Reads the records of a source through tf.data, in parallel and in order."""

import math
from collections.abc import Callable, Iterator
from typing import NoReturn

import numpy as np

from simclr_jax import host_resources
from simclr_jax.data.sources import bad_records
from simclr_jax.data.sources.base import Batch, Source
from simclr_jax.data.tf_cpu import tf
from simclr_jax.data.tf_decode import decode_rgb
from simclr_jax.errors import DataError, InvalidInput, StoreFailed

# Records that one call into Python reads: enough to hide the cost of the call, few
# enough that the calls of one batch run side by side.
READ_CHUNK = 16
_LABEL_BATCH = 1024


def options(threads: int) -> tf.data.Options:
    """Deterministic, and nothing tuned at run time, so memory stays within budget."""
    result = tf.data.Options()
    result.deterministic = True
    result.autotune.enabled = False
    result.threading.private_threadpool_size = threads
    # Intra-op parallelism would only compete with the parallel maps.
    result.threading.max_intra_op_parallelism = 1
    return result


def unbatch(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Splits the elements along their leading axis."""
    # TensorFlow's own `unbatch` crashes on arrays without elements, such as the draws
    # of a composition that is a crop alone.
    return dataset.flat_map(lambda *arrays: tf.data.Dataset.from_tensor_slices(arrays))


def unpack(
    source: Source, record: tf.Tensor, label: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """(image, int32 label) of a record, or of a chunk of pixels; see `Source`."""
    return source.unpack(record, label) if source.unpack else (record, label)


def decode_record(
    source: Source, record: tf.Tensor, label: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """One record as (uint8 [H, W, 3], int32 label), as graph operations."""
    image, label = unpack(source, record, label)
    return (decode_rgb(image) if source.encoded else image), label


def decode_here(
    source: Source, record: bytes, label: int
) -> tuple[np.ndarray, np.ndarray]:
    """`decode_record` outside of a graph."""
    image, own_label = decode_record(source, tf.constant(record), tf.constant(label))
    return image.numpy(), own_label.numpy()


def read_chunks(
    source: Source,
    dataset: tf.data.Dataset,
    parallel_reads: int | None,
    failures: list[InvalidInput] | None = None,
) -> tf.data.Dataset:
    """Maps chunks (indices, extras...) to chunks (records, labels, extras...).

    If a store fails, its error is appended to `failures`, since the dataset itself can
    only raise an error of TensorFlow's.
    """

    def fetch(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        try:
            return source.read(indices)
        except StoreFailed as error:
            if failures is not None:
                failures.append(error)
            raise

    def read(indices: tf.Tensor, *extras: tf.Tensor) -> tuple[tf.Tensor, ...]:
        records, labels = tf.numpy_function(
            fetch, [indices], (tf.string if source.encoded else tf.uint8, tf.int32)
        )
        shape = () if source.encoded else (*(source.image_shape or ()), 3)
        records = tf.ensure_shape(records, (indices.shape[0], *shape))
        labels = tf.ensure_shape(labels, indices.shape)
        return (records, labels, *extras)

    return dataset.map(read, num_parallel_calls=parallel_reads)


def record_batches(
    source: Source,
    indices: np.ndarray,
    unpack: Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]],
    *,
    batch_size: int,
    threads: int | None = None,
    prefetch: int = 1,
) -> Iterator[Batch]:
    """Batches of the records `indices`, in this order; the last one may be smaller.

    Args:
      source: what to read.
      indices: int64 [N].
      unpack: (record, label) -> the arrays of one image, as graph operations.
      batch_size: images in a batch.
      threads: for reading and decoding; when None as many as can run at a time.
      prefetch: batches that are read ahead.

    Raises:
      DataError: a record cannot be read; the message names it.
    """
    threads = threads or host_resources.num_cpus()
    failures: list[InvalidInput] = []
    dataset = tf.data.Dataset.from_tensor_slices(indices)
    dataset = dataset.batch(READ_CHUNK).map(lambda chunk: (chunk,))
    dataset = read_chunks(source, dataset, threads, failures).unbatch()
    dataset = dataset.map(unpack, num_parallel_calls=threads)
    dataset = dataset.batch(batch_size).prefetch(prefetch)

    def name_record(number: int, error: Exception) -> NoReturn:
        # Records are read in chunks, which can reach into the next batches.
        suspects = indices[number * batch_size :][: batch_size + READ_CHUNK]
        _raise_naming_record(source, suspects, error)

    return iterate(
        dataset.with_options(options(threads)),
        name_record,
        num_batches=math.ceil(len(indices) / batch_size),
        failures=failures,
    )


def pixel_batches(source: Source, *, batch_size: int) -> Iterator[Batch]:
    """All images once, in order, unchanged; they must have `source.image_shape`.

    Yields:
      images uint8 [batch_size, H, W, 3] and labels int32 [batch_size]; the last batch
      is smaller.

    Raises:
      DataError: a record cannot be read.
    """
    assert source.image_shape is not None
    shape = (*source.image_shape, 3)

    def decode(record: tf.Tensor, label: tf.Tensor) -> dict[str, tf.Tensor]:
        image, label = decode_record(source, record, label)
        return {"images": tf.ensure_shape(image, shape), "labels": label}

    indices = np.arange(source.num_examples)
    return record_batches(source, indices, decode, batch_size=batch_size)


def label_batches(source: Source) -> Iterator[Batch]:
    """The labels of all images, in order; no image is decoded.

    Yields:
      labels int32 [1024]; the last batch is smaller.

    Raises:
      DataError: a record cannot be read.
    """
    return record_batches(
        source,
        np.arange(source.num_examples),
        lambda record, label: {"labels": unpack(source, record, label)[1]},
        batch_size=_LABEL_BATCH,
    )


def iterate(
    dataset: tf.data.Dataset,
    fail: Callable[[int, Exception], NoReturn],
    *,
    num_batches: int,
    failures: list[InvalidInput],
) -> Iterator[Batch]:
    """The batches of a dataset as NumPy arrays.

    Args:
      dataset: of batches.
      fail: raises the error of a batch, from its number and TensorFlow's error.
      num_batches: how many the dataset has.
      failures: from `read_chunks`; the first one is raised instead.
    """
    iterator = dataset.as_numpy_iterator()
    for number in range(num_batches):
        try:
            batch = next(iterator)
        # TensorFlow fails to build a message from bytes that are not text.
        except (tf.errors.OpError, UnicodeDecodeError) as error:
            if failures:
                raise failures[0] from failures[0].__cause__
            fail(number, error)
        yield batch


def _raise_naming_record(
    source: Source, indices: np.ndarray, error: Exception
) -> NoReturn:
    """Finds the bad record among some and raises a BadRecord or DataError."""
    for index in indices.tolist():
        image = check_record(source, index)
        if source.image_shape not in (None, tuple(image.shape[:2])):
            raise of_other_size(source, index, image) from error
    raise bad_records.batch_failed(source, error) from error


def of_other_size(source: Source, index: int, image: np.ndarray) -> DataError:
    """The error to raise where an image has another size than its dataset says."""
    assert source.image_shape is not None
    return DataError(
        f"{source.describe(index)}: has {image.shape[0]} x {image.shape[1]} pixels, "
        "where its dataset says that all images have {} x {}".format(
            *source.image_shape
        )
    )


def check_record(
    source: Source,
    index: int,
    decode: Callable[[tf.Tensor], tf.Tensor] = lambda content: decode_rgb(content),
) -> tf.Tensor:
    """Reads and decodes a record outside of a graph.

    Args:
      source: what to read.
      index: of the record.
      decode: the bytes of a file -> pixels.

    Raises:
      BadRecord: it cannot be read as an image.
      DataError: it cannot be read, and may be intact.
    """
    what = "cannot be read"
    try:
        records, labels = source.read(np.array([index]))
        what = "cannot be decoded"
        image, _ = unpack(source, tf.constant(records[0]), tf.constant(labels[0]))
        return decode(image) if source.encoded else image
    except Exception as error:  # whatever they raise on damaged data
        bad_records.fail(index, source.describe(index), what, error)
