"""Batches: the same at every start, on any number of threads and hosts."""

import time

import numpy as np
import pytest

from simclr_jax.data import augment, pipeline, sources
from simclr_jax.data.tf_cpu import tf
from simclr_jax.errors import DataError

SETTINGS = {
    "crop": {
        "sampler": "reference",
        "area_min": 0.08,
        "area_max": 1.0,
        "ratio_min": 3 / 4,
        "ratio_max": 4 / 3,
    },
    "flip": {"probability": 0.5},
    "noise": {"probability": 0.5, "stddev_min": 0.0, "stddev_max": 0.1},
}
VIEW = augment.compose(("crop", "flip", "noise"), SETTINGS, image_size=8)


def _arrays(count, *, labelled=True):
    images = np.random.default_rng(0).integers(0, 256, (count, 12, 10, 3), np.uint8)
    labels = np.arange(count) if labelled else None
    return sources.ArraySource(images, labels, name="arrays")


def _numbered(count):
    """Images whose pixels are their number; a view of which keeps it."""
    numbers = np.arange(count, dtype=np.uint8)[:, None, None, None]
    images = np.broadcast_to(numbers, (count, 2, 2, 3)).copy()
    return sources.ArraySource(images, np.arange(count), name="numbered")


def _show_seed(image, seed):
    """A view of the image's number and the seed it is given."""
    numbers = tf.cast(image[0, 0, :1], tf.int64)
    return tf.concat([numbers, seed], axis=0)


def _batches(source=None, view=VIEW, **settings):
    settings = {"seed": 5, "batch_size": 8, "threads": 1, "stop_step": 3} | settings
    return list(pipeline.train_batches(source or _arrays(29), view, **settings))


def _assert_equal(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key])


@pytest.fixture(scope="module")
def from_start():
    """Steps 0 to 7: more than two epochs of three steps."""
    return _batches(stop_step=8)


def test_shapes_and_types(from_start):
    assert len(from_start) == 8
    for batch in from_start:
        assert set(batch) == {"images", "labels"}
        assert batch["images"].shape == (8, 2, 8, 8, 3)
        assert batch["images"].dtype == np.uint8
        assert batch["labels"].shape == (8,)
        assert batch["labels"].dtype == np.int32


@pytest.mark.parametrize("num_views", [1, 3])
def test_number_of_views(num_views, from_start):
    (batch,) = _batches(num_views=num_views, stop_step=1)
    assert batch["images"].shape == (8, num_views, 8, 8, 3)
    common = min(num_views, 2)
    expected = from_start[0]["images"][:, :common]
    np.testing.assert_array_equal(batch["images"][:, :common], expected)


@pytest.mark.parametrize("start", [1, 3, 7])
def test_a_step_is_the_same_from_any_start(start, from_start):
    batches = _batches(start_step=start, stop_step=8)
    assert len(batches) == 8 - start
    for batch, expected in zip(batches, from_start[start:], strict=True):
        _assert_equal(batch, expected)


def test_threads_do_not_matter(from_start):
    for batch, expected in zip(_batches(threads=4), from_start, strict=False):
        _assert_equal(batch, expected)


class _SlowAtFirst(sources.ArraySource):
    """The first read takes long, so that the ones after it could overtake it."""

    waited = False

    def read(self, indices):
        if not self.waited:
            self.waited = True
            time.sleep(0.3)
        return super().read(indices)


def test_order_does_not_depend_on_speed(from_start):
    arrays = _arrays(29)
    slow = _SlowAtFirst(arrays._images, arrays._labels, name="slow")
    for batch, expected in zip(
        _batches(slow, threads=4, stop_step=8), from_start, strict=True
    ):
        _assert_equal(batch, expected)


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_hosts_share_the_global_batch(num_hosts, from_start):
    hosts = [_batches(num_hosts=num_hosts, host_index=h) for h in range(num_hosts)]
    for step, parts in enumerate(zip(*hosts, strict=True)):
        for part in parts:
            assert len(part["images"]) == 8 // num_hosts
        together = {
            key: np.concatenate([part[key] for part in parts]) for key in parts[0]
        }
        _assert_equal(together, from_start[step])


def test_the_seed_matters(from_start):
    (other,) = _batches(seed=6, stop_step=1)
    assert not np.array_equal(other["labels"], from_start[0]["labels"])


