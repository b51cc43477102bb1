"""Rates of steps, on devices that compute while the host waits, and on others."""

import pytest

from simclr_jax.training import step_clock


class Time:
    """A clock that the test moves."""

    def __init__(self, monkeypatch):
        self.secs = 100.0
        monkeypatch.setattr(step_clock.time, "monotonic", lambda: self.secs)

    def passes(self, secs):
        self.secs += secs


@pytest.fixture
def time(monkeypatch):
    return Time(monkeypatch)


def run(time, *, num_steps, step_secs, input_secs, save_secs, every_steps, is_async):
    """The loop's order of calls: results one step late, at checkpoints at once."""
    clock = step_clock.StepClock(0)
    intervals, finished, pending = [], {}, None

    def read(done):
        was_ready = finished[done] <= time.secs
        time.secs = max(time.secs, finished[done])
        intervals.append(clock.read(done, was_ready=was_ready))

    free_at = time.secs
    for done in range(1, num_steps + 1):
        with clock.waiting_for_input():
            time.passes(input_secs)
        free_at = finished[done] = max(free_at, time.secs) + step_secs
        if not is_async:
            time.secs = free_at
        if pending is not None:
            read(pending)
        pending = done
        if done % every_steps == 0:
            read(done)
            pending = None
            with clock.saving():
                time.passes(save_secs)
            free_at = max(free_at, time.secs)
    return intervals


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("every_steps", [1, 3, 4, 100])
@pytest.mark.parametrize("input_secs", [0.0, 0.25, 3.0])
def test_steps_take_as_long_with_checkpoints_as_without(
    time, every_steps, is_async, input_secs
):
    intervals = run(
        time,
        num_steps=12,
        step_secs=1.0,
        input_secs=input_secs,
        save_secs=7.0,
        every_steps=every_steps,
        is_async=is_async,
    )
    # A device that is never idle hides the input, but for the steps around a save.
    longest = 1 + input_secs
    shortest = max(1, input_secs) if is_async else longest
    assert len(intervals) >= 11
    for interval in intervals:
        assert interval.steps == 1
        assert shortest - 1e-9 <= interval.secs <= longest + 1e-9
    # A wait counts when it is over, which can be in the interval before.
    waited_secs = sum(interval.waited_secs for interval in intervals)
    assert waited_secs == pytest.approx(12 * input_secs, abs=input_secs)


def test_an_interval_of_several_steps(time):
    clock = step_clock.StepClock(40)
    for _ in range(5):
        with clock.waiting_for_input():
            time.passes(0.5)
        time.passes(1.5)
    # The fifth step has begun, and the fourth was over by then.
    assert clock.read(44, was_ready=True) == (4, 8.0, 2.0)
    assert clock.read(45, was_ready=True) == (1, 2.0, 0.5)
