"""The order in which all classes are equally frequent."""

import numpy as np
import pytest

from simclr_jax.data.sampling.balanced import BalancedOrder
from simclr_jax.data.sources.arrays import ArraySource
from simclr_jax.data.step_sampler import StepSampler, slice_of_host
from simclr_jax.data.views.composition import Composition

SIZES = [(95, 5), (30, 1, 7, 0, 12), (3, 3, 3)]


def make(sizes, *, seed=0):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.random.default_rng(seed).permutation(labels)
    return labels, BalancedOrder.of_labels(labels)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("batch_size", [2, 16])
def test_batches_are_balanced_and_classes_are_gone_through(sizes, batch_size):
    labels, order = make(sizes)
    present = [number for number, size in enumerate(sizes) if size]
    seen = []
    for step in range(60):
        indices, epochs = order.batch_indices(step, seed=3, batch_size=batch_size)
        counts = np.bincount(labels[indices], minlength=len(sizes))[present]
        # Rounds begin and end inside of batches.
        assert counts.max() - counts.min() <= 2
        seen += zip(indices.tolist(), epochs.tolist(), strict=True)
    # An image never comes again with the same draws.
    assert len(set(seen)) == len(seen)
    for number in present:
        times = np.bincount(
            [image for image, _ in seen if labels[image] == number],
            minlength=len(labels),
        )[labels == number]
        assert times.max() - times.min() <= 1


def test_a_batch_is_a_function_of_seed_and_step():
    _, order = make((40, 9, 1))
    forward = [order.batch_indices(step, seed=5, batch_size=8) for step in range(30)]
    _, again = make((40, 9, 1))
    for step in (29, 3, 17, 0):
        for found, expected in zip(
            again.batch_indices(step, seed=5, batch_size=8), forward[step], strict=True
        ):
            np.testing.assert_array_equal(found, expected)
    other, _ = order.batch_indices(3, seed=6, batch_size=8)
    assert not np.array_equal(other, forward[3][0])


def test_classes_of_one_size_have_orders_of_their_own():
    labels = np.repeat([0, 1], 50)
    order = BalancedOrder.of_labels(labels)
    images, _ = order.batch_indices(0, seed=0, batch_size=100)
    first, second = images[images < 50], images[images >= 50] - 50
    assert sorted(first) == sorted(second) == list(range(50))
    assert not np.array_equal(first, second)
    # And new ones each time.
    later, epochs = order.batch_indices(1, seed=0, batch_size=100)
    assert set(epochs) == {1}
    assert not np.array_equal(later[later < 50], first)


def test_a_class_is_shuffled_alike_whatever_the_others_are():
    """Sizes of the other classes decide how rows are computed together."""
    first = np.repeat([0, 1], [50, 9])
    second = np.repeat([0, 1], [50, 3000])
    orders = [BalancedOrder.of_labels(labels) for labels in (first, second)]
    found = [order.batch_indices(2, seed=1, batch_size=30)[0] for order in orders]
    zeros = [images[images < 50].tolist() for images in found]
    assert zeros[0] == zeros[1]


def test_images_without_a_label_are_left_out():
    order = BalancedOrder.of_labels(np.array([-1, 2, -1, 0, 2]))
    images, _ = order.batch_indices(0, seed=0, batch_size=40)
    assert set(images) == {1, 3, 4}


def test_hosts_take_slices_of_the_same_batch():
    labels, order = make((30, 4))
    source = ArraySource(
        np.zeros((34, 4, 4, 3), np.uint8), labels=labels.astype(np.int32), name="x"
    )
    composition = Composition((), {}, image_size=4)
    parts = [
        StepSampler(
            *(source, composition, 7, 8, 1, 1, slice_of_host(8, host, 2)),
            balanced=order,
        ).indices(5)
        for host in range(2)
    ]
    whole = order.batch_indices(5, seed=7, batch_size=8)
    for part, expected in zip(zip(*parts, strict=True), whole, strict=True):
        np.testing.assert_array_equal(np.concatenate(part), expected)
