"""The verdict in words."""

import math

import pytest

from simclr_jax.runs.health import HealthMonitor

GOOD = {
    "loss": 4.0,
    "chance": math.log(511),
    "effective_rank_z": 8.0,
    "positive_similarity": 0.6,
    "negative_similarity": 0.1,
    "contrastive_entropy": 3.0,
}


def test_healthy():
    assert HealthMonitor().update(10, GOOD) == "healthy"


def test_at_chance_says_since_when():
    monitor = HealthMonitor()
    stuck = {**GOOD, "loss": math.log(511) - 0.01}
    assert monitor.update(10, GOOD) == "healthy"
    # One bad batch, or two, is no verdict.
    assert monitor.update(20, stuck) == "healthy"
    assert monitor.update(30, stuck) == "healthy"
    assert monitor.update(40, stuck).startswith("at chance since step 20: ")
    assert monitor.update(50, stuck).startswith("at chance since step 20: ")
    assert monitor.update(60, GOOD) == "healthy"
    assert monitor.update(70, stuck) == "healthy"


def test_a_temperature_that_flattens_the_softmax_is_told():
    # ln(256) - 0.004: of cosines with a deviation of 0.45 at temperature 5,
    # (0.45 / 5)**2 / 2.
    flat = {**GOOD, "loss": 6.0, "contrastive_entropy": math.log(256) - 0.004}
    monitor = HealthMonitor(num_images=256)
    assert monitor.update(1, GOOD) == "healthy"
    for step in (2, 3, 4):
        verdict = monitor.update(step, flat)
    assert verdict.startswith("flat since step 2: ")
    # At temperature 1 it is not.
    sharper = {**flat, "contrastive_entropy": math.log(256) - 0.1}
    assert monitor.update(5, sharper) == "healthy"
    # Another loss has another softmax.
    other = HealthMonitor()
    assert [other.update(i, flat) for i in range(4)] == ["healthy"] * 4


def test_a_bad_start_is_no_verdict():
    monitor = HealthMonitor()
    stuck = {**GOOD, "loss": math.log(511)}
    assert monitor.update(1, stuck) == "too early to tell"
    assert monitor.update(2, stuck) == "too early to tell"
    assert monitor.update(3, stuck).startswith("at chance since step 1: ")


def test_similarities_decide_where_no_chance_level_is_known():
    mined = {key: value for key, value in GOOD.items() if key != "chance"}
    monitor = HealthMonitor()
    assert monitor.update(1, mined) == "healthy"
    for step in (2, 3, 4):
        verdict = monitor.update(step, {**mined, "positive_similarity": 0.105})
    assert verdict.startswith("at chance since step 2: ")


def test_two_classes_may_lie_on_a_line():
    separated = {**GOOD, "effective_rank_z": 1.01, "negative_similarity": -0.02}
    monitor = HealthMonitor(check_rank=False)
    assert [monitor.update(i, separated) for i in range(4)] == ["healthy"] * 4


@pytest.mark.parametrize(
    "sign", [{"effective_rank_z": 1.1}, {"negative_similarity": 0.999}]
)
def test_collapsed(sign):
    # A collapsed projection is at chance too; the cause is the better word.
    metrics = {**GOOD, "loss": math.log(511), **sign}
    monitor = HealthMonitor()
    for step in (5, 6, 7):
        verdict = monitor.update(step, metrics)
    assert verdict.startswith("collapsed since step 5: ")
    assert "learning rate" in verdict
