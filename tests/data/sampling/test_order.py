"""Order of the images and keys of their augmentation: bijective, seeded, stateless."""

import math
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from cases import first
from scipy import stats

from simclr_jax.data.sampling import order

SIZES = [1, 2, 3, 5, 16, 17, 1000, 4097]


def _permutation(size, *, seed=0, epoch=0):
    return order.permute(np.arange(size), seed=seed, epoch=np.array(epoch), size=size)


def _epoch(epoch, *, seed=0, **sizes):
    steps = order.steps_per_epoch(**sizes)
    return np.stack(
        [
            order.batch_indices(step, seed=seed, **sizes)[0]
            for step in range(epoch * steps, (epoch + 1) * steps)
        ]
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (0, 1), (7, 0), (2**31, 12345)])
def test_permute_is_a_bijection(size, seed, epoch):
    result = _permutation(size, seed=seed, epoch=epoch)
    assert result.dtype == np.int64
    np.testing.assert_array_equal(np.sort(result), np.arange(size))


def test_permute_takes_single_positions_and_mixed_epochs():
    positions, epochs = np.arange(50), np.arange(50) % 3
    mixed = order.permute(positions, seed=4, epoch=epochs, size=1000)
    for position, epoch, result in zip(positions, epochs, mixed, strict=True):
        alone = order.permute(np.array(position), seed=4, epoch=epoch, size=1000)
        assert alone == result


def test_permute_copes_with_huge_datasets():
    size = order.MAX_EXAMPLES
    positions = np.arange(size - 1000, size)
    result = order.permute(positions, seed=0, epoch=np.array(0), size=size)
    assert len(np.unique(result)) == 1000
    assert result.min() >= 0
    assert result.max() < size


def test_permutations_differ_by_seed_and_epoch():
    keys = [(seed, epoch) for seed in range(10) for epoch in range(10)]
    results = {tuple(_permutation(1000, seed=s, epoch=e)) for s, e in keys}
    assert len(results) == len(keys)
    # No more common places than chance has: one on average for each pair.
    first = _permutation(1000, seed=0, epoch=0)
    common = [(_permutation(1000, seed=s, epoch=e) == first).sum() for s, e in keys[1:]]
    assert np.mean(common) < 1.5


def _permutations(size, *, draws, vary):
    """[draws, size]: permutations of as many epochs, or seeds."""
    if vary == "epoch":
        epochs = np.arange(draws)[:, None]
        return order.permute(np.arange(size), seed=0, epoch=epochs, size=size)
    return np.stack([_permutation(size, seed=seed) for seed in range(draws)])


@pytest.mark.parametrize(
    ("size", "vary", "draws"),
    first(
        6,
        [
            (2, "epoch", 8000),
            (3, "epoch", 8000),
            (16, "epoch", 8000),
            (17, "epoch", 8000),
            (50, "epoch", 8000),
            (16, "seed", 1000),
            (17, "seed", 1000),
        ],
    ),
)
def test_every_position_gets_every_index_equally_often(size, vary, draws):
    counts = np.zeros((size, size))
    for result in _permutations(size, draws=draws, vary=vary):
        counts[np.arange(size), result] += 1
    statistic = ((counts - draws / size) ** 2 / (draws / size)).sum()
    assert stats.chi2.sf(statistic, (size - 1) ** 2) > 1e-3


@pytest.mark.parametrize("size", [16, 17])
def test_neighbours_are_independent(size):
    counts = np.zeros((size, size), int)
    results = _permutations(size, draws=8000, vary="epoch")
    np.add.at(counts, (results[:, 0], results[:, 1]), 1)
    assert stats.chisquare(counts[~np.eye(size, dtype=bool)]).pvalue > 1e-3


@pytest.mark.parametrize(("num_examples", "batch_size"), [(64, 16), (70, 16), (16, 16)])
def test_an_epoch_shows_no_image_twice(num_examples, batch_size):
    for epoch in range(3):
        batches = _epoch(epoch, num_examples=num_examples, batch_size=batch_size)
        shown = np.unique(batches)
        assert len(shown) == batches.size == num_examples // batch_size * batch_size
        assert shown.min() >= 0
        assert shown.max() < num_examples


