"""Images that cannot be read: found one by one, where a batch of them fails."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jax.experimental import multihost_utils

from simclr_jax import host_resources
from simclr_jax.data import pipeline
from simclr_jax.data.sources.bad_records import BatchFailed
from simclr_jax.data.sources.base import Batch, Source
from simclr_jax.errors import BadRecord, DataError, InvalidInput
from simclr_jax.parallel import processes

_BAD, _FAILED = "bad", "failed"


def agreed(batches: Iterator[Batch]) -> Iterator[Batch]:
    """This process's slices of batches, as long as all processes have theirs.

    Raises:
      BatchFailed: an image of some process is bad, on all processes.
      InvalidInput: a process cannot read an image that may be intact, on all.
    """
    while True:
        batch: Batch | None = None
        error: InvalidInput | None = None
        try:
            batch = next(batches, None)
        except InvalidInput as raised:
            error = raised
        kind = ""
        if error is not None:
            is_bad = isinstance(error, BadRecord | BatchFailed)
            kind = _BAD if is_bad else f"{_FAILED} {processes.name()}: {error}"
        kinds = processes.gather_texts(kind)
        if any(kind.startswith(_FAILED) for kind in kinds):
            (first, *_) = (kind for kind in kinds if kind.startswith(_FAILED))
            if error is not None and kind.startswith(_FAILED):
                raise error
            raise DataError(f"process{first.removeprefix(_FAILED)}")
        if _BAD in kinds:
            raise BatchFailed(str(error or "another process could not read a batch"))
        if batch is None:
            return
        yield batch


def find(source: Source, indices: np.ndarray) -> dict[int, str]:
    """Tries images one by one; every process has to call it.

    Args:
      source: of the images.
      indices: their numbers, which the processes divide among them.

    Returns:
      Why images cannot be read, by number, ascending; the same on all processes.

    Raises:
      InvalidInput: an image cannot be read, and may be intact.
    """
    with processes.all_or_none():
        own = _try(source, indices[jax.process_index() :: jax.process_count()])
    if jax.process_count() == 1:
        return own
    is_bad = np.isin(indices, [*own])
    bad = indices[multihost_utils.process_allgather(is_bad).any(axis=0)]
    with processes.all_or_none():
        others = _try(source, np.setdiff1d(bad, [*own]))
    return dict(sorted((own | others).items()))


def _try(source: Source, indices: np.ndarray) -> dict[int, str]:
    def reason(index: int) -> str | None:
        try:
            pipeline.check_image(source, index)
        except BadRecord as error:
            return error.reason
        return None

    with ThreadPoolExecutor(host_resources.num_cpus()) as pool:
        reasons = pool.map(reason, indices.tolist())
        return {
            index: reason
            for index, reason in zip(indices.tolist(), reasons, strict=True)
            if reason is not None
        }
