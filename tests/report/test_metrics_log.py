"""Logs are read whatever is in them, and thinned without losing what stands out."""

import itertools
import json
import math

import numpy as np
import pytest
import report_runs
from etils import epath

from simclr_jax.report import metrics_log
from simclr_jax.report.metrics_log import Curve
from simclr_jax.runs import metrics_writer


def parse(*lines):
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    return metrics_log.parse(f"{text}\n".encode() for text in texts)


def test_a_log_is_read_as_the_training_reads_it(tmp_path):
    generator = np.random.default_rng(0)
    lines = [
        {"step": int(step), "loss": float(loss)}
        for step, loss in zip(
            generator.integers(0, 300, 500), generator.normal(size=500), strict=True
        )
    ]
    path = epath.Path(tmp_path / "metrics.jsonl")
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    expected = {one["step"]: one["loss"] for one in metrics_writer.read_metrics(path)}
    metrics = metrics_log.read(path)
    curve = metrics.curves["loss"]
    assert curve.steps.tolist() == sorted(expected) == metrics.steps.tolist()
    assert curve.values.tolist() == [expected[step] for step in sorted(expected)]


def test_damaged_lines_are_left_out_and_counted():
    metrics = parse(
        {"step": 1, "loss": 2.0, "flag": True, "list": [1]},
        "\0\0\0",
        "{not json",
        {"loss": 3.0},
        {"step": -1, "loss": 3.0},
        {"step": 10**30, "loss": 3.0},
        "[" * 100_000,
        "7",
        {"step": 2, "loss": 10**400, "rank": 3},
        '{"step": 3, "loss": NaN, "rank": Infinity}',
        '{"step": 4, "lo',
    )
    assert metrics.steps.tolist() == [1, 2, 3]
    assert metrics.num_damaged == 6  # the last line may be under way
    assert {*metrics.curves} == {"loss", "rank"}
    assert metrics.curves["loss"].steps.tolist() == [1, 3]
    assert metrics.curves["loss"].first_not_finite() == 3
    assert metrics.curves["rank"].values.tolist() == [3, math.inf]


def test_an_empty_log_has_no_steps():
    metrics = parse()
    assert metrics.last_step == 0
    assert metrics.last("loss") is None
    assert metrics.seconds(128) is None


def test_restarts_are_where_a_start_has_logged_its_first_step():
    steps = [1, 2, 3, 4, 5]
    lines = [report_runs.line(step, first=step == 4) for step in steps]
    assert parse(*lines).starts == [1, 4]
    # Line 4 was written anew by a start from an earlier checkpoint.
    lines += [report_runs.line(3, first=True), report_runs.line(4)]
    assert parse(*lines).starts == [1, 3]


def test_time_follows_from_the_rates():
    # 128 images a step: 10 s for the first of a start, 1 s for others.
    lines = [report_runs.line(step, first=step == 26) for step in (1, 10, 20, 26, 30)]
    secs = parse(*lines).seconds(128)
    np.testing.assert_allclose(secs, [10, 19, 29, 29 + 5 + 10, 29 + 5 + 10 + 4])


def test_time_stands_still_where_a_rate_is_none():
    lines = [report_runs.line(step) for step in (1, 2, 3)]
    lines[1]["images_per_sec"] = math.nan
    lines[2]["images_per_sec"] = 0.0
    np.testing.assert_allclose(parse(*lines).seconds(128), [10, 10, 10])


@pytest.mark.parametrize("seed", range(3))
def test_thinning_keeps_what_stands_out(seed):
    generator = np.random.default_rng(seed)
    size = 50_000
    steps = np.cumsum(generator.integers(1, 9, size))
    values = generator.normal(size=size)
    high, low, bad = generator.choice(size, 3, replace=False)
    values[high], values[low], values[bad] = 1e6, -1e6, math.nan
    curve = Curve(steps, values)
    thin = curve.thinned(2000)
    assert 500 < len(thin.steps) <= 2010
    assert {steps[0], steps[-1], steps[high], steps[low], steps[bad]} <= {*thin.steps}
    # Points of the curve, in its order.
    places = np.searchsorted(steps, thin.steps)
    assert (np.diff(places) > 0).all()
    np.testing.assert_array_equal(values[places], thin.values)
    # Each stretch has the range that it had.
    edges = np.linspace(steps[0], steps[-1] + 1, 101)
    for start, end in itertools.pairwise(edges):
        inside = (steps >= start + 60) & (steps < end - 60)
        around = (thin.steps >= start) & (thin.steps < end)
        assert np.nanmax(thin.values[around]) >= np.nanmax(values[inside])
        assert np.nanmin(thin.values[around]) <= np.nanmin(values[inside])


def test_a_curve_of_nothing_finite_is_thinned():
    curve = Curve(np.arange(9000), np.full(9000, math.nan))
    assert 2 <= len(curve.thinned(2000).steps) <= 2000
    short = Curve(np.arange(3), np.arange(3.0))
    assert short.thinned(2000) is short
