"""Learning-rate scaling and schedule against Google's and at their ends."""

import pathlib

import jax
import numpy as np
import pytest

from simclr_jax.optim import extended_cosine, scaled_learning_rate, warmup_cosine

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("case", range(6))
def test_rates_match_google(case, fidelity):
    with np.load(GOLDEN / "lr_schedule.npz") as golden:
        meta = {key.partition("/")[2]: golden[key] for key in golden.files
                if key.startswith(f"{case}/")}  # fmt: skip
    peak = scaled_learning_rate(
        float(meta["learning_rate"]),
        int(meta["train_batch_size"]),
        str(meta["scaling"]),
    )
    schedule = warmup_cosine(
        peak,
        warmup_steps=int(meta["warmup_steps"]),
        total_steps=int(meta["total_steps"]),
    )
    rates = jax.jit(jax.vmap(schedule))(meta["steps"])
    name = "Learning rates, warm-up and cosine"
    fidelity(name, rates, meta["lr"], rtol=1e-5, atol=1e-7 * peak)


def test_learning_rate_scales_with_the_batch():
    assert scaled_learning_rate(0.3, 4096, "linear") == pytest.approx(4.8)
    assert scaled_learning_rate(0.075, 4096, "sqrt") == pytest.approx(4.8)
    assert scaled_learning_rate(0.3, 4096, "none") == 0.3


def test_schedule_end_points():
    schedule = warmup_cosine(2.0, warmup_steps=10, total_steps=30)
    want = {0: 0, 1: 0.2, 5: 1, 9: 1.8, 10: 2, 15: 1 + 0.5**0.5, 20: 1, 30: 0, 99: 0}
    for step, rate in want.items():
        np.testing.assert_allclose(schedule(step), rate, rtol=1e-6, atol=1e-6)


def test_schedule_without_warmup_starts_at_the_peak():
    schedule = warmup_cosine(2.0, warmup_steps=0, total_steps=4)
    np.testing.assert_allclose(
        [schedule(step) for step in (0, 2, 4, 5)], [2, 1, 0, 0], atol=1e-6
    )


def test_unknown_rule_is_named():
    with pytest.raises(ValueError, match="rule='cubic': must be one of linear, sqrt"):
        scaled_learning_rate(0.3, 256, "cubic")


@pytest.mark.parametrize(
    ("warmup_steps", "total_steps", "name"),
    [(-1, 10, "warmup_steps=-1"), (0, 0, "total_steps=0")],
)
def test_impossible_lengths_are_named(warmup_steps, total_steps, name):
    with pytest.raises(ValueError, match=name):
        warmup_cosine(1.0, warmup_steps=warmup_steps, total_steps=total_steps)


def cosine(peak, position):
    return peak * (1 + np.cos(np.pi * position)) / 2


def in_float64(step, extend, *, peak, warmup, total, start, again):
    """The rates that the docstrings of the schedules promise."""
    end = total if extend == "stretch" else start
    if extend == "restart" and step >= start:
        return cosine(again, min((step - start) / (total - start), 1.0))
    if extend == "constant" and step >= start:
        return again
    if step < warmup:
        return peak * step / warmup
    return cosine(peak, min((step - warmup) / (end - warmup), 1.0))


@pytest.mark.parametrize("extend", ["stretch", "restart", "constant"])
@pytest.mark.parametrize("again", [None, 0.5])
def test_extended_schedules_equal_their_formula(extend, again):
    stretch = extend == "stretch"
    schedule = extended_cosine(
        2.0,
        warmup_steps=10,
        total_steps=300,
        extend=extend,
        extend_step=None if stretch else 100,
        extend_peak=None if stretch else again,
    )
    steps = np.arange(310)
    expected = [
        in_float64(
            step,
            extend,
            peak=2.0,
            warmup=10,
            total=300,
            start=100,
            again=2.0 if again is None else again,
        )
        for step in steps
    ]
    np.testing.assert_allclose(jax.vmap(schedule)(steps), expected, rtol=0, atol=3e-6)


def test_a_stretched_schedule_is_the_plain_one():
    plain = warmup_cosine(2.0, warmup_steps=10, total_steps=300)
    settings = {"extend": "stretch", "extend_step": None, "extend_peak": None}
    found = extended_cosine(2.0, warmup_steps=10, total_steps=300, **settings)
    steps = np.arange(310)
    np.testing.assert_array_equal(jax.vmap(found)(steps), jax.vmap(plain)(steps))


def test_an_unknown_extension_is_named():
    with pytest.raises(ValueError, match="extend='repeat': must be one of stretch, "):
        extended_cosine(
            1.0,
            warmup_steps=0,
            total_steps=9,
            extend="repeat",
            extend_step=3,
            extend_peak=None,
        )
