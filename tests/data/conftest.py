"""Golden arrays and helpers shared by the tests of the data package."""

import pathlib

import numpy as np
import pytest
from scipy import stats

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def golden():
    """golden(name) -> the arrays of one file, by key."""

    def load(name):
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            return dict(arrays)

    return load


@pytest.fixture(scope="session")
def chi_square():
    """chi_square(a, b) -> p that two histograms come from one distribution."""

    def p_value(first, second):
        table = np.array([first, second])
        rare = table.sum(axis=0) < 20
        table = np.column_stack([table[:, ~rare], table[:, rare].sum(axis=1)])
        table = table[:, table.sum(axis=0) > 0]
        return stats.chi2_contingency(table, correction=False).pvalue

    return p_value