def test_views_differ_from_each_other_and_by_epoch():
    # With as many images as the batch has, every step is an epoch of all images.
    source = _arrays(8)
    batches = _batches(source, stop_step=3)
    views = np.stack([b["images"][np.argsort(b["labels"])] for b in batches])
    for image in range(8):
        shown = views[:, image].reshape(6, -1)
        assert len(np.unique(shown, axis=0)) == 6


def test_every_view_has_its_own_seed():
    batches = _batches(_numbered(20), _show_seed, num_views=3, stop_step=10)
    seeds = np.concatenate([batch["images"][..., 1:] for batch in batches])
    assert len(np.unique(seeds.reshape(-1, 2), axis=0)) == 10 * 8 * 3


def test_labels_belong_to_their_images():
    for batch in _batches(_numbered(20), _show_seed, stop_step=6):
        numbers = batch["images"][..., 0]
        np.testing.assert_array_equal(numbers, batch["labels"][:, None].repeat(2, 1))


def test_a_batch_or_an_epoch_shows_no_image_twice(from_start):
    for epoch in (from_start[:3], from_start[3:6]):
        labels = np.concatenate([batch["labels"] for batch in epoch])
        assert len(np.unique(labels)) == 24


def test_unlabelled_images_have_label_minus_1():
    (batch,) = _batches(_arrays(8, labelled=False), stop_step=1)
    np.testing.assert_array_equal(batch["labels"], -1)


def test_a_dataset_smaller_than_a_batch_is_refused_at_once():
    with pytest.raises(DataError, match=r"batch_size=8: arrays has only 7 images"):
        pipeline.train_batches(_arrays(7), VIEW, seed=0, batch_size=8, stop_step=1)


def test_a_batch_that_hosts_cannot_share_is_refused():
    with pytest.raises(ValueError, match="batch_size=8: not divisible by 3 hosts"):
        _batches(num_hosts=3)


def test_a_late_start_costs_no_more():
    source = _numbered(29)

    def first_batch(step):
        started = time.perf_counter()
        _batches(source, _show_seed, start_step=step, stop_step=step + 1)
        return time.perf_counter() - started

    first_batch(0)
    times = {step: [] for step in (0, 100_000)}
    for _ in range(4):
        for step, measured in times.items():
            measured.append(first_batch(step))
    assert min(times[100_000]) < 3 * min(times[0])


# Evaluation ---------------------------------------------------------------------------


def _prepare(image):
    return tf.cast(image, tf.float32) / 255


def _evaluate(source, **settings):
    return list(pipeline.eval_batches(source, _prepare, threads=1, **settings))


@pytest.mark.parametrize("count", [1, 7, 8, 9, 40])
def test_evaluation_shows_every_image_once_in_order(count):
    source = _numbered(count)
    batches = _evaluate(source, batch_size=8)
    assert len(batches) == -(-count // 8)
    for batch in batches:
        assert set(batch) == {"images", "labels", "mask"}
        assert batch["images"].shape == (8, 2, 2, 3)
        assert batch["images"].dtype == np.float32
        assert batch["labels"].dtype == np.int32
        assert batch["mask"].dtype == bool
    mask = np.concatenate([batch["mask"] for batch in batches])
    np.testing.assert_array_equal(mask, np.arange(len(mask)) < count)
    labels = np.concatenate([batch["labels"] for batch in batches])
    np.testing.assert_array_equal(labels[mask], np.arange(count))
    images = np.concatenate([batch["images"] for batch in batches])[mask]
    np.testing.assert_allclose(images[:, 0, 0, 0] * 255, np.arange(count), rtol=1e-6)


@pytest.mark.parametrize("count", [3, 13, 16, 18])
@pytest.mark.parametrize("num_hosts", [2, 4])
def test_hosts_share_the_evaluation(count, num_hosts):
    source = _numbered(count)
    expected = _evaluate(source, batch_size=8)
    hosts = [
        _evaluate(source, batch_size=8, num_hosts=num_hosts, host_index=h)
        for h in range(num_hosts)
    ]
    for whole, parts in zip(expected, zip(*hosts, strict=True), strict=True):
        assert all(len(part["mask"]) == 8 // num_hosts for part in parts)
        together = {key: np.concatenate([part[key] for part in parts]) for key in whole}
        _assert_equal(together, whole)


def test_evaluation_of_unlabelled_images():
    source = sources.ArraySource(_numbered(5)._images, name="numbered")
    (batch,) = _evaluate(source, batch_size=8)
    np.testing.assert_array_equal(batch["labels"], -1)
    assert batch["mask"].sum() == 5
