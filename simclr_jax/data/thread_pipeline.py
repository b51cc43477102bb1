"""Batches by threads of this process, without TensorFlow; see `pipeline.py`.

For images in memory, and for files that Pillow decodes. Python's lock is released while
views are computed and files decoded, so the threads run side by side. Files are read by
other threads, ahead of those, which never wait for a disk or store that keeps up.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from simclr_jax import host_resources
from simclr_jax.data.buffers import Buffers
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.data.sources import pixels
from simclr_jax.data.sources.base import Batch, Source
from simclr_jax.data.step_sampler import StepSampler, chunk_size

_CHUNK = 128  # images of one task
_EVAL_BATCHES_AHEAD = 2
_Read = TypeVar("_Read")
_Fetched = tuple[pixels.Images, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Pools:
    """Threads that compute, and threads that read; the same for images in memory."""

    computing: ThreadPoolExecutor
    reading: ThreadPoolExecutor

    @classmethod
    def start(cls, source: Source, threads: int, parallel_reads: int) -> "_Pools":
        computing = ThreadPoolExecutor(threads)
        if pixels.are_held(source):
            return cls(computing, computing)
        return cls(computing, ThreadPoolExecutor(parallel_reads))

    def ahead(self, function: Callable[..., _Read], *args: Any) -> Callable[[], _Read]:
        """Starts to read; returns a function that waits for it.

        What is in memory is read only then, by the thread that computes.
        """
        if self.reading is self.computing:
            return functools.partial(function, *args)
        return self.reading.submit(function, *args).result

    def shutdown(self) -> None:
        # Those that read first: the others may be waiting for them.
        self.reading.shutdown(cancel_futures=True)
        self.computing.shutdown(cancel_futures=True)


# Starts the tasks of a batch; returns a function that waits for them.
_Begin = Callable[[_Pools, int], Callable[[], Batch]]


def _in_order(
    begin: _Begin, numbers: range, *, pools: _Pools, ahead: int
) -> Iterator[Batch]:
    """The batches of some numbers, of which `ahead` are computed in advance."""
    waiting: collections.deque[Callable[[], Batch]] = collections.deque()
    try:
        for number in numbers:
            waiting.append(begin(pools, number))
            if len(waiting) > ahead:
                yield waiting.popleft()()
        while waiting:
            yield waiting.popleft()()
    finally:
        pools.shutdown()


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

    def fill(
        sampled: Future,
        fetched: Callable[[], _Fetched],
        part: slice,
        batch: Batch,
    ) -> None:
        indices, crops, draws = (array[part] for array in sampled.result())
        images, batch["labels"][part] = pixels.decode(
            sampler.source, indices, *fetched()
        )
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

    def begin(pools: _Pools, step: int) -> Callable[[], Batch]:
        shape = (size, sampler.num_views)
        batch: Batch = {
            "images": np.empty((*shape, side, side, 3), np.uint8),
            "labels": np.empty(size, np.int32),
        }
        if host_crop:
            batch["draws"] = np.empty((*shape, composition.num_draws), np.float32)
        sampled = pools.reading.submit(sampler, step)
        parts = [slice(start, start + chunk) for start in range(0, size, chunk)]
        fetched = [pools.ahead(_fetch, sampler.source, sampled, part) for part in parts]
        tasks = [
            pools.computing.submit(fill, sampled, wait, part, batch)
            for wait, part in zip(fetched, parts, strict=True)
        ]

        def finish() -> Batch:
            for task in tasks:
                task.result()
            return batch

        return finish

    return _in_order(
        begin,
        range(start_step, stop_step),
        pools=_Pools.start(sampler.source, buffers.threads, buffers.parallel_reads),
        ahead=buffers.prefetch,
    )


def try_views(sampler: StepSampler, index: int, _words: np.ndarray) -> None:
    """See `replacing.TryViews`."""
    # The whole image is decoded, whatever its crops.
    pixels.read(sampler.source, np.array([index]))


def _fetch(source: Source, sampled: Future, part: slice) -> _Fetched:
    """What a part of a batch needs, once it is known which images are in it."""
    return pixels.fetch(source, sampled.result()[0][part])


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

    def prepare(
        part: np.ndarray, fetched: Callable[[], _Fetched]
    ) -> tuple[np.ndarray, np.ndarray]:
        images, labels = pixels.decode(source, part, *fetched())
        return preprocessing(images), labels

    def begin(pools: _Pools, number: int) -> Callable[[], Batch]:
        chunks = np.split(indices[number], range(_CHUNK, indices.shape[1], _CHUNK))
        fetched = [pools.ahead(pixels.fetch, source, part) for part in chunks]
        tasks = [
            pools.computing.submit(prepare, part, wait)
            for part, wait in zip(chunks, fetched, strict=True)
        ]

        def finish() -> Batch:
            images, labels = zip(*(task.result() for task in tasks), strict=True)
            return {"images": np.concatenate(images), "labels": np.concatenate(labels)}

        return finish

    threads = threads or host_resources.num_cpus()
    return _in_order(
        begin,
        range(len(indices)),
        pools=_Pools.start(source, threads, threads),
        ahead=_EVAL_BATCHES_AHEAD,
    )
