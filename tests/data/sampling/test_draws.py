"""Random numbers: Threefry's, uniform, independent, each operation's own."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import random as jax_random
from scipy import stats

from simclr_jax.data.sampling import draws, order

ALL = tuple(draws.COUNTS)


def _keys(num_images, *, epoch=0, seed=0, num_views=1):
    indices = np.arange(num_images, dtype=np.uint32)
    epochs = np.full(num_images, epoch, np.uint32)
    return order.view_keys(indices, epochs, seed=seed, num_views=num_views)


def _is_uniform(values, low=0.0, high=1.0):
    return stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3


# Words --------------------------------------------------------------------------------


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_threefry_is_jax_s(array):
    generator = np.random.default_rng(0)
    words = generator.integers(0, 2**32, (2, 5), np.uint32)
    counters = generator.integers(0, 2**32, (2, 1000), np.uint32)
    # With all bits set, additions carry and rotations go round.
    words[:, 0] = counters[:, 0] = 2**32 - 1
    key = order.Key(*(array(word[:, None]) for word in words))
    result = order.threefry(key, *(array(counter[None]) for counter in counters))
    for number in range(5):
        expected = jax_random.threefry_2x32(jnp.asarray(words[:, number]), counters)
        for ours, theirs in zip(result, expected, strict=True):
            assert ours.dtype == np.uint32
            np.testing.assert_array_equal(ours[number], theirs)


def test_uniform_numbers_are_multiples_of_2_to_the_minus_24_below_1():
    words = np.array([0, 255, 256, 2**31, 2**32 - 1], np.uint32)
    expected = np.array([0, 0, 2**-24, 0.5, 1 - 2**-24])
    for array in (np.asarray, jnp.asarray):
        result = order.uniform(array(words))
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, expected)


# Draws of views -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def uniform():
    """Draws of 2 views of 4000 images, all operations: [4000, 2, D]."""
    return draws.view_draws(_keys(4000, num_views=2), ALL)


def test_each_operation_has_as_many_draws_as_it_takes(uniform):
    assert uniform.shape == (4000, 2, draws.count(ALL))
    assert uniform.dtype == np.float32
    assert draws.count(("crop", "flip", "color_jitter", "grayscale", "blur")) == 13
    own = draws.by_operation(uniform, ALL)
    assert tuple(own) == ALL
    assert {name: u.shape[-1] for name, u in own.items()} == draws.COUNTS
    np.testing.assert_array_equal(np.concatenate([*own.values()], axis=-1), uniform)


def test_draws_are_uniform(uniform):
    for view in (0, 1):
        for column in uniform[:, view].T:
            assert column.min() >= 0
            assert column.max() < 1
            assert _is_uniform(column)


def test_draws_are_independent(uniform):
    # The columns: all draws of an image's two views, and of its neighbour's first.
    columns = np.column_stack(
        [uniform[:-1].reshape(len(uniform) - 1, -1), uniform[1:, 0]]
    )
    count = columns.shape[1]
    correlations = np.corrcoef(columns.T)[np.triu_indices(count, 1)]
    # The largest of some thousand normal numbers stays below 5.
    assert np.abs(correlations).max() * np.sqrt(len(columns)) < 5
    # Nor do small numbers go with middle ones.
    distances = np.corrcoef(np.abs(columns.T - 0.5))[np.triu_indices(count, 1)]
    assert np.abs(distances).max() * np.sqrt(len(columns)) < 5
    assert len(np.unique(columns[:, : 2 * uniform.shape[2]], axis=0)) == len(columns)


def test_whether_an_operation_acts_says_nothing_of_its_other_draws(uniform):
    for own in draws.by_operation(uniform[:, 0], ALL).values():
        for number in range(1, own.shape[-1]):
            for acts in (own[:, 0] < 0.5, own[:, 0] >= 0.5):
                assert _is_uniform(own[acts, number])


@pytest.mark.parametrize("left_out", ALL)
def test_leaving_an_operation_out_leaves_the_draws_of_the_others_alone(left_out):
    keys = _keys(20)
    # Their order does not count either.
    others = tuple(name for name in reversed(ALL) if name != left_out)
    all_own = draws.by_operation(draws.view_draws(keys, ALL), ALL)
    own = draws.by_operation(draws.view_draws(keys, others), others)
    assert set(own) == set(others)
    for name in others:
        np.testing.assert_array_equal(own[name], all_own[name])


def test_every_seed_epoch_image_and_view_has_draws_of_its_own():
    axes = itertools.product((0, 1, 2**32), (0, 1, 2))
    rows = [
        draws.view_draws(_keys(500, epoch=epoch, seed=seed, num_views=3), ("blur",))
        for seed, epoch in axes
    ]
    rows = np.concatenate(rows).reshape(-1, 2)
    assert len(np.unique(rows, axis=0)) == len(rows) == 3 * 3 * 500 * 3


def test_draws_are_the_same_in_jax():
    key = _keys(50, num_views=2)
    on_device = order.Key(jnp.asarray(key.first), jnp.asarray(key.second))
    result = draws.view_draws(on_device, ALL)
    assert result.dtype == jnp.float32
    np.testing.assert_array_equal(result, draws.view_draws(key, ALL))


def test_draws_are_pinned():
    # If these change, a run that is resumed with a new version sees other views.
    (u,) = draws.view_draws(_keys(1, epoch=2, seed=42), ("flip", "blur"))[0]
    np.testing.assert_array_equal(u * 2**24, [1459413, 3197363, 569812])


# Factors of the jitter ----------------------------------------------------------------

RANGES = {"brightness": 0.8, "contrast": 0.6, "saturation": 0.4, "hue": 0.2}


def _factors(u, *, strength=1.0, brightness_mode="multiplicative"):
    factors = draws.jitter_factors(
        u, strength=strength, brightness_mode=brightness_mode, **RANGES
    )
    return np.stack(factors, axis=-1)


@pytest.mark.parametrize(
    ("strength", "mode", "low", "high"),
    [
        (1.0, "multiplicative", (0.2, 0.4, 0.6, -0.2), (1.8, 1.6, 1.4, 0.2)),
        (0.5, "multiplicative", (0.6, 0.7, 0.8, -0.1), (1.4, 1.3, 1.2, 0.1)),
        (2.0, "multiplicative", (0.0, 0.0, 0.2, -0.4), (2.6, 2.2, 1.8, 0.4)),
        (0.5, "additive", (-0.4, 0.7, 0.8, -0.1), (0.4, 1.3, 1.2, 0.1)),
    ],
)
def test_jitter_factors_span_their_ranges(strength, mode, low, high, uniform):
    arguments = {"strength": strength, "brightness_mode": mode}
    for u, expected in (
        (0.0, low),
        (0.5, np.add(low, high) / 2),
        (1.0, high),
    ):
        result = _factors(np.full((1, 9), u, np.float32), **arguments)
        np.testing.assert_allclose(result[0], expected, atol=1e-6)
    own = draws.by_operation(uniform[:, 0], ALL)["color_jitter"]
    factors = _factors(own, **arguments)
    for column, a, b in zip(factors.T, low, high, strict=True):
        assert _is_uniform(column, a, b)


def test_each_factor_and_the_order_have_draws_of_their_own():
    base = np.full(9, 0.25, np.float32)
    changed = [base.copy() for _ in range(9)]
    for number in range(9):
        changed[number][number] = 0.75
    differs = _factors(np.stack(changed)) != _factors(base)
    expected = np.zeros((9, 4), bool)
    expected[1:5] = np.eye(4, dtype=bool)
    np.testing.assert_array_equal(differs, expected)
    np.testing.assert_array_equal(draws.jitter_order(np.arange(9)), [5, 6, 7, 8])
