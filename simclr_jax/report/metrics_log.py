"""The metrics of a run as curves, read line by line, and curves with fewer points."""

import array
import dataclasses
import json
import math
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from simclr_jax.runs import atomic
from simclr_jax.runs.metrics_writer import FIRST_OF_A_START

# Steps that a float holds exactly; anything larger is damage.
_MOST_STEPS = 2**53


@dataclasses.dataclass(frozen=True)
class Curve:
    """A metric over the steps at which it was logged.

    Attributes:
      steps: int64 [N], increasing.
      values: float64 [N]; may be NaN or infinite.
    """

    steps: np.ndarray
    values: np.ndarray

    @property
    def last(self) -> float:
        """The newest value."""
        return float(self.values[-1])

    def first_not_finite(self) -> int | None:
        """The first step whose value is NaN or infinite; None where all are finite."""
        bad = np.flatnonzero(~np.isfinite(self.values))
        return int(self.steps[bad[0]]) if len(bad) else None

    def thinned(self, most: int) -> "Curve":
        """At most about `most` points, among them the extremes of each stretch.

        The steps are cut into stretches of equal length; of each the smallest and the
        largest value stay, and one that is not finite if there is one. So spikes stay,
        however narrow they are.
        """
        size = len(self.steps)
        if size <= most:
            return self
        stretches = max(1, most // 2)
        span = int(self.steps[-1] - self.steps[0]) + 1
        number = (self.steps - self.steps[0]) * stretches // span
        finite = np.isfinite(self.values)
        keep = {0, size - 1, *_firsts(number, np.flatnonzero(~finite)).tolist()}
        places = np.flatnonzero(finite)
        if len(places):
            starts = np.flatnonzero(np.diff(number[places], prepend=-1))
            counts = np.diff(starts, append=len(places))
            values = self.values[places]
            for extreme in (np.minimum, np.maximum):
                of_stretch = np.repeat(extreme.reduceat(values, starts), counts)
                keep |= {*_firsts(number, places[values == of_stretch]).tolist()}
        chosen = np.array(sorted(keep))
        return Curve(self.steps[chosen], self.values[chosen])


def _firsts(number: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Of increasing places, the first of each stretch."""
    return places[np.flatnonzero(np.diff(number[places], prepend=-1))]


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What a run has logged.

    Attributes:
      steps: int64 [N], increasing: those with a line.
      curves: by the name of the metric.
      words: metrics that are words, by name: (step, words) where they change.
      starts: steps that were the first of a start of the run.
      num_damaged: lines that are no metrics; the last one does not count, since a run
        that goes on may be writing it.
    """

    steps: np.ndarray
    curves: Mapping[str, Curve]
    words: Mapping[str, list[tuple[int, str]]]
    starts: list[int]
    num_damaged: int

    @property
    def last_step(self) -> int:
        """The newest step with a line; 0 where there is none."""
        return int(self.steps[-1]) if len(self.steps) else 0

    def last(self, name: str) -> float | None:
        """The newest value of a metric; None where it was never logged."""
        curve = self.curves.get(name)
        return None if curve is None else curve.last

    def seconds(self, batch_size: int) -> np.ndarray | None:
        """Time spent in steps until each of `steps`, float64 [N].

        It follows from the logged rates, so saving and measuring do not count.

        Args:
          batch_size: images in a step.

        Returns:
          None where no rates were logged.
        """
        rates = self.curves.get("images_per_sec")
        if rates is None or not len(self.steps):
            return None
        rate = np.interp(self.steps, rates.steps, rates.values)
        with np.errstate(divide="ignore", invalid="ignore"):
            secs = np.where(rate > 0, batch_size / rate, 0.0)
        secs = np.nan_to_num(secs, nan=0.0, posinf=0.0, neginf=0.0)
        count = np.diff(self.steps, prepend=0)
        # The rate at the first step of a start is that of this one step, mostly
        # compilation; steps before it that have no line were like those before them.
        first = np.isin(self.steps, np.array([*self.starts, self.steps[0]]))
        before = np.concatenate([[0.0], secs[:-1]])
        spent = np.where(first, secs + (count - 1) * before, count * secs)
        return np.cumsum(spent)


class _Columns:
    """Values of lines by metric, in little memory."""

    def __init__(self) -> None:
        self.steps = array.array("q")
        self.numbers: dict[str, tuple[array.array, array.array]] = {}
        self.words: dict[str, list[tuple[int, str]]] = {}
        self.starts: list[int] = []

    def add(self, record: dict[str, Any]) -> None:
        """Takes the object of a line; ValueError, TypeError or KeyError if it is none.

        Every start writes its first step; the lines of later steps were dropped.
        """
        step = operator.index(record["step"])
        if not 0 <= step <= _MOST_STEPS:
            raise ValueError(step)
        row = len(self.steps)
        self.steps.append(step)
        numbers = self.numbers
        for name, value in record.items():
            kind = type(value)
            if kind is float or kind is int:
                if name not in numbers:
                    numbers[name] = array.array("q"), array.array("d")
                rows, values = numbers[name]
                try:
                    values.append(value)
                except OverflowError:  # an integer of hundreds of digits
                    continue
                rows.append(row)
            elif kind is str:
                changes = self.words.setdefault(name, [])
                if not changes or changes[-1][1] != value:
                    changes.append((row, value))
        if record.get("bottleneck") == FIRST_OF_A_START:
            self.starts.append(row)

    def close(self, num_damaged: int) -> Metrics:
        """The metrics; of a step that is there twice the last line counts."""
        steps = np.asarray(self.steps, np.int64)
        curves = {}
        for name, (rows, values) in self.numbers.items():
            if name != "step":
                at = steps[np.asarray(rows, np.int64)]
                place = _last_of_each(at)
                curves[name] = Curve(at[place], np.asarray(values, np.float64)[place])
        kept = _last_of_each(steps)
        is_kept = np.zeros(len(steps), bool)
        is_kept[kept] = True
        return Metrics(
            steps=steps[kept],
            curves=curves,
            words={
                name: [(int(steps[row]), text) for row, text in changes]
                for name, changes in self.words.items()
            },
            starts=sorted({int(steps[row]) for row in self.starts if is_kept[row]}),
            num_damaged=num_damaged,
        )


def _last_of_each(steps: np.ndarray) -> np.ndarray:
    """Places of the last of equal steps, in the order of the steps."""
    order = np.argsort(steps, kind="stable")
    ordered = steps[order]
    is_last = np.ones(len(steps), bool)
    is_last[:-1] = ordered[1:] != ordered[:-1]
    return order[is_last]


def read(path: epath.Path) -> Metrics:
    """The metrics of a file; a run that goes on may be writing it.

    Raises:
      ConfigError: it cannot be read.
    """
    with atomic.one_line(f"file {path}: cannot be read"):
        if not path.exists():
            return parse(())
        with path.open("rb") as lines:
            return parse(lines)


def parse(lines: Iterable[bytes]) -> Metrics:
    """The metrics of lines; those that are damaged or cut short are left out."""
    columns, num_damaged, is_last_damaged = _Columns(), 0, False
    for line in lines:
        is_last_damaged = False
        try:
            columns.add(json.loads(line.decode()))
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
            # A kill may cut the last line short, and a crash may leave zeros.
            if line.strip(b"\0 \r\t\n"):
                num_damaged, is_last_damaged = num_damaged + 1, True
    return columns.close(num_damaged - is_last_damaged)


def rounded(value: float) -> float | None:
    """A value with the digits that a chart can show; None if it is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
