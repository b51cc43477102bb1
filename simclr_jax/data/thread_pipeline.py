"""Batches by threads of this process, without TensorFlow; see `pipeline.py`.

For images in memory, and for files that Pillow decodes. Python's lock is released while
views are computed and files decoded, so the threads run side by side.
"""

import collections
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from simclr_jax import host_resources
from simclr_jax.data.buffers import Buffers
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.data.sources import pixels
from simclr_jax.data.sources.base import Batch, Source
from simclr_jax.data.step_sampler import StepSampler, chunk_size

_CHUNK = 128  # images of one task
_EVAL_BATCHES_AHEAD = 2

# Starts the tasks of a batch; returns a function that waits for them.
_Begin = Callable[[ThreadPoolExecutor, int], Callable[[], Batch]]


def _in_order(
    begin: _Begin, numbers: range, *, threads: int, ahead: int
) -> Iterator[Batch]:
    """The batches of some numbers, of which `ahead` are computed in advance."""
    pool = ThreadPoolExecutor(threads)
    waiting: collections.deque[Callable[[], Batch]] = collections.deque()
    try:
        for number in numbers:
            waiting.append(begin(pool, number))
            if len(waiting) > ahead:
                yield waiting.popleft()()
        while waiting:
            yield waiting.popleft()()
    finally:
        pool.shutdown(cancel_futures=True)


def train_batches(
    sampler: StepSampler,
    *,
    start_step: int,
    stop_step: int,
    host_crop: bool,
    buffers: Buffers,
) -> Iterator[Batch]:
    """See `pipeline.train_batches`; the host's operations must all be compiled."""
    # Imported here, since it needs Numba.
    from simclr_jax.data.views import host_program

    composition = sampler.composition
    on_host = composition.crop_alone() if host_crop else composition
    compute = host_program.compose(on_host)
    size, side = sampler.size, composition.image_size
    chunk = chunk_size(size, _CHUNK)

    def fill(sampled: Future, part: slice, batch: Batch) -> None:
        indices, crops, draws = (array[part] for array in sampled.result())
        images, batch["labels"][part] = pixels.read(sampler.source, indices)
        if sampler.source.encoded:
            shapes = np.array([image.shape[:2] for image in images])
            crops = composition.boxes_of_files(crops, shapes)
        if host_crop:
            batch["draws"][part] = draws
            draws = draws[..., :0]
        views = batch["images"][part]
        if isinstance(images, np.ndarray):
            compute(images, crops, draws, views)
            return
        for n, image in enumerate(images):
            one = slice(n, n + 1)
            compute(image[None], crops[one], draws[one], views[one])

    def begin(pool: ThreadPoolExecutor, step: int) -> Callable[[], Batch]:
        shape = (size, sampler.num_views)
        batch: Batch = {
            "images": np.empty((*shape, side, side, 3), np.uint8),
            "labels": np.empty(size, np.int32),
        }
        if host_crop:
            batch["draws"] = np.empty((*shape, composition.num_draws), np.float32)
        sampled = pool.submit(sampler, step)
        tasks = [
            pool.submit(fill, sampled, slice(start, start + chunk), batch)
            for start in range(0, size, chunk)
        ]

        def finish() -> Batch:
            for task in tasks:
                task.result()
            return batch

        return finish

    return _in_order(
        begin,
        range(start_step, stop_step),
        threads=buffers.threads,
        ahead=buffers.prefetch,
    )


def eval_batches(
    source: Source,
    preprocessing: Preprocessing,
    indices: np.ndarray,
    *,
    threads: int | None,
) -> Iterator[Batch]:
    """Prepared images and labels, without the mask; see `pipeline.eval_batches`.

    Args:
      source: one for which `pixels.are_records`.
      preprocessing: of the images.
      indices: int64 [batches, b].
      threads: for decoding and preparing; when None as many as can run at a time.
    """

    def prepare(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, labels = pixels.read(source, part)
        return preprocessing(images), labels

    def begin(pool: ThreadPoolExecutor, number: int) -> Callable[[], Batch]:
        chunks = np.split(indices[number], range(_CHUNK, indices.shape[1], _CHUNK))
        tasks = [pool.submit(prepare, part) for part in chunks]

        def finish() -> Batch:
            images, labels = zip(*(task.result() for task in tasks), strict=True)
            return {"images": np.concatenate(images), "labels": np.concatenate(labels)}

        return finish

    return _in_order(
        begin,
        range(len(indices)),
        threads=threads or host_resources.num_cpus(),
        ahead=_EVAL_BATCHES_AHEAD,
    )
