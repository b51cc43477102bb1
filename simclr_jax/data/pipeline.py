"""From a source to batches of NumPy arrays on this host, with tf.data.

For each step the indices and augmentation seeds of this host's slice are computed, the
records read, decoded, augmented and stacked, in parallel and in order. The only state
is the step to start at.
"""

import math
import os
from collections.abc import Callable, Iterator
from typing import NoReturn

import numpy as np

from simclr_jax.data import order
from simclr_jax.data.records import Source
from simclr_jax.data.tf_cpu import tf
from simclr_jax.errors import DataError, first_line

# Records fetched by one call into Python: large enough to hide the call's cost, small
# enough that the calls of one batch run side by side.
_READ_CHUNK = 16

View = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
Batch = dict[str, np.ndarray]


def _host_slice(batch_size: int, host_index: int, num_hosts: int) -> slice:
    if batch_size % num_hosts:
        raise ValueError(f"batch_size={batch_size}: not divisible by {num_hosts} hosts")
    size = batch_size // num_hosts
    return slice(host_index * size, (host_index + 1) * size)


def _options(threads: int) -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = threads
    # Intra-op parallelism would only compete with the parallel maps.
    options.threading.max_intra_op_parallelism = 1
    return options


def _read(source: Source, dataset: tf.data.Dataset, threads: int) -> tf.data.Dataset:
    """Maps chunks (indices, extras...) to single (record, label, extras...)."""

    def read(indices: tf.Tensor, *extras: tf.Tensor) -> tuple[tf.Tensor, ...]:
        records, labels = tf.numpy_function(
            source.read, [indices], (source.record_spec.dtype, tf.int32)
        )
        records = tf.ensure_shape(records, source.record_spec.shape)
        labels = tf.ensure_shape(labels, (None,))
        return (records, labels, *extras)

    return dataset.map(read, num_parallel_calls=threads).unbatch()


