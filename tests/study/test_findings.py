"""Verdicts against SciPy's paired t-test, and what is missing."""

import math

import numpy as np
import pytest
from scipy import stats

from simclr_jax.study import findings
from simclr_jax.study.cells import Cell
from simclr_jax.study.definitions import Finding, Term, difference, where


def cell(choice, seed):
    return Cell(f"{choice}-seed{seed}", {"axis": choice}, seed, None)


def results(**figures):
    """Results of choices by their figures, one for each seed."""
    return [
        (cell(choice, seed), value and {"metrics": {"linear": value}})
        for choice, values in figures.items()
        for seed, value in enumerate(values)
    ]


BETTER = Finding("a is better.", "-", difference(where(axis="a"), where(axis="b")))


@pytest.mark.parametrize(
    ("a", "b", "word"),
    [
        ([0.50, 0.52, 0.51], [0.45, 0.46, 0.47], "held"),
        ([0.45, 0.46, 0.47], [0.50, 0.52, 0.51], "not held"),
        ([0.50, 0.40, 0.45], [0.44, 0.46, 0.42], "undecided"),
        # Paired: the seeds differ more than the cells.
        ([0.30, 0.50, 0.70, 0.40], [0.29, 0.485, 0.69, 0.388], "held"),
        ([0.3, 0.4], [0.2, 0.1], "undecided"),
    ],
)
def test_the_interval_is_that_of_a_paired_t_test(a, b, word):
    verdict = findings.judge(BETTER, results(a=a, b=b))
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert verdict.low == pytest.approx(expected.low)
    assert verdict.high == pytest.approx(expected.high)
    assert verdict.estimate == pytest.approx(np.mean(np.subtract(a, b)))
    assert verdict.word == word


@pytest.mark.parametrize("seed", range(3))
def test_intervals_of_means(seed):
    values = np.random.default_rng(seed).normal(0.4, 0.02, 3 + seed)
    mean, low, high = findings.interval(values)
    expected = stats.t.interval(
        0.95, len(values) - 1, np.mean(values), stats.sem(values)
    )
    assert (low, high) == pytest.approx(expected)
    assert mean == pytest.approx(np.mean(values))


def test_no_difference_is_held_within_its_bounds_only():
    same = Finding("The same.", "-", BETTER.contrast, within=0.02)
    near = results(a=[0.401, 0.399, 0.402], b=[0.400, 0.401, 0.400])
    far = results(a=[0.51, 0.50, 0.52], b=[0.40, 0.39, 0.40])
    wide = results(a=[0.50, 0.40, 0.45], b=[0.44, 0.46, 0.42])
    words = [findings.judge(same, r).word for r in (near, far, wide)]
    assert words == ["held", "not held", "undecided"]


def test_means_over_cells_and_interactions():
    found = results(a=[0.5, 0.6], b=[0.2, 0.3], c=[0.4, 0.5], d=[0.1, 0.1])
    others = Finding("-.", "-", difference(where(axis="a"), where(axis=("b", "c"))))
    assert findings.by_seed(others, found) == pytest.approx([0.2, 0.2])
    both = Finding(
        "-.",
        "-",
        (*BETTER.contrast, Term(-1, where(axis="c")), Term(1, where(axis="d"))),
    )
    assert findings.by_seed(both, found) == pytest.approx([0.0, -0.1])


def test_seeds_with_missing_or_diverged_cells_do_not_count():
    found = results(a=[0.5, 0.6, None, 0.7], b=[0.2, 0.3, 0.4, 0.4])
    found[-1] = (cell("b", 3), {"metrics": {}, "diverged": "loss is nan"})
    assert findings.by_seed(BETTER, found) == pytest.approx([0.3, 0.3])
    one = findings.judge(BETTER, results(a=[0.5], b=[0.4]))
    assert (one.word, one.num_seeds, one.high) == ("undecided", 1, math.inf)
    none = findings.judge(BETTER, results(a=[0.5]))
    assert none.word == "undecided"
    assert math.isnan(none.estimate)


def test_metrics_of_one_cell():
    finding = Finding("-.", "-", difference(where(), where(), "h", "z"))
    found = [(cell("a", s), {"metrics": {"h": 0.9, "z": 0.6 + s / 10}}) for s in (0, 1)]
    assert findings.by_seed(finding, found) == pytest.approx([0.3, 0.2])
