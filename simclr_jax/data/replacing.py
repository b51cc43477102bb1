"""Other images in the place of records that turn out to be no images.

Where a record of the training images cannot be read as an image, the next one of the
dataset that can takes its place: index + 1, modulo their number. It keeps its own label
and gets the draws of the place. So the batch of a step remains a pure function of (what
the dataset holds, seed, step). What is known of bad records only saves time: before a
record that was bad is replaced, it is tried again.

Nothing is checked as long as nothing fails. Where a batch fails, the records of its
step are tried one by one, and the pipeline starts again at that step.
"""

import dataclasses
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from simclr_jax.data.sources.bad_records import BatchFailed, OnBadRecord
from simclr_jax.data.sources.base import Batch
from simclr_jax.data.step_sampler import StepSampler
from simclr_jax.errors import BadRecord, DataError

# Tries to make the views of image `index` from the keys uint32 [V, 2] of their boxes;
# raises a BadRecord, or another DataError if the record may be intact.
TryViews = Callable[[StepSampler, int, np.ndarray], None]


@dataclasses.dataclass(frozen=True)
class ReplacingSampler(StepSampler):
    """A sampler that replaces bad records; for sources of image files.

    Attributes beside those of `StepSampler`:
      try_views: tries a record.
      on_bad_record: called with each bad record once, from any thread.
      known: numbers of records that were bad at some time; grows.
      lock: of `known`.
    """

    try_views: TryViews
    on_bad_record: OnBadRecord
    known: set[int]
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `StepSampler`, with the numbers of the replacing images.

        Raises:
          DataError: a record that was bad cannot be read, and may be intact; or no
            record can be read; or by `on_bad_record`.
        """
        indices, words, uniform = super().__call__(step)
        if self.known:
            with self.lock:
                known = np.array([*self.known])
            indices = indices.copy()
            for place in np.flatnonzero(np.isin(indices, known)):
                indices[place] = self._good(int(indices[place]), words[place], step)
        return indices, words, uniform

    def find(self, step: int, threads: int) -> None:
        """Looks for further bad records among those of a step.

        Args:
          step: 0-based.
          threads: for reading and decoding.

        Raises:
          DataError: as the call.
        """
        indices, words, _ = self(step)
        with ThreadPoolExecutor(threads) as pool:
            errors = list(pool.map(self._error, indices.tolist(), words))
        for error in filter(None, errors):
            self._note(error, step)

    def _good(self, index: int, words: np.ndarray, step: int) -> int:
        """The first good record from `index` on."""
        count = self.source.num_examples
        for candidate in range(index, index + count):
            error = self._error(candidate % count, words)
            if error is None:
                return candidate % count
            self._note(error, step)
        raise DataError(
            f"{self.source.name}: none of its {count} images can be read; the last "
            f"one tried is {error}"
        )

    def _error(self, index: int, words: np.ndarray) -> BadRecord | None:
        try:
            self.try_views(self, index, words)
        except BadRecord as error:
            return error
        return None

    def _note(self, error: BadRecord, step: int) -> None:
        with self.lock:
            is_new = error.index not in self.known
            self.known.add(error.index)
        if is_new:
            self.on_bad_record(error, step + 1)


def train_batches(
    sampler: StepSampler,
    begin: Callable[[StepSampler, int], Iterator[Batch]],
    try_views: TryViews,
    *,
    start_step: int,
    on_bad_record: OnBadRecord,
    known: Collection[int],
    threads: int,
) -> Iterator[Batch]:
    """Batches of a pipeline that starts again where it finds bad records.

    Args:
      sampler: of image files.
      begin: starts the pipeline with a sampler at a step.
      try_views: tries a record, by the decoder of the pipeline.
      start_step: the first step.
      on_bad_record: called with each bad record that is not in `known`.
      known: numbers of records that were bad before.
      threads: for trying records.

    Returns:
      An iterator over the batches of the steps. It raises DataErrors as
      `ReplacingSampler`, and one if a batch fails and none of its records is bad.
    """
    fields = {f.name: getattr(sampler, f.name) for f in dataclasses.fields(sampler)}
    replacing = ReplacingSampler(
        **fields, try_views=try_views, on_bad_record=on_bad_record, known=set(known)
    )
    first = begin(replacing, start_step)

    def all_batches() -> Iterator[Batch]:
        step, batches, failed_step = start_step, first, -1
        while True:
            count = len(replacing.known)
            try:
                for batch in batches:
                    yield batch
                    step += 1
                return
            except (BadRecord, BatchFailed):
                replacing.find(step, threads)
                # The sampler, which runs ahead, may have found it. Otherwise once more:
                # the file may have been half written.
                if len(replacing.known) == count and failed_step == step:
                    raise
                failed_step = step
            batches = begin(replacing, step)

    return all_batches()
