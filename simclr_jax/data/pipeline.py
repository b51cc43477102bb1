"""From a source to batches of NumPy arrays on this host.

Two pipelines compute the same batches. `thread_pipeline` takes images in memory and
needs no TensorFlow; `tf_pipeline` takes everything else.
"""

import functools
import math
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np

from simclr_jax.data import optional, replacing, thread_pipeline
from simclr_jax.data.buffers import Buffers
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.data.sampling.balanced import BalancedOrder
from simclr_jax.data.sources import bad_records, pixels
from simclr_jax.data.sources.base import Batch, Source
from simclr_jax.data.step_sampler import StepSampler, slice_of_host
from simclr_jax.data.views.composition import Composition
from simclr_jax.errors import DataError


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
    on_bad_record: bad_records.OnBadRecord = bad_records.stop,
    known_bad: Collection[int] = (),
    balanced: BalancedOrder | None = None,
) -> Iterator[Batch]:
    """Training batches of steps start_step, ..., stop_step - 1.

    The batch of a step depends on (source, composition, seed, step, batch_size,
    block_size) alone; starting at any step costs the same. The next good image replaces
    one that cannot be read, if `on_bad_record` allows it; see `replacing.py`.

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
        see `views/host.py`.
      buffers: threads and memory; chosen for this machine when None.
      on_bad_record: called once with each image that cannot be read, and the step that
        needs it; by default raises an error with both.
      known_bad: numbers of images of which it is known, which changes no batch.
      balanced: the order, where all classes are to be equally frequent; with a
        `block_size` of 1.

    Returns:
      An iterator over this host's contiguous slices: images uint8
      [B / num_hosts, V, S, S, 3] and labels int32 [B / num_hosts], -1 where there are
      none; with `host_crop` also the draws of the remaining operations, float32
      [B / num_hosts, V, D]. It raises what `on_bad_record` raises; a StoreFailed, or
      another DataError, if a record cannot be read and may be intact.

    Raises:
      DataError: the dataset is smaller than a batch, or needs TensorFlow, which is not
        installed.
    """
    host_slice = slice_of_host(batch_size, host_index, num_hosts)
    sampler = StepSampler(
        source,
        composition,
        seed,
        batch_size,
        block_size,
        num_views,
        host_slice,
        balanced=balanced,
    )
    sampler.check()
    buffers = buffers or Buffers.choose(
        batch_bytes=sampler.size * num_views * composition.image_size**2 * 3,
        block_size=block_size,
    )
    on_host = composition.crop_alone() if host_crop else composition
    settings: dict[str, Any] = {
        "stop_step": stop_step,
        "host_crop": host_crop,
        "buffers": buffers,
    }
    begin: Callable[..., Iterator[Batch]]
    try_views: replacing.TryViews
    if compiled and _in_threads(source) and not _not_compiled(on_host):
        begin = functools.partial(thread_pipeline.train_batches, **settings)
        try_views = thread_pipeline.try_views
        reads_files = not pixels.are_held(source)
    else:
        _require_tensorflow(f"dataset {source.name}")
        # Imported here, since it needs TensorFlow.
        from simclr_jax.data import tf_pipeline

        settings["compiled"] = compiled
        begin = functools.partial(tf_pipeline.train_batches, **settings)
        try_views = tf_pipeline.try_views
        reads_files = source.encoded
    if not reads_files:
        return begin(sampler, start_step=start_step)
    return replacing.train_batches(
        sampler,
        lambda sampler, step: begin(sampler, start_step=step),
        try_views,
        start_step=start_step,
        on_bad_record=on_bad_record,
        known=known_bad,
        threads=max(buffers.threads, buffers.parallel_reads),
    )


def _in_threads(source: Source) -> bool:
    if pixels.are_held(source):
        return True
    return pixels.are_records(source) and not optional.is_installed("tensorflow")


def _not_compiled(composition: Composition) -> list[str]:
    # Imported here, since it needs Numba.
    from simclr_jax.data.views import host_program

    return host_program.not_compiled(composition)


def _require_tensorflow(what: str) -> None:
    if not optional.is_installed("tensorflow"):
        raise DataError(optional.install_hint(what, "TensorFlow"))


def eval_batches(
    source: Source,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    host_index: int = 0,
    num_hosts: int = 1,
    num_parts: int = 1,
    threads: int | None = None,
    images: np.ndarray | None = None,
) -> Iterator[Batch]:
    """All images once, in batches of one size.

    The dataset is divided into `num_parts` consecutive parts. Slice i of each batch has
    the next images of part i; with one part, batches are in the order of the dataset.

    Args:
      source: what to read.
      preprocessing: of the images.
      batch_size: images in the global batch; the last part is filled up.
      host_index: this host's number.
      num_hosts: hosts that share the global batch.
      num_parts: divides `batch_size`; such as the number of devices, which then get
        consecutive images each.
      threads: for reading and decoding; when None as many as can run at a time.
      images: int64, the numbers of the images to read, in this order, instead of all.

    Yields:
      This host's slice: images float32 [B / num_hosts, S, S, 3], labels int32, and
      `mask` bool, False at the entries that fill up the last part.

    Raises:
      DataError: a record cannot be read, and the message names it; or the dataset needs
        TensorFlow, which is not installed.
    """
    host_slice = slice_of_host(batch_size, host_index, num_hosts)
    count = source.num_examples if images is None else len(images)
    num_batches = math.ceil(count / batch_size)
    positions = (
        np.arange(num_batches * batch_size)
        .reshape(num_parts, num_batches, -1)
        .transpose(1, 0, 2)
        .reshape(num_batches, batch_size)
    )
    mask = (positions < count)[:, host_slice]
    # Filled up with the last image, which is decoded again and then masked out.
    indices = np.minimum(positions, count - 1)[:, host_slice]
    if images is not None:
        indices = images[indices]
    if _in_threads(source):
        prepared_batches = thread_pipeline.eval_batches
    else:
        _require_tensorflow(f"dataset {source.name}")
        from simclr_jax.data import tf_pipeline

        prepared_batches = tf_pipeline.eval_batches
    batches = prepared_batches(source, preprocessing, indices, threads=threads)
    for batch, own_mask in zip(batches, mask, strict=True):
        yield {**batch, "mask": own_mask}


def check_image(source: Source, index: int) -> None:
    """Reads and decodes one image, as the pipelines do.

    Args:
      source: what to read.
      index: of the image.

    Raises:
      BadRecord: it cannot be read as an image.
      DataError: it cannot be read, and may be intact.
    """
    if _in_threads(source):
        pixels.read(source, np.array([index]))
        return
    # Imported here, since it needs TensorFlow.
    from simclr_jax.data.sources import reading

    reading.check_record(source, index)
