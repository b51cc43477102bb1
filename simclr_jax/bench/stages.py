"""What each stage of the input pipeline costs, in processor time."""

import functools
import time

import numpy as np

from simclr_jax.data import tf_decode, tf_pipeline
from simclr_jax.data.sampling import draws
from simclr_jax.data.sources import reading
from simclr_jax.data.sources.base import Source
from simclr_jax.data.step_sampler import StepSampler
from simclr_jax.data.tf_cpu import tf
from simclr_jax.data.views.composition import Composition

# In the order in which an image passes through them.
STAGES = ("read", "decode", "crop", "colour", "blur", "pack")


def measure(
    source: Source,
    composition: Composition,
    *,
    seed: int,
    batch_size: int,
    num_views: int,
    compiled: bool,
    secs: float,
) -> dict[str, float]:
    """Processor seconds of each stage, an image with all its views.

    Every stage is measured with all stages before it, in one thread, and its own share
    is the difference of medians; stages take turns.

    Args:
      source: the training images.
      composition: of the views.
      seed: of order and draws.
      batch_size: images in a host's batch.
      num_views: V.
      compiled: the form of the views; see `host.compose`.
      secs: to spend on each stage, approximately.

    Returns:
      Seconds by stage, without the stages that the source or the composition lacks.
      'colour' is everything but crop and blur.
    """
    iterators = {
        name: iter(dataset)
        for name, dataset in _datasets(
            source, composition, seed, batch_size, num_views, compiled
        ).items()
    }
    for iterator in iterators.values():
        next(iterator)  # compiles
    totals: dict[str, list[float]] = {name: [] for name in iterators}
    deadline = time.monotonic() + secs * len(iterators)
    while time.monotonic() < deadline or len(totals["pack"]) < 3:
        for name, iterator in iterators.items():
            start = time.process_time()
            next(iterator)
            totals[name].append((time.process_time() - start) / batch_size)
    costs, before = {}, 0.0
    for name, values in totals.items():
        total = float(np.median(values))
        costs[name], before = max(total - before, 0.0), max(total, before)
    return costs


def _datasets(
    source: Source,
    composition: Composition,
    seed: int,
    batch_size: int,
    num_views: int,
    compiled: bool,
) -> dict[str, tf.data.Dataset]:
    """The pipeline up to each stage; an element is a batch."""
    sampler = StepSampler(
        source, composition, seed, batch_size, 1, num_views, slice(0, batch_size)
    )
    chunk = tf_pipeline.records_per_read(source, batch_size)
    chunks = batch_size // chunk
    elements = batch_size if source.encoded else chunks
    samples = (
        tf.data.Dataset.range(2**31).map(tf_pipeline.in_graph(sampler, chunk)).unbatch()
    )
    read = reading.read_chunks(source, samples, None)
    stages = {"read": read.map(lambda *arrays: tf.size(arrays[1]))}
    if source.encoded:
        located = tf_pipeline.with_boxes(source, composition, read, None)
        stages["decode"] = located.map(functools.partial(_decoded, source))
    parts = {
        "crop": composition.crop_alone(),
        "colour": composition.without("blur"),
        "blur": composition,
    }
    views = functools.partial(
        tf_pipeline.views, source, host_crop=False, compiled=compiled, threads=None
    )
    for name, part in parts.items():
        if name != "blur" or "blur" in composition.operations:
            stages[name] = views(part, _of_part(read, composition, part)).map(_count)
    of_batch = {
        # Only the counts of a batch, not its pixels.
        name: stage.batch(chunks if name == "read" else elements).map(tf.reduce_sum)
        for name, stage in stages.items()
    }
    whole = views(composition, read).batch(elements)
    of_batch["pack"] = whole.map(_count)
    options = tf.data.Options()
    options.autotune.enabled = False
    # Nothing may run ahead while another stage is being measured.
    options.experimental_optimization.apply_default_optimizations = False
    options.experimental_optimization.inject_prefetch = False
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    return {name: dataset.with_options(options) for name, dataset in of_batch.items()}


def _of_part(
    read: tf.data.Dataset, composition: Composition, part: Composition
) -> tf.data.Dataset:
    """Only the draws of a part of the composition."""

    def chosen(
        records: tf.Tensor, labels: tf.Tensor, crops: tf.Tensor, uniform: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        by_name = draws.by_operation(uniform, composition.operations)
        kept = [by_name[name] for name in part.operations] or [uniform[..., :0]]
        return records, labels, crops, tf.concat(kept, axis=-1)

    return read.map(chosen)


def _decoded(
    source: Source, record: tf.Tensor, label: tf.Tensor, *rest: tf.Tensor
) -> tf.Tensor:
    shape, crops, _ = rest
    content, _ = reading.unpack(source, record, label)
    image, boxes = tf_decode.decode_crops(content, shape, crops)
    return 1 + _nothing(image) + _nothing(boxes - boxes)


def _count(batch: dict[str, tf.Tensor]) -> tf.Tensor:
    return tf.size(batch["labels"]) + _nothing(batch["images"])


def _nothing(pixels: tf.Tensor) -> tf.Tensor:
    """0, computed so that TensorFlow cannot optimise the pixels away."""
    return tf.minimum(tf.cast(tf.reshape(pixels, (-1,))[0], tf.int32), 0)
