"""What each stage of the input pipeline costs, in processor time."""

import time

import numpy as np

from simclr_jax.data import pipeline
from simclr_jax.data.sampling import draws
from simclr_jax.data.sources import base
from simclr_jax.data.sources.base import Source
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
    secs: float,
) -> dict[str, float]:
    """Processor seconds of each stage, an image with all its views.

    Every stage is measured with all stages before it, in one thread, and its own share
    is the difference; stages take turns, and medians count.

    Args:
      source: the training images.
      composition: what a view is made of.
      seed: of order and draws.
      batch_size: images in a host's batch, all of whose draws are made at once.
      num_views: V.
      secs: to spend on each stage, about.

    Returns:
      Seconds by stage; stages that there are none of are left out. 'colour' is all but
      crop and blur.
    """
    iterators = {
        name: iter(dataset)
        for name, dataset in _datasets(
            source, composition, seed, batch_size, num_views
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
) -> dict[str, tf.data.Dataset]:
    """The pipeline up to each stage; an element stands for a batch."""
    plan = pipeline.Plan(
        source, composition, seed, batch_size, 1, num_views, slice(0, batch_size)
    )
    chunk = pipeline.chunk_size(source, batch_size)
    chunks = batch_size // chunk
    elements = batch_size if source.encoded else chunks
    planned = tf.data.Dataset.range(2**31).map(plan.in_graph(chunk)).unbatch()
    read = pipeline.read_chunks(source, planned, None)
    stages = {"read": read.map(lambda *arrays: tf.size(arrays[1]))}
    if source.encoded:
        stages["decode"] = read.unbatch().map(
            lambda record, label, seeds, _: _decoded(source, composition, record, seeds)
        )
    make = pipeline.files_to_views if source.encoded else pipeline.pixels_to_views
    parts = {
        "crop": composition.crop_alone(),
        "colour": composition.without("blur"),
        "blur": composition,
    }
    for name, part in parts.items():
        if name != "blur" or "blur" in composition.operations:
            views = make(source, part, False, _of_part(read, composition, part), None)
            stages[name] = views.map(_count)
    of_batch = {
        # The answers of a batch, not its pixels.
        name: stage.batch(chunks if name == "read" else elements).map(tf.reduce_sum)
        for name, stage in stages.items()
    }
    whole = make(source, composition, False, read, None).batch(elements)
    of_batch["pack"] = whole.map(_count)
    options = tf.data.Options()
    options.autotune.enabled = False
    # Nothing may work ahead while another stage is being measured.
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
        found: tf.Tensor, labels: tf.Tensor, crops: tf.Tensor, uniform: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        own = draws.by_operation(uniform, composition.operations)
        kept = [own[name] for name in part.operations] or [uniform[..., :0]]
        return found, labels, crops, tf.concat(kept, axis=-1)

    return read.map(chosen)


def _decoded(
    source: Source, composition: Composition, record: tf.Tensor, seeds: tf.Tensor
) -> tf.Tensor:
    content, _ = source.unpack(record, tf.constant(base.NO_LABEL))
    image, boxes = base.decode_crops(
        content, lambda shape: pipeline.draw_boxes(composition, shape, seeds)
    )
    return 1 + _nothing(image) + _nothing(boxes - boxes)


def _count(batch: dict[str, tf.Tensor]) -> tf.Tensor:
    return tf.size(batch["labels"]) + _nothing(batch["images"])


def _nothing(pixels: tf.Tensor) -> tf.Tensor:
    """0, of which TensorFlow cannot know that it needs no pixels."""
    return tf.minimum(tf.cast(tf.reshape(pixels, (-1,))[0], tf.int32), 0)
