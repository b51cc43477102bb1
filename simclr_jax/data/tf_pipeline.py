"""Batches by tf.data, for any dataset; see `pipeline.py`.

For each step the images of this host's slice and all random draws are computed; then
records are read, decoded, augmented and stacked, in parallel and in order. The only
state is the first step.
"""

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np

from simclr_jax.data import tf_decode
from simclr_jax.data.buffers import Buffers
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.data.sources import bad_records, reading
from simclr_jax.data.sources.base import Batch, Source
from simclr_jax.data.step_sampler import StepSampler, chunk_size
from simclr_jax.data.tf_cpu import tf
from simclr_jax.data.views import definition, host
from simclr_jax.data.views.composition import Composition
from simclr_jax.errors import InvalidInput

# Small images of one size are read and augmented by larger chunks than files.
_PIXEL_CHUNK = 64


def in_graph(
    sampler: StepSampler, chunk: int, failures: list[InvalidInput] | None = None
) -> Callable[[tf.Tensor], tuple[tf.Tensor, ...]]:
    """A sampler as a graph operation, each array [b / chunk, chunk, ...].

    Its errors are appended to `failures`, as in `reading.read_chunks`.
    """
    crops = (tf.uint32, 2) if sampler.source.encoded else (tf.int32, 4)
    views = sampler.num_views
    specs: list[tuple[Any, tuple[int, ...]]] = [
        (tf.int64, ()),
        (crops[0], (views, crops[1])),
        (tf.float32, (views, sampler.composition.num_draws)),
    ]

    def sample_here(step: np.ndarray) -> tuple[np.ndarray, ...]:
        try:
            return sampler(int(step))
        except InvalidInput as error:
            if failures is not None:
                failures.append(error)
            raise

    def sample(step: tf.Tensor) -> tuple[tf.Tensor, ...]:
        arrays = tf.numpy_function(sample_here, [step], [dtype for dtype, _ in specs])
        return tuple(
            tf.reshape(array, (sampler.size // chunk, chunk, *shape))
            for array, (_, shape) in zip(arrays, specs, strict=True)
        )

    return sample


def records_per_read(source: Source, size: int, block_size: int = 1) -> int:
    """Records that one call reads: a divisor of a host's batch `size`."""
    of_kind = reading.READ_CHUNK if source.encoded else _PIXEL_CHUNK
    return chunk_size(size, max(of_kind, block_size))


def train_batches(
    sampler: StepSampler,
    *,
    start_step: int,
    stop_step: int,
    host_crop: bool,
    compiled: bool,
    buffers: Buffers,
) -> Iterator[Batch]:
    """See `pipeline.train_batches`."""
    source, size = sampler.source, sampler.size
    chunk = records_per_read(source, size, sampler.block_size)
    failures: list[InvalidInput] = []
    dataset = tf.data.Dataset.range(start_step, stop_step)
    # A step ahead, so that the first reads of a step do not wait for its draws.
    dataset = reading.unbatch(
        dataset.map(in_graph(sampler, chunk, failures), num_parallel_calls=1)
    )
    dataset = reading.read_chunks(source, dataset, buffers.parallel_reads, failures)
    dataset = views(
        source,
        sampler.composition,
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

    # The prefetching pipeline does not say which record failed.
    def fail(_number: int, error: Exception) -> NoReturn:
        raise bad_records.batch_failed(source, error) from error

    return reading.iterate(
        dataset.with_options(reading.options(buffers.pool_size)),
        fail,
        num_batches=stop_step - start_step,
        failures=failures,
    )


def try_views(sampler: StepSampler, index: int, words: np.ndarray) -> None:
    """See `replacing.TryViews`."""
    source, composition = sampler.source, sampler.composition

    def decode(content: tf.Tensor) -> tf.Tensor:
        # As the pipeline does, which decodes no more than the crops need.
        try:
            ends_well = tf_decode.ends_as_jpeg(content)
            shape = tf_decode.image_shape(content, ends_well)
            boxes = composition.boxes_of_files(words[None], shape[None].numpy())[0]
            return tf_decode.decode_crops(content, shape, tf.constant(boxes))[0]
        except Exception:
            tf_decode.decode_rgb(content)  # has a better reason, if it fails too
            raise

    reading.check_record(source, index, decode)


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
            content, label = reading.unpack(source, record, label)
            image, crops = tf_decode.decode_crops(content, shape, crops)
            return augment(image, label, crops, uniform)

        return dataset.map(from_file, num_parallel_calls=threads)

    def from_pixels(
        records: tf.Tensor, labels: tf.Tensor, *rest: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        return augment(*reading.unpack(source, records, labels), *rest)

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

    def locate(
        records: tf.Tensor, labels: tf.Tensor, words: tf.Tensor, uniform: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        # Only the shapes leave this step: stacking the contents would copy them.
        contents = [
            reading.unpack(source, record, label)[0]
            for record, label in zip(
                tf.unstack(records), tf.unstack(labels), strict=True
            )
        ]
        ends = [tf_decode.ends_as_jpeg(content) for content in contents]
        if source.unpack is None:  # one operation for all of them
            ends = tf.unstack(tf_decode.ends_as_jpeg(records))
        shapes = tf.stack(list(map(tf_decode.image_shape, contents, ends)))
        crops = tf.numpy_function(
            composition.boxes_of_files, [words, shapes], tf.int32, stateful=False
        )
        crops = tf.ensure_shape(crops, (*words.shape[:2], 4))
        return records, labels, shapes, crops, uniform

    return reading.unbatch(dataset.map(locate, num_parallel_calls=threads))


def eval_batches(
    source: Source,
    preprocessing: Preprocessing,
    indices: np.ndarray,
    *,
    threads: int | None,
) -> Iterator[Batch]:
    """Prepared images and labels, without the mask; see `pipeline.eval_batches`.

    Args:
      source: what to read.
      preprocessing: of the images.
      indices: int64 [batches, b].
      threads: for reading and decoding; when None as many as can run at a time.
    """
    settings = preprocessing.geometry()

    def prepare(record: tf.Tensor, label: tf.Tensor) -> dict[str, tf.Tensor]:
        image, label = reading.decode_record(source, record, label)
        image = definition.center_crop_and_resize(image, **settings)
        return {"images": image, "labels": label}

    return reading.record_batches(
        source,
        indices.reshape(-1),
        prepare,
        batch_size=indices.shape[1],
        threads=threads,
        prefetch=2,
    )