def test_other_images_are_left_out_in_each_epoch():
    left_out = [
        frozenset(range(70)) - set(_epoch(epoch, num_examples=70, batch_size=16).flat)
        for epoch in range(60)
    ]
    assert {len(images) for images in left_out} == {6}
    assert len(set(left_out)) == 60
    assert frozenset.union(*left_out) == set(range(70))


def test_batches_are_ordered_anew_in_each_epoch():
    first, second = (_epoch(e, num_examples=64, batch_size=16) for e in range(2))
    assert not np.array_equal(first, second)
    assert {frozenset(b) for b in first}.isdisjoint({frozenset(b) for b in second})


def test_epochs_are_counted():
    for step, epoch in ((0, 0), (3, 0), (4, 1), (11, 2)):
        epochs = order.batch_indices(step, seed=0, num_examples=70, batch_size=16)[1]
        np.testing.assert_array_equal(epochs, np.full(16, epoch))


def test_a_step_is_the_same_alone_as_in_sequence():
    arguments = {"seed": 3, "num_examples": 70, "batch_size": 16}
    sequence = [order.batch_indices(step, **arguments) for step in range(30)]
    for step in (29, 17, 0, 4, 17):
        for alone, expected in zip(
            order.batch_indices(step, **arguments), sequence[step], strict=True
        ):
            np.testing.assert_array_equal(alone, expected)


def test_seeds_differ_in_all_their_bits():
    seeds = [0, 1, -1, 2**31, 2**32, 2**32 + 1, 2**63]
    results = {tuple(_permutation(1000, seed=seed)) for seed in seeds}
    assert len(results) == len(seeds)


@pytest.mark.parametrize("size", SIZES)
def test_a_shuffle_is_the_same_in_jax(size):
    values, epochs = np.arange(size, dtype=np.uint32), np.arange(size, dtype=np.uint32)
    shuffles = [
        order.Shuffle(seed=5, epoch=xp.asarray(epochs), size=size) for xp in (np, jnp)
    ]
    expected, result = (
        shuffle.once(xp.asarray(values), shuffle.keys)
        for shuffle, xp in zip(shuffles, (np, jnp), strict=True)
    )
    assert result.dtype == jnp.uint32
    np.testing.assert_array_equal(result, expected)


# Blocks -------------------------------------------------------------------------------

BLOCKS = {"num_examples": 105, "batch_size": 16, "block_size": 8}


def test_blocks_fill_the_batches_of_an_epoch():
    # 105 images are 13 whole blocks, of which 6 batches are filled.
    assert order.steps_per_epoch(**BLOCKS) == 6
    # Of 16 images in blocks of 9 only 9 are in a whole block: too few.
    sizes = {"num_examples": 16, "batch_size": 16}
    assert order.steps_per_epoch(**sizes, block_size=9) == 0
    assert order.steps_per_epoch(**sizes) == 1


def test_an_epoch_of_blocks_shows_no_image_twice():
    for epoch in range(10):
        shown = _epoch(epoch, **BLOCKS)
        assert len(np.unique(shown)) == shown.size == 96
        assert shown.min() >= 0
        assert shown.max() < 105


def test_blocks_are_runs_of_neighbours_in_random_order():
    sizes = {"num_examples": 105, "batch_size": 96, "block_size": 8}
    runs = np.stack([_epoch(epoch, **sizes).reshape(12, 8) for epoch in range(200)])
    # The dataset is a ring: the last image's neighbour is the first.
    steps = np.broadcast_to(np.arange(8), runs.shape)
    np.testing.assert_array_equal((runs - runs[..., :1]) % 105, steps)
    starts = runs[..., 0]
    assert len({tuple(np.argsort(own)) for own in starts}) == 200
    # A border may lie at any image, and an epoch may start at any.
    borders, firsts = (
        np.bincount(x.flat, minlength=105) for x in (starts, starts[:, 0])
    )
    assert borders.min() > 0
    assert stats.chisquare(firsts.reshape(5, 21).sum(axis=1)).pvalue > 1e-3