def train_batches(
    source: Source,
    view: View,
    *,
    seed: int,
    batch_size: int,
    num_views: int = 2,
    start_step: int = 0,
    stop_step: int,
    host_index: int = 0,
    num_hosts: int = 1,
    threads: int | None = None,
) -> Iterator[Batch]:
    """Training batches of steps start_step, ..., stop_step - 1.

    The batch of a step depends on (source, view, seed, step, batch_size) alone;
    starting at any step costs the same.

    Args:
      source: what to read.
      view: from `augment.compose`.
      seed: of order and draws.
      batch_size: images in the global batch.
      num_views: V.
      start_step: the first step.
      stop_step: one past the last.
      host_index: this host's number.
      num_hosts: hosts that share the global batch.
      threads: for reading and augmenting; the machine's cores when None.

    Returns:
      An iterator over this host's contiguous slices: images uint8
      [B / num_hosts, V, S, S, 3] and labels int32 [B / num_hosts], -1 where there are
      none. It raises a DataError that names the record if one cannot be read.

    Raises:
      DataError: the dataset is smaller than a batch.
    """
    if source.num_examples < batch_size:
        raise DataError(
            f"batch_size={batch_size}: {source.name} has only {source.num_examples} "
            "images, and a batch holds no image twice"
        )
    threads = threads or os.cpu_count() or 1
    own = _host_slice(batch_size, host_index, num_hosts)
    size = own.stop - own.start

    def plan(step: int) -> tuple[np.ndarray, np.ndarray]:
        indices, epochs = order.batch_indices(
            int(step),
            seed=seed,
            num_examples=source.num_examples,
            batch_size=batch_size,
        )
        indices, epochs = indices[own], epochs[own]
        seeds = order.view_seeds(indices, epochs, seed=seed, num_views=num_views)
        return indices, seeds

    def plan_graph(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        indices, seeds = tf.numpy_function(plan, [step], (tf.int64, tf.int64))
        shape = (size, num_views, 2)
        return tf.ensure_shape(indices, (size,)), tf.ensure_shape(seeds, shape)

    def augment(
        record: tf.Tensor, label: tf.Tensor, seeds: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        image, label = source.decode(record, label)
        views = [view(image, seeds[v]) for v in range(num_views)]
        return {"images": tf.stack(views), "labels": label}

    dataset = tf.data.Dataset.range(start_step, stop_step)
    dataset = dataset.map(plan_graph, num_parallel_calls=1).unbatch()
    dataset = _read(source, dataset.batch(_READ_CHUNK), threads)
    dataset = dataset.map(augment, num_parallel_calls=threads)
    dataset = dataset.batch(size, drop_remainder=True).prefetch(2)
    return _iterate(
        source,
        dataset.with_options(_options(threads)),
        # The prefetching pipeline does not say which record failed, but the step says
        # which records there were.
        lambda number: plan(start_step + number)[0],
        num_batches=stop_step - start_step,
    )


def eval_batches(
    source: Source,
    preprocess: Callable[[tf.Tensor], tf.Tensor],
    *,
    batch_size: int,
    host_index: int = 0,
    num_hosts: int = 1,
    threads: int | None = None,
) -> Iterator[Batch]:
    """All images once, in order, in batches of one size.

    Args:
      source: what to read.
      preprocess: image [H, W, 3] uint8 -> float32 [S, S, 3].
      batch_size: images in the global batch; the last one is filled up.
      host_index: this host's number.
      num_hosts: hosts that share the global batch.
      threads: for reading and decoding; the machine's cores when None.

    Yields:
      This host's slice: images float32 [B / num_hosts, S, S, 3], labels int32, and
      `mask` bool, False at the entries that fill up the last batch.

    Raises:
      DataError: a record cannot be read; the message names it.
    """
    threads = threads or os.cpu_count() or 1
    own = _host_slice(batch_size, host_index, num_hosts)
    num_batches = math.ceil(source.num_examples / batch_size)
    positions = np.arange(num_batches * batch_size).reshape(num_batches, batch_size)
    mask = positions < source.num_examples
    # Filled up with the last image, which is decoded again and then masked out.
    indices = np.minimum(positions, source.num_examples - 1)[:, own]

    def prepare(record: tf.Tensor, label: tf.Tensor) -> dict[str, tf.Tensor]:
        image, label = source.decode(record, label)
        return {"images": preprocess(image), "labels": label}

    dataset = tf.data.Dataset.from_tensor_slices(indices.reshape(-1))
    dataset = dataset.batch(_READ_CHUNK).map(lambda chunk: (chunk,))
    dataset = _read(source, dataset, threads)
    dataset = dataset.map(prepare, num_parallel_calls=threads)
    dataset = dataset.batch(own.stop - own.start).prefetch(2)
    batches = _iterate(
        source,
        dataset.with_options(_options(threads)),
        lambda number: indices[number],
        num_batches=num_batches,
    )
    for batch, own_mask in zip(batches, mask[:, own], strict=True):
        yield {**batch, "mask": own_mask}


def _iterate(
    source: Source,
    dataset: tf.data.Dataset,
    records_of: Callable[[int], np.ndarray],
    *,
    num_batches: int,
) -> Iterator[Batch]:
    """Batches of `dataset`; `records_of` tells what the n-th one was made of."""
    iterator = dataset.as_numpy_iterator()
    for number in range(num_batches):
        try:
            batch = next(iterator)
        # Where the message has bytes that are no text, reading it fails in turn.
        except (tf.errors.OpError, UnicodeDecodeError) as error:
            # Records are read in chunks, which can reach into the next batches.
            following = range(number, min(number + _READ_CHUNK, num_batches))
            suspects = np.concatenate([records_of(n) for n in following])
            _raise_naming_record(source, suspects, error)
        yield batch


def _raise_naming_record(
    source: Source, indices: np.ndarray, error: Exception
) -> NoReturn:
    """Finds the record of a batch that does not decode, and raises a DataError."""
    for index in indices:
        try:
            records, labels = source.read(np.array([index]))
            source.decode(tf.constant(records[0]), tf.constant(labels[0]))
        except (tf.errors.OpError, OSError, ValueError) as cause:
            raise DataError(
                f"{source.describe(int(index))}: cannot be decoded "
                f"({first_line(cause)})"
            ) from cause
    raise DataError(
        f"{source.name}: reading a batch failed ({first_line(error)})"
    ) from error
