"""Blocks of neighbours that are shuffled and read together."""

import numpy as np
import pytest

from simclr_jax.data.sampling import order

COUNT, BATCH, BLOCK = 103, 24, 8  # 12 whole blocks, 4 batches an epoch
SETTINGS = {"seed": 2, "num_examples": COUNT, "batch_size": BATCH}
STEPS = 4


def _batch(step, block_size=BLOCK, **changes):
    indices, _ = order.batch_indices(
        step, block_size=block_size, **{**SETTINGS, **changes}
    )
    return indices


def _epoch(number, **changes):
    steps = range(number * STEPS, (number + 1) * STEPS)
    return np.concatenate([_batch(step, **changes) for step in steps])


@pytest.mark.parametrize(
    ("num_examples", "batch_size", "block_size"),
    [(103, 24, 8), (96, 24, 8), (100, 10, 16), (50, 7, 3), (9, 8, 8), (70, 64, 2)],
)
def test_an_epoch_holds_no_image_twice(num_examples, batch_size, block_size):
    sizes = {"num_examples": num_examples, "batch_size": batch_size}
    steps = order.steps_per_epoch(**sizes, block_size=block_size)
    assert steps == num_examples // block_size * block_size // batch_size >= 1
    for epoch in range(20):
        shown = []
        for step in range(epoch * steps, (epoch + 1) * steps):
            indices, epochs = order.batch_indices(
                step, seed=0, block_size=block_size, **sizes
            )
            assert indices.dtype == epochs.dtype == np.int64
            np.testing.assert_array_equal(epochs, epoch)
            shown.append(indices)
        shown = np.concatenate(shown)
        assert len(np.unique(shown)) == len(shown) == steps * batch_size
        assert shown.min() >= 0
        assert shown.max() < num_examples


def test_a_block_holds_neighbours():
    for step in range(40):
        blocks = _batch(step).reshape(-1, BLOCK)
        # The last image and the first are neighbours too.
        np.testing.assert_array_equal(np.diff(blocks) % COUNT, 1)


@pytest.mark.slow
def test_blocks_have_other_borders_in_each_epoch():
    borders = [frozenset(_epoch(epoch)[::BLOCK] % BLOCK) for epoch in range(200)]
    first = [_epoch(epoch)[::BLOCK] for epoch in range(200)]
    assert len(set(borders)) > 5
    # Every image begins a block in some epoch or other.
    assert len(np.unique(np.concatenate(first))) == COUNT


def test_blocks_are_shuffled():
    first = [tuple(_epoch(epoch)[::BLOCK]) for epoch in range(50)]
    assert len(set(first)) == 50
    distances = np.concatenate([np.diff(starts) % COUNT for starts in first])
    # One block follows another by chance only.
    assert np.mean(distances == BLOCK) < 0.2


def test_every_image_is_shown_and_left_out_over_the_epochs():
    shown = np.array([np.isin(np.arange(COUNT), _epoch(epoch)) for epoch in range(200)])
    assert shown.any(axis=0).all()
    assert not shown.all(axis=0).any()
    # 96 of 103 images an epoch, each as often as any other.
    counts = shown.sum(axis=0)
    assert abs(counts.mean() - 200 * 96 / 103) < 1e-9
    assert np.abs(counts - counts.mean()).max() < 5 * np.sqrt(200 * 0.07)


def test_a_step_is_the_same_alone_as_in_sequence():
    sequence = [_batch(step) for step in range(30)]
    for step in (29, 17, 0, 4, 17):
        np.testing.assert_array_equal(_batch(step), sequence[step])


def test_seed_and_block_size_make_other_orders():
    assert not np.array_equal(_batch(0, seed=3), _batch(0))
    assert not np.array_equal(_batch(0, block_size=4), _batch(0))
    starts = {int(_epoch(0, seed=seed).min()) for seed in range(40)}
    assert len(starts) > 1


def test_blocks_of_one_are_single_images():
    single, _ = order.batch_indices(7, **SETTINGS)
    np.testing.assert_array_equal(_batch(7, block_size=1), single)


def test_a_late_step_is_as_good_as_any():
    step = 10**6 * STEPS
    epoch = _epoch(10**6)
    np.testing.assert_array_equal(epoch[:BATCH], _batch(step))
    assert len(np.unique(epoch)) == STEPS * BATCH


def test_order_of_blocks_is_pinned():
    # If it changes, a run that is resumed with a new version sees other batches.
    np.testing.assert_array_equal(_batch(5)[::BLOCK], PINNED)


PINNED = [77, 53, 21]
