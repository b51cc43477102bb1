"""Which findings of the paper hold, by 95 % intervals over seeds."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from simclr_jax.study.cells import Cell
from simclr_jax.study.definitions import Finding

CONFIDENCE = 0.95
HELD, NOT_HELD, UNDECIDED = "held", "not held", "undecided"
# A cell and its result; None where it is not complete.
Results = Sequence[tuple[Cell, dict[str, Any] | None]]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the cells say of a finding.

    Attributes:
      finding: the statement.
      word: 'held', 'not held' or 'undecided'.
      estimate: the contrast's mean over seeds; NaN without a complete seed.
      low: the lower end of its interval; -inf with fewer than two seeds.
      high: the upper end.
      num_seeds: that have all cells of the contrast.
    """

    finding: Finding
    word: str
    estimate: float
    low: float
    high: float
    num_seeds: int


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, lower, upper end) of Student's interval of the mean of a few values.

    Without values the mean is NaN; with fewer than two the interval is infinite.
    """
    count = len(values)
    mean = float(np.mean(values)) if count else float("nan")
    if count < 2:
        return mean, -float("inf"), float("inf")
    quantile = special.stdtrit(count - 1, (1 + CONFIDENCE) / 2)
    half = float(quantile * np.std(values, ddof=1) / np.sqrt(count))
    return mean, mean - half, mean + half


def by_seed(finding: Finding, results: Results) -> list[float]:
    """The contrast of each seed that has all its cells, so paired by seed."""
    values = []
    for seed in sorted({cell.seed for cell, _ in results}):
        of_seed = [(c.point, r) for c, r in results if c.seed == seed]
        total, complete = 0.0, True
        for term in finding.contrast:
            found = [r for point, r in of_seed if term.where(point)]
            figures = [(r or {}).get("metrics", {}).get(term.metric) for r in found]
            complete &= bool(figures) and None not in figures
            if complete:
                total += term.weight * float(np.mean(figures))
        if complete:
            values.append(total)
    return values


def judge(finding: Finding, results: Results) -> Verdict:
    """The verdict on a finding.

    'held' where the interval of the contrast lies above 0, 'not held' where it lies
    below, 'undecided' where it contains 0. Of a finding that there is no difference:
    'held' where the interval lies within the largest one that counts as none, 'not
    held' where it lies outside.
    """
    values = by_seed(finding, results)
    estimate, low, high = interval(values)
    margin = finding.within
    if margin is None:
        held, not_held = low > 0, high < 0
    else:
        held = low > -margin and high < margin
        not_held = low > margin or high < -margin
    word = HELD if held else NOT_HELD if not_held else UNDECIDED
    return Verdict(finding, word, estimate, low, high, len(values))
