"""The largest batch that fits, by bisection."""

import dataclasses
from collections.abc import Callable

# A probe can take minutes, so the search ends when it is this close.
_PRECISION = 1 / 16


@dataclasses.dataclass(frozen=True)
class Probe:
    """One batch that was tried.

    Attributes:
      batch_size: images in the global batch.
      fits: whether the compiler accepts it.
      peak: bytes that a device needs, where the compiler says so.
    """

    batch_size: int
    fits: bool
    peak: float | None


@dataclasses.dataclass(frozen=True)
class LargestBatch:
    """The outcome of a search.

    Attributes:
      batch_size: the largest that was seen to fit; None where none does.
      too_large: the smallest that was seen not to fit; None where the dataset, and not
        the memory, is the limit.
      probes: all that were tried, in that order.
    """

    batch_size: int | None
    too_large: int | None
    probes: tuple[Probe, ...]


def largest_batch(
    try_batch: Callable[[int], Probe], *, start: int, unit: int, limit: int | None
) -> LargestBatch:
    """Doubles or halves until the limit lies between two batches, then bisects.

    It ends when they are one unit or a sixteenth apart. Assumes that what fits still
    fits at a smaller size.

    Args:
      try_batch: compiles for a batch size.
      start: the first to try, a multiple of `unit`.
      unit: what batch sizes are multiples of.
      limit: the largest sensible one.
    """
    probes: list[Probe] = []

    def fits(units: int) -> bool:
        probes.append(try_batch(units * unit))
        return probes[-1].fits

    most = None if limit is None else limit // unit
    low, high = 0, None  # fits, does not fit; in units
    units = start // unit
    while high is None or low == 0:
        if fits(units):
            low = units
            if units == most:
                break
            units = 2 * units if most is None else min(2 * units, most)
        else:
            high = units
            if units == 1:
                break
            units //= 2
    while high is not None and low and high - low > max(1, _PRECISION * low):
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return LargestBatch(
        batch_size=low * unit or None,
        too_large=None if high is None else high * unit,
        probes=tuple(probes),
    )
