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


@pytest.fixture(scope="session")
def colors(golden):
    """The reference's colours and blurs; see `simclr_settings.colour_cases`."""
    return golden("data_color")


@pytest.fixture
def assert_close(request, fidelity):
    """assert_close(what, result, expected, tolerance), on the fidelity page.

    A test's `backend` says there which form of the operations it compares.
    """
    tested = "backend" in request.fixturenames
    form = request.getfixturevalue("backend").form if tested else ""

    def compare(what, result, expected, tolerance):
        assert np.asarray(result).dtype == np.float32
        fidelity(what + form, result, expected, atol=tolerance)

    return compare


@pytest.fixture(scope="session")
def overshooting():
    """Images [96, 20, 20, 3] somewhat outside [0, 1], as after bicubic resizing.

    The first 8 are grey, the next one is black.
    """
    result = np.random.default_rng(0).uniform(-0.1, 1.1, (96, 20, 20, 3))
    result = result.astype(np.float32)
    result[:8] = result[:8, :, :, :1]
    result[8] = 0
    return result