# Keys of views ------------------------------------------------------------------------


def _view_keys(indices, epochs, *, seed, num_views):
    indices, epochs = (np.asarray(x, np.uint32) for x in (indices, epochs))
    return order.view_keys(indices, epochs, seed=seed, num_views=num_views)


def test_view_keys_differ_by_seed_epoch_image_and_view():
    indices, epochs = np.divmod(np.arange(2000), 20)
    seeds = (0, 1, 2**32)
    keys = [_view_keys(indices, epochs, seed=seed, num_views=3) for seed in seeds]
    assert keys[0].first.shape == keys[0].second.shape == (2000, 3)
    assert keys[0].first.dtype == keys[0].second.dtype == np.uint32
    words = np.stack([np.stack(key, axis=-1) for key in keys]).reshape(-1, 2)
    assert len(np.unique(words, axis=0)) == len(words)
    # Chance has 0.04 pairs of equal words.
    assert len(np.unique(words[:, 0])) >= len(words) - 2
    assert len(np.unique(words[:, 1])) >= len(words) - 2
    assert not np.any(words[:, 0] == words[:, 1])


def test_view_keys_depend_on_their_image_alone():
    indices, epochs = np.array([5, 9, 2]), np.array([0, 0, 1])
    keys = np.array(_view_keys(indices, epochs, seed=1, num_views=2))
    alone = np.array(_view_keys(indices[2:], epochs[2:], seed=1, num_views=2))
    np.testing.assert_array_equal(alone[:, 0], keys[:, 2])
    more = np.array(_view_keys(indices, epochs, seed=1, num_views=4))
    np.testing.assert_array_equal(more[:, :, :2], keys)


def test_view_keys_are_the_same_in_jax():
    indices, epochs = (np.array(x, np.uint32) for x in ([5, 9, 2**31], [0, 7, 1]))
    arguments = {"seed": 2**40 + 3, "num_views": 2}
    expected = order.view_keys(indices, epochs, **arguments)
    result = order.view_keys(jnp.asarray(indices), jnp.asarray(epochs), **arguments)
    for ours, theirs in zip(result, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


# The literals below pin the order and the draws of existing runs: if one changes, a run
# that is resumed with a new version sees other batches.


def test_order_is_pinned():
    np.testing.assert_array_equal(
        _permutation(10, seed=42, epoch=3), [7, 5, 3, 2, 4, 1, 0, 6, 8, 9]
    )
    indices, epochs = order.batch_indices(7, seed=42, num_examples=1000, batch_size=300)
    np.testing.assert_array_equal(indices[:6], [127, 299, 819, 89, 26, 462])
    np.testing.assert_array_equal(epochs[:6], 2)


def test_blocks_are_pinned():
    indices, _ = order.batch_indices(8, seed=42, **BLOCKS)
    np.testing.assert_array_equal(indices[::8], [46, 21])


def test_view_keys_are_pinned():
    key = _view_keys([17], [2], seed=42, num_views=2)
    np.testing.assert_array_equal(key.first, [[4175827325, 2212817923]])
    np.testing.assert_array_equal(key.second, [[1839283912, 577524686]])


WITHOUT_TENSORFLOW = (
    "sampling.order",
    "augment_jax",
    "views.resident",
    "preprocessing",
    "sources.photographs",
)


def test_imports_without_tensorflow():
    modules = ", ".join(f"simclr_jax.data.{name}" for name in WITHOUT_TENSORFLOW)
    code = (
        f"import sys, {modules}; "
        "sys.exit(any(name.split('.')[0] == 'tensorflow' for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("size", [3, 4, 5])
def test_all_orders_of_few_images_are_as_likely(size):
    epochs = np.arange(12_000)[:, None]
    positions = np.broadcast_to(np.arange(size), (len(epochs), size))
    orders = order.permute(positions, seed=1, epoch=epochs, size=size)
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == math.factorial(size)
    assert stats.chisquare(counts).pvalue > 1e-3
