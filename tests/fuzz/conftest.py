"""Runs a fuzz target for as long as asked."""

import pytest


@pytest.fixture
def run(request, record_property):
    """Fuzzes a target for `--fuzz-secs`."""
    # Not installed with the package: only for these tests.
    fuzzing = pytest.importorskip("fuzzing", reason="needs hypothesis")
    secs = request.config.getoption("--fuzz-secs")

    def run(target, strategy):
        count = fuzzing.fuzz(target, strategy, secs=secs)
        record_property("num_examples", count)
        print(f"{request.node.name}: {count} examples in {secs} s")
        assert count

    return run
