"""From a source to batches of NumPy arrays on this host, with tf.data.

For each step the images of this host's slice and all random draws are computed, the
records read, decoded, augmented and stacked, in parallel and in order. The only state
is the step to start at.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np

from simclr_jax.data.buffers import Buffers
from simclr_jax.data.sampling import boxes, draws, order
from simclr_jax.data.sources import base
from simclr_jax.data.sources.base import Source
from simclr_jax.data.tf_cpu import tf
from simclr_jax.data.views import definition, host
from simclr_jax.data.views.composition import Composition
from simclr_jax.errors import DataError, StoreFailed, first_line

# Records fetched by one call into Python: large enough to hide the call's cost, small
# enough that the calls of one batch run side by side.
_READ_CHUNK = 16
# Small images of one size are augmented by the chunk as well.
_PIXEL_CHUNK = 64

Batch = dict[str, np.ndarray]


def _host_slice(batch_size: int, host_index: int, num_hosts: int) -> slice:
    if batch_size % num_hosts:
        raise ValueError(f"batch_size={batch_size}: not divisible by {num_hosts} hosts")
    size = batch_size // num_hosts
    return slice(host_index * size, (host_index + 1) * size)


def _options(threads: int) -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    # Nothing is tuned behind our back: memory stays what `Buffers` says.
    options.autotune.enabled = False
    options.threading.private_threadpool_size = threads
    # Intra-op parallelism would only compete with the parallel maps.
    options.threading.max_intra_op_parallelism = 1
    return options


def read_chunks(
    source: Source,
    dataset: tf.data.Dataset,
    parallel_reads: int | None,
    failures: list[StoreFailed] | None = None,
) -> tf.data.Dataset:
    """Maps chunks (indices, extras...) to chunks (records, labels, extras...).

    Where a store fails, `failures` is told why; what comes out of the dataset is an
    error of TensorFlow's.
    """

    def fetch(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        try:
            return source.read(indices)
        except StoreFailed as error:
            if failures is not None:
                failures.append(error)
            raise

    def read(indices: tf.Tensor, *extras: tf.Tensor) -> tuple[tf.Tensor, ...]:
        found, labels = tf.numpy_function(
            fetch, [indices], (source.record_spec.dtype, tf.int32)
        )
        found = tf.ensure_shape(
            found, (indices.shape[0], *source.record_spec.shape[1:])
        )
        labels = tf.ensure_shape(labels, indices.shape)
        return (found, labels, *extras)

    return dataset.map(read, num_parallel_calls=parallel_reads)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Images and draws of this host's slice of any step, as NumPy arrays."""

    source: Source
    composition: Composition
    seed: int
    batch_size: int
    block_size: int
    num_views: int
    own: slice

    def indices(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(images [b], their epochs [b]), int64."""
        indices, epochs = order.batch_indices(
            step,
            seed=self.seed,
            num_examples=self.source.num_examples,
            batch_size=self.batch_size,
            block_size=self.block_size,
        )
        return indices[self.own], epochs[self.own]

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(images [b], crops, uniform numbers float32 [b, V, D]).

        Crops are boxes int32 [b, V, 4] in pixels, and for image files, whose sizes are
        yet to be seen, the seeds int64 [b, V, 2] of what draws them.
        """
        indices, epochs = self.indices(int(step))
        key = order.view_keys(
            indices.astype(np.uint32),
            epochs.astype(np.uint32),
            seed=self.seed,
            num_views=self.num_views,
        )
        uniform = draws.view_draws(key, self.composition.operations)
        shape = self.source.image_shape
        if self.source.encoded or shape is None:
            return indices, order.view_seeds(key), uniform
        box_draws = self.composition.box_draws(shape)
        if box_draws is None:
            whole = np.array([0, 0, *shape], np.int32)
            return indices, np.broadcast_to(whole, (*key.first.shape, 4)), uniform
        return indices, boxes.random_boxes(key, box_draws), uniform

    def in_graph(self, chunk: int) -> Callable[[tf.Tensor], tuple[tf.Tensor, ...]]:
        """The plan as a graph operation, each array [b / chunk, chunk, ...]."""
        crops = (tf.int64, 2) if self.source.encoded else (tf.int32, 4)
        size = self.own.stop - self.own.start
        widths: list[tuple[Any, tuple[int, ...]]] = [
            (tf.int64, ()),
            (crops[0], (self.num_views, crops[1])),
            (tf.float32, (self.num_views, self.composition.num_draws)),
        ]

        def planned(step: tf.Tensor) -> tuple[tf.Tensor, ...]:
            arrays = tf.numpy_function(self, [step], [kind for kind, _ in widths])
            return tuple(
                tf.reshape(array, (size // chunk, chunk, *shape))
                for array, (_, shape) in zip(arrays, widths, strict=True)
            )

        return planned


def chunk_size(source: Source, size: int, block_size: int = 1) -> int:
    """How many records are fetched by one call: a divisor of a host's batch."""
    limit = max(_READ_CHUNK if source.encoded else _PIXEL_CHUNK, block_size)
    return next(d for d in range(min(size, limit), 0, -1) if size % d == 0)


def train_batches(
    source: Source,
    composition: Composition,
    *,
    seed: int,
    batch_size: int,
    num_views: int = 2,
    start_step: int = 0,
    stop_step: int,
    host_index: int = 0,
    num_hosts: int = 1,
    host_crop: bool = False,
    block_size: int = 1,
    buffers: Buffers | None = None,
) -> Iterator[Batch]:
    """Training batches of steps start_step, ..., stop_step - 1.

    The batch of a step depends on (source, composition, seed, step, batch_size,
    block_size) alone; starting at any step costs the same.

    Args:
      source: what to read.
      composition: what a view is made of.
      seed: of order and draws.
      batch_size: images in the global batch.
      num_views: V.
      start_step: the first step.
      stop_step: one past the last.
      host_index: this host's number.
      num_hosts: hosts that share the global batch.
      host_crop: leaves everything but the crop to the accelerator.
      block_size: images that are read together; see `order.batch_indices`.
      buffers: threads and memory; chosen for this machine when None.

    Returns:
      An iterator over this host's contiguous slices: images uint8
      [B / num_hosts, V, S, S, 3] and labels int32 [B / num_hosts], -1 where there are
      none; with `host_crop` also the draws of what is left to do, float32
      [B / num_hosts, V, D]. It raises a DataError that names the record if one cannot
      be read.

    Raises:
      DataError: the dataset is smaller than a batch.
    """
    usable = source.num_examples // block_size * block_size
    if usable < batch_size:
        blocks = f" in blocks of {block_size}" if block_size > 1 else ""
        raise DataError(
            f"batch_size={batch_size}: {source.name} has only {source.num_examples} "
            f"images{blocks}, and a batch holds no image twice"
        )
    own = _host_slice(batch_size, host_index, num_hosts)
    size = own.stop - own.start
    buffers = buffers or Buffers.choose(
        batch_bytes=size * num_views * composition.image_size**2 * 3,
        block_size=block_size,
    )
    plan = Plan(source, composition, seed, batch_size, block_size, num_views, own)
    pixels = not source.encoded
    chunk = chunk_size(source, size, block_size)
    failures: list[StoreFailed] = []
    dataset = tf.data.Dataset.range(start_step, stop_step)
    # A step ahead, so that the first reads of a step do not wait for its draws.
    dataset = _unbatch(dataset.map(plan.in_graph(chunk), num_parallel_calls=1))
    dataset = read_chunks(source, dataset, buffers.parallel_reads, failures)
    make = pixels_to_views if pixels else files_to_views
    dataset = make(source, composition, host_crop, dataset, buffers.threads)
    dataset = dataset.batch(size // chunk if pixels else size, drop_remainder=True)
    if pixels:
        dataset = dataset.map(lambda batch: _merge_chunks(batch, size))
    dataset = dataset.prefetch(buffers.prefetch)
    return _iterate(
        source,
        dataset.with_options(_options(buffers.pool_size)),
        # The prefetching pipeline does not say which record failed, but the step says
        # which records there were.
        lambda number: plan.indices(start_step + number)[0],
        num_batches=stop_step - start_step,
        failures=failures,
    )


def _unbatch(dataset: tf.data.Dataset) -> tf.data.Dataset:
    # TensorFlow's own `unbatch` crashes on arrays without elements, such as the draws
    # of a composition that is a crop alone.
    return dataset.flat_map(lambda *arrays: tf.data.Dataset.from_tensor_slices(arrays))


def _merge_chunks(batch: dict[str, tf.Tensor], size: int) -> dict[str, tf.Tensor]:
    return {
        key: tf.reshape(value, (size, *value.shape[2:])) for key, value in batch.items()
    }


def pixels_to_views(
    source: Source,
    composition: Composition,
    host_crop: bool,
    dataset: tf.data.Dataset,
    threads: int | None,
) -> tf.data.Dataset:
    """Chunks of pixels of one size to chunks of views."""
    on_host = composition.crop_alone() if host_crop else composition
    views = host.compose(on_host)

    def augmented(
        found: tf.Tensor, labels: tf.Tensor, crops: tf.Tensor, uniform: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        images, labels = source.unpack(found, labels)
        batch = {"labels": labels}
        if host_crop:
            return batch | {
                "images": views(images, crops, uniform[..., :0]),
                "draws": uniform,
            }
        return batch | {"images": views(images, crops, uniform)}

    return dataset.map(augmented, num_parallel_calls=threads)


def draw_boxes(
    composition: Composition, shape: tf.Tensor, seeds: tf.Tensor
) -> tf.Tensor:
    """Boxes int32 [V, 4] in an image of `shape` [3], by seeds int64 [V, 2]."""
    whole = (tf.constant(0), tf.constant(0), shape[0], shape[1])
    settings = composition.crop_settings
    return tf.stack(
        [
            definition.random_crop_box(shape, seed, **settings) if settings else whole
            for seed in tf.unstack(seeds)
        ]
    )


def files_to_views(
    source: Source,
    composition: Composition,
    host_crop: bool,
    dataset: tf.data.Dataset,
    threads: int | None,
) -> tf.data.Dataset:
    """Chunks of image files to single images of views."""
    on_host = composition.crop_alone() if host_crop else composition
    views = host.compose(on_host)

    def augmented(
        record: tf.Tensor, label: tf.Tensor, seeds: tf.Tensor, uniform: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        content, label = source.unpack(record, label)
        image, drawn = base.decode_crops(
            content, lambda shape: draw_boxes(composition, shape, seeds)
        )
        made = views(image, drawn, uniform[:, :0] if host_crop else uniform)
        batch = {"images": made, "labels": label}
        return batch | {"draws": uniform} if host_crop else batch

    return _unbatch(dataset).map(augmented, num_parallel_calls=threads)


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
        image, label = base.decode(source, record, label)
        return {"images": preprocess(image), "labels": label}

    dataset = tf.data.Dataset.from_tensor_slices(indices.reshape(-1))
    failures: list[StoreFailed] = []
    dataset = dataset.batch(_READ_CHUNK).map(lambda chunk: (chunk,))
    dataset = read_chunks(source, dataset, threads, failures).unbatch()
    dataset = dataset.map(prepare, num_parallel_calls=threads)
    dataset = dataset.batch(own.stop - own.start).prefetch(2)
    batches = _iterate(
        source,
        dataset.with_options(_options(threads)),
        lambda number: indices[number],
        num_batches=num_batches,
        failures=failures,
    )
    for batch, own_mask in zip(batches, mask[:, own], strict=True):
        yield {**batch, "mask": own_mask}


def pixel_batches(source: Source, *, batch_size: int) -> Iterator[Batch]:
    """All images once, in order, as they are; they must have `source.image_shape`.

    Yields:
      images uint8 [batch_size, H, W, 3] and labels int32 [batch_size]; the last batch
      is smaller.

    Raises:
      DataError: a record cannot be read.
    """
    assert source.image_shape is not None
    shape = (*source.image_shape, 3)

    def decode(record: tf.Tensor, label: tf.Tensor) -> dict[str, tf.Tensor]:
        image, label = base.decode(source, record, label)
        return {"images": tf.ensure_shape(image, shape), "labels": label}

    return _in_order(source, decode, batch_size=batch_size)


def label_batches(source: Source) -> Iterator[Batch]:
    """The labels of all images, in order; no image is decoded.

    Yields:
      labels int32 [1024]; the last batch is smaller.

    Raises:
      DataError: a record cannot be read.
    """
    return _in_order(
        source,
        lambda record, label: {"labels": source.unpack(record, label)[1]},
        batch_size=1024,
    )


def _in_order(
    source: Source,
    unpack: Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]],
    *,
    batch_size: int,
) -> Iterator[Batch]:
    """All images once; `unpack` makes of (record, label) what stands in a batch."""
    threads = os.cpu_count() or 1
    indices = np.arange(source.num_examples)
    dataset = tf.data.Dataset.from_tensor_slices(indices)
    failures: list[StoreFailed] = []
    dataset = dataset.batch(_READ_CHUNK).map(lambda chunk: (chunk,))
    dataset = read_chunks(source, dataset, threads, failures).unbatch()
    dataset = dataset.map(unpack, num_parallel_calls=threads)
    dataset = dataset.batch(batch_size).prefetch(1)
    return _iterate(
        source,
        dataset.with_options(_options(threads)),
        lambda number: indices[number * batch_size :][:batch_size],
        num_batches=math.ceil(len(indices) / batch_size),
        failures=failures,
    )


def _iterate(
    source: Source,
    dataset: tf.data.Dataset,
    records_of: Callable[[int], np.ndarray],
    *,
    num_batches: int,
    failures: list[StoreFailed],
) -> Iterator[Batch]:
    """Batches of `dataset`; `records_of` tells what the n-th one was made of."""
    iterator = dataset.as_numpy_iterator()
    for number in range(num_batches):
        try:
            batch = next(iterator)
        # Where the message has bytes that are no text, reading it fails in turn.
        except (tf.errors.OpError, UnicodeDecodeError) as error:
            # Not the fault of a record, so none is looked for.
            if failures:
                raise failures[0] from failures[0].__cause__
            # Records are read in chunks, which can reach into the next batches.
            following = range(number, min(number + _READ_CHUNK, num_batches))
            suspects = np.concatenate([records_of(n) for n in following])
            _raise_naming_record(source, suspects, error)
        yield batch


def _raise_naming_record(
    source: Source, indices: np.ndarray, error: Exception
) -> NoReturn:
    """Finds the record of a batch that is not as it should be; raises a DataError."""
    for index in indices:
        name = source.describe(int(index))
        try:
            found, labels = source.read(np.array([index]))
            image, _ = base.decode(
                source, tf.constant(found[0]), tf.constant(labels[0])
            )
        except (tf.errors.OpError, OSError, ValueError) as cause:
            raise DataError(
                f"{name}: cannot be decoded ({first_line(cause)})"
            ) from cause
        height, width, _ = image.shape
        if source.image_shape not in (None, (height, width)):
            raise DataError(
                f"{name}: has {height} x {width} pixels, where its dataset says that "
                "all images have {} x {}".format(*source.image_shape)
            ) from error
    raise DataError(
        f"{source.name}: reading a batch failed ({first_line(error)})"
    ) from error
