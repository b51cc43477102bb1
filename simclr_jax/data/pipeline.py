"""From a source to batches of NumPy arrays on this host, with tf.data.

For each step the images of this host's slice and all random draws are computed; then
records are read, decoded, augmented and stacked, in parallel and in order. The only
state is the first step.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from simclr_jax.data import decode
from simclr_jax.data.buffers import Buffers
from simclr_jax.data.sampling import draws, order
from simclr_jax.data.sources import reading
from simclr_jax.data.sources.base import Source
from simclr_jax.data.sources.reading import Batch
from simclr_jax.data.tf_cpu import tf
from simclr_jax.data.views import host
from simclr_jax.data.views.composition import Composition
from simclr_jax.errors import DataError, StoreFailed

# Small images of one size are read and augmented by larger chunks than files.
_PIXEL_CHUNK = 64


def _host_slice(batch_size: int, host_index: int, num_hosts: int) -> slice:
    if batch_size % num_hosts:
        raise ValueError(f"batch_size={batch_size}: not divisible by {num_hosts} hosts")
    size = batch_size // num_hosts
    return slice(host_index * size, (host_index + 1) * size)


@dataclasses.dataclass(frozen=True)
class StepSampler:
    """Images and draws of this host's slice of any step, as NumPy arrays."""

    source: Source
    composition: Composition
    seed: int
    batch_size: int
    block_size: int
    num_views: int
    host_slice: slice

    def indices(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(images [b], their epochs [b]), int64."""
        indices, epochs = order.batch_indices(
            step,
            seed=self.seed,
            num_examples=self.source.num_examples,
            batch_size=self.batch_size,
            block_size=self.block_size,
        )
        return indices[self.host_slice], epochs[self.host_slice]

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(images [b], crops, uniform numbers float32 [b, V, D]).

        Crops are boxes int32 [b, V, 4] in pixels. For image files, whose sizes are only
        known once they are read, they are the keys uint32 [b, V, 2] of the boxes.
        """
        indices, epochs = self.indices(int(step))
        key = order.view_keys(
            indices.astype(np.uint32),
            epochs.astype(np.uint32),
            seed=self.seed,
            num_views=self.num_views,
        )
        uniform = draws.view_draws(key, self.composition.operations)
        if self.source.encoded:
            return indices, np.stack(key, axis=-1), uniform
        assert self.source.image_shape is not None
        return (
            indices,
            self.composition.draw_boxes(key, self.source.image_shape),
            uniform,
        )

    def in_graph(self, chunk: int) -> Callable[[tf.Tensor], tuple[tf.Tensor, ...]]:
        """The sampler as a graph operation, each array [b / chunk, chunk, ...]."""
        crops = (tf.uint32, 2) if self.source.encoded else (tf.int32, 4)
        size = self.host_slice.stop - self.host_slice.start
        specs: list[tuple[Any, tuple[int, ...]]] = [
            (tf.int64, ()),
            (crops[0], (self.num_views, crops[1])),
            (tf.float32, (self.num_views, self.composition.num_draws)),
        ]

        def sample(step: tf.Tensor) -> tuple[tf.Tensor, ...]:
            arrays = tf.numpy_function(self, [step], [dtype for dtype, _ in specs])
            return tuple(
                tf.reshape(array, (size // chunk, chunk, *shape))
                for array, (_, shape) in zip(arrays, specs, strict=True)
            )

        return sample


def chunk_size(source: Source, size: int, block_size: int = 1) -> int:
    """Records that one call reads: a divisor of a host's batch `size`."""
    limit = max(reading.READ_CHUNK if source.encoded else _PIXEL_CHUNK, block_size)
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
    compiled: bool = True,
    buffers: Buffers | None = None,
) -> Iterator[Batch]:
    """Training batches of steps start_step, ..., stop_step - 1.

    The batch of a step depends on (source, composition, seed, step, batch_size,
    block_size) alone; starting at any step costs the same.

    Args:
      source: what to read.
      composition: of the views.
      seed: of order and draws.
      batch_size: images in the global batch.
      num_views: V.
      start_step: the first step.
      stop_step: one past the last.
      host_index: this host's number.
      num_hosts: hosts that share the global batch.
      host_crop: leaves everything except the crop to the accelerator.
      block_size: images that are read together; see `order.batch_indices`.
      compiled: computes views with machine code instead of TensorFlow's operations;
        see `host`.
      buffers: threads and memory; chosen for this machine when None.

    Returns:
      An iterator over this host's contiguous slices: images uint8
      [B / num_hosts, V, S, S, 3] and labels int32 [B / num_hosts], -1 where there are
      none; with `host_crop` also the draws of the remaining operations, float32
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
    host_slice = _host_slice(batch_size, host_index, num_hosts)
    size = host_slice.stop - host_slice.start
    buffers = buffers or Buffers.choose(
        batch_bytes=size * num_views * composition.image_size**2 * 3,
        block_size=block_size,
    )
    sampler = StepSampler(
        source, composition, seed, batch_size, block_size, num_views, host_slice
    )
    chunk = chunk_size(source, size, block_size)
    failures: list[StoreFailed] = []
    dataset = tf.data.Dataset.range(start_step, stop_step)
    # A step ahead, so that the first reads of a step do not wait for its draws.
    dataset = reading.unbatch(
        dataset.map(sampler.in_graph(chunk), num_parallel_calls=1)
    )
    dataset = reading.read_chunks(source, dataset, buffers.parallel_reads, failures)
    dataset = views(
        source,
        composition,
        dataset,
        host_crop=host_crop,
        compiled=compiled,
        threads=buffers.threads,
    )
    if source.encoded:
        dataset = dataset.batch(size, drop_remainder=True)
    else:
        dataset = dataset.batch(size // chunk, drop_remainder=True)
        dataset = dataset.map(lambda batch: _merge_chunks(batch, size))
    dataset = dataset.prefetch(buffers.prefetch)
    return reading.iterate(
        source,
        dataset.with_options(reading.options(buffers.pool_size)),
        # The prefetching pipeline does not say which record failed, but the step says
        # which records there were.
        lambda number: sampler.indices(start_step + number)[0],
        num_batches=stop_step - start_step,
        failures=failures,
    )


def _merge_chunks(batch: dict[str, tf.Tensor], size: int) -> dict[str, tf.Tensor]:
    return {
        key: tf.reshape(value, (size, *value.shape[2:])) for key, value in batch.items()
    }


def views(
    source: Source,
    composition: Composition,
    dataset: tf.data.Dataset,
    *,
    host_crop: bool,
    compiled: bool,
    threads: int | None,
) -> tf.data.Dataset:
    """Maps what `reading.read_chunks` gives to `images`, `labels` and `draws`.

    Pixels are augmented a chunk at a time and stay in chunks; files are decoded and
    augmented one by one. Arguments are those of `train_batches`.
    """
    on_host = composition.crop_alone() if host_crop else composition
    compute = host.compose(on_host, compiled=compiled)

    def augment(
        image: tf.Tensor, label: tf.Tensor, crops: tf.Tensor, uniform: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        images = compute(image, crops, uniform[..., :0] if host_crop else uniform)
        batch = {"images": images, "labels": label}
        return batch | {"draws": uniform} if host_crop else batch

    if source.encoded:
        dataset = with_boxes(source, composition, dataset, threads)

        def from_file(
            record: tf.Tensor, label: tf.Tensor, *rest: tf.Tensor
        ) -> dict[str, tf.Tensor]:
            shape, crops, uniform = rest
            content, label = source.unpack(record, label)
            image, crops = decode.decode_crops(content, shape, crops)
            return augment(image, label, crops, uniform)

        return dataset.map(from_file, num_parallel_calls=threads)

    def from_pixels(
        records: tf.Tensor, labels: tf.Tensor, *rest: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        return augment(*source.unpack(records, labels), *rest)

    return dataset.map(from_pixels, num_parallel_calls=threads)


def with_boxes(
    source: Source,
    composition: Composition,
    dataset: tf.data.Dataset,
    threads: int | None,
) -> tf.data.Dataset:
    """Draws the boxes of image files, whose sizes their headers tell.

    Args:
      source: of image files.
      composition: of the views.
      dataset: chunks (records, labels, keys uint32 [chunk, V, 2], uniform numbers).
      threads: calls that run side by side.

    Returns:
      Single images (record, label, shape int32 [2], boxes int32 [V, 4], uniform
      numbers).
    """

    def draw(words: np.ndarray, shapes: np.ndarray) -> np.ndarray:
        key = order.Key(words[..., 0], words[..., 1])
        sides = np.broadcast_to(shapes[:, None], (*key.first.shape, 2))
        return composition.draw_boxes(key, (sides[..., 0], sides[..., 1]))

    def locate(
        records: tf.Tensor, labels: tf.Tensor, words: tf.Tensor, uniform: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        # Only the shapes leave this step: stacking the contents would copy them.
        contents = [
            source.unpack(record, label)[0]
            for record, label in zip(
                tf.unstack(records), tf.unstack(labels), strict=True
            )
        ]
        shapes = tf.stack([decode.image_shape(content) for content in contents])
        crops = tf.numpy_function(draw, [words, shapes], tf.int32, stateful=False)
        crops = tf.ensure_shape(crops, (*words.shape[:2], 4))
        return records, labels, shapes, crops, uniform

    return reading.unbatch(dataset.map(locate, num_parallel_calls=threads))


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
    host_slice = _host_slice(batch_size, host_index, num_hosts)
    num_batches = math.ceil(source.num_examples / batch_size)
    positions = np.arange(num_batches * batch_size).reshape(num_batches, batch_size)
    mask = (positions < source.num_examples)[:, host_slice]
    # Filled up with the last image, which is decoded again and then masked out.
    indices = np.minimum(positions, source.num_examples - 1)[:, host_slice]

    def prepare(record: tf.Tensor, label: tf.Tensor) -> dict[str, tf.Tensor]:
        image, label = reading.decode_record(source, record, label)
        return {"images": preprocess(image), "labels": label}

    batches = reading.record_batches(
        source,
        indices.reshape(-1),
        prepare,
        batch_size=indices.shape[1],
        threads=threads,
        prefetch=2,
    )
    for batch, own_mask in zip(batches, mask, strict=True):
        yield {**batch, "mask": own_mask}
