"""Parametrizations of which the first cases run by default, and all of them if slow."""

import pytest


def first(number, cases):
    """The cases, all but the first `number` of them marked as slow.

    A tuple is a case of several arguments.
    """

    def slow(case):
        values = case if isinstance(case, tuple) else (case,)
        return pytest.param(*values, marks=pytest.mark.slow)

    return [*cases[:number], *map(slow, cases[number:])]
