"""Batches: the same at every start, on any number of threads and hosts."""

import time

import numpy as np
import pytest
from cases import first
from PIL import Image
from simclr_settings import CROP

from simclr_jax.data import pipeline
from simclr_jax.data.buffers import Buffers
from simclr_jax.data.sampling import boxes, draws, order
from simclr_jax.data.sources import arrays, folder, reading
from simclr_jax.data.tf_cpu import tf
from simclr_jax.data.views import definition
from simclr_jax.data.views.composition import Composition
from simclr_jax.errors import DataError

SETTINGS = {
    "crop": CROP,
    "flip": {"probability": 0.5},
    "grayscale": {"probability": 0.3},
    "noise": {"probability": 0.5, "stddev_min": 0.0, "stddev_max": 0.1},
}
VIEW = Composition(("crop", "flip", "grayscale"), SETTINGS, image_size=8)
# Without random numbers but the box: of an image of one level it keeps that level.
CROP = VIEW.crop_alone()
SEED, COUNT = 5, 29


def _arrays(count, *, labelled=True):
    images = np.random.default_rng(0).integers(0, 256, (count, 12, 10, 3), np.uint8)
    labels = np.arange(count) if labelled else None
    return arrays.ArraySource(images, labels, name="arrays")


def _numbered(count):
    """Images whose pixels are their number; a view of which keeps it."""
    numbers = np.arange(count, dtype=np.uint8)[:, None, None, None]
    images = np.broadcast_to(numbers, (count, 2, 2, 3)).copy()
    return arrays.ArraySource(images, np.arange(count), name="numbered")


def _buffers(threads):
    return Buffers.choose(batch_bytes=1, threads=threads)


def _batches(source=None, view=VIEW, *, threads=1, **settings):
    settings = {"seed": SEED, "batch_size": 8, "stop_step": 3} | settings
    source = source or _arrays(COUNT)
    settings["buffers"] = _buffers(threads)
    return list(pipeline.train_batches(source, view, **settings))


def _assert_equal(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key])


def _draws(composition, indices, epochs):
    """Keys [B, V] and uniform numbers [B, V, D] of the views of some images."""
    words = (indices.astype(np.uint32), epochs.astype(np.uint32))
    key = order.view_keys(*words, seed=SEED, num_views=2)
    return key, draws.view_draws(key, composition.operations)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of images of many sizes, each in a class of its own."""
    root = tmp_path_factory.mktemp("files")
    generator = np.random.default_rng(0)
    for number in range(COUNT):
        height, width = generator.integers(20, 90, 2)
        y, x = np.mgrid[:height, :width] / (5.0 + number)
        planes = [np.sin(x + plane) * np.cos(y) for plane in range(3)]
        image = np.uint8(127 + 100 * np.stack(planes, axis=-1))
        (root / f"{number:02}").mkdir()
        suffix = "png" if number % 5 == 0 else "jpg"
        Image.fromarray(image).save(root / f"{number:02}" / f"image.{suffix}")
    return folder.FolderSource(str(root))


@pytest.fixture(scope="module", params=["pixels", "files"])
def source(request, files):
    """29 images whose labels are their numbers."""
    return _arrays(COUNT) if request.param == "pixels" else files


@pytest.fixture(scope="module")
def from_start(source):
    """Steps 0 to 7: more than two epochs of three steps."""
    return _batches(source, stop_step=8)


def test_shapes_and_types(from_start):
    assert len(from_start) == 8
    for batch in from_start:
        assert set(batch) == {"images", "labels"}
        assert batch["images"].shape == (8, 2, 8, 8, 3)
        assert batch["images"].dtype == np.uint8
        assert batch["labels"].shape == (8,)
        assert batch["labels"].dtype == np.int32


@pytest.mark.parametrize("num_views", first(1, [3, 1]))
def test_number_of_views(num_views, source, from_start):
    (batch,) = _batches(source, num_views=num_views, stop_step=1)
    assert batch["images"].shape == (8, num_views, 8, 8, 3)
    common = min(num_views, 2)
    expected = from_start[0]["images"][:, :common]
    np.testing.assert_array_equal(batch["images"][:, :common], expected)


@pytest.mark.parametrize("start", first(1, [3, 1, 7]))
def test_a_step_is_the_same_from_any_start(start, source, from_start):
    batches = _batches(source, start_step=start, stop_step=8)
    assert len(batches) == 8 - start
    for batch, expected in zip(batches, from_start[start:], strict=True):
        _assert_equal(batch, expected)


def test_noise_is_the_same_from_any_start(source):
    noisy = Composition(("crop", "noise"), SETTINGS, image_size=8)
    _, *expected = _batches(source, noisy)
    for batch, other in zip(
        _batches(source, noisy, start_step=1), expected, strict=True
    ):
        _assert_equal(batch, other)


def test_threads_do_not_matter(source, from_start):
    batches = _batches(source, threads=4, stop_step=8)
    for batch, expected in zip(batches, from_start, strict=True):
        _assert_equal(batch, expected)


class _SlowAtFirst:
    """The first read takes long, so that the ones after it could overtake it."""

    waited = False

    def __init__(self, source):
        self._source = source

    def __getattr__(self, name):
        return getattr(self._source, name)

    def read(self, indices):
        if not self.waited:
            self.waited = True
            time.sleep(0.3)
        return self._source.read(indices)


def test_order_does_not_depend_on_speed(source, from_start):
    batches = _batches(_SlowAtFirst(source), threads=4, stop_step=8)
    for batch, expected in zip(batches, from_start, strict=True):
        _assert_equal(batch, expected)


@pytest.mark.parametrize(
    ("num_hosts", "settings"),
    first(
        1,
        [
            (2, {"host_crop": True, "block_size": 3}),
            (4, {"block_size": 4}),
            (2, {}),
            (4, {"host_crop": True}),
        ],
    ),
    ids=str,
)
def test_hosts_share_the_global_batch(num_hosts, settings, source):
    whole = _batches(source, **settings)
    hosts = [
        _batches(source, num_hosts=num_hosts, host_index=h, **settings)
        for h in range(num_hosts)
    ]
    for step, parts in enumerate(zip(*hosts, strict=True)):
        for part in parts:
            assert len(part["images"]) == 8 // num_hosts
        together = {
            key: np.concatenate([part[key] for part in parts]) for key in parts[0]
        }
        _assert_equal(together, whole[step])


def test_the_seed_matters(source, from_start):
    (other,) = _batches(source, seed=6, stop_step=1)
    assert not np.array_equal(other["labels"], from_start[0]["labels"])


def test_views_differ_from_each_other_and_by_epoch():
    # With as many images as the batch has, every step is an epoch of all images.
    source = _arrays(8)
    batches = _batches(source, stop_step=3)
    views = np.stack([b["images"][np.argsort(b["labels"])] for b in batches])
    for image in range(8):
        shown = views[:, image].reshape(6, -1)
        assert len(np.unique(shown, axis=0)) == 6


def test_every_view_has_its_own_draws(source):
    batches = _batches(source, host_crop=True, num_views=3, stop_step=10)
    words = np.concatenate([batch["draws"] for batch in batches])
    words = words.reshape(-1, VIEW.num_draws)
    assert len(np.unique(words, axis=0)) == len(words) == 10 * 8 * 3
    # Nor does one view use a number for two purposes.
    assert all(len(np.unique(row)) == len(row) for row in words)


def test_labels_belong_to_their_images():
    for batch in _batches(_numbered(20), CROP, stop_step=6):
        numbers = batch["images"][..., 0]
        expected = batch["labels"][:, None, None, None]
        np.testing.assert_array_equal(numbers, np.broadcast_to(expected, numbers.shape))


def test_a_batch_or_an_epoch_shows_no_image_twice(from_start):
    for epoch in (from_start[:3], from_start[3:6]):
        labels = np.concatenate([batch["labels"] for batch in epoch])
        assert len(np.unique(labels)) == 24


def test_unlabelled_images_have_label_minus_1():
    (batch,) = _batches(_arrays(8, labelled=False), stop_step=1)
    np.testing.assert_array_equal(batch["labels"], -1)


def _as_defined(source, index, key, uniform, composition):
    """The views of one image, an operation after the other."""
    found, labels = source.read(np.array([index]))
    image, _ = reading.decode_record(source, tf.constant(found[0]), labels[0])
    view = definition.compose(
        composition.operations, composition.settings, image_size=8
    )
    where = boxes.random_boxes(key, composition.box_draws(image.shape[:2]))
    return np.stack([view(image, b, u) for b, u in zip(where, uniform, strict=True)])


@pytest.mark.parametrize("step", first(1, [0, 10**6]))
@pytest.mark.parametrize("block_size", first(1, [4, 1]))
def test_a_step_shows_the_images_and_draws_of_its_number(step, block_size, source):
    settings = {"start_step": step, "stop_step": step + 1, "block_size": block_size}
    (batch,) = _batches(source, **settings)
    indices, epochs = order.batch_indices(
        step, seed=SEED, num_examples=COUNT, batch_size=8, block_size=block_size
    )
    np.testing.assert_array_equal(batch["labels"], indices)
    key, uniform = _draws(VIEW, indices, epochs)
    for number, index in enumerate(indices):
        own = order.Key(key.first[number], key.second[number])
        expected = _as_defined(source, index, own, uniform[number], VIEW)
        views = batch["images"][number]
        np.testing.assert_allclose(views.astype(int), expected.astype(int), atol=1)

    (batch,) = _batches(source, host_crop=True, **settings)
    np.testing.assert_array_equal(batch["labels"], indices)
    np.testing.assert_array_equal(batch["draws"], uniform)
    assert batch["draws"].dtype == np.float32


@pytest.mark.slow
def test_split_leaves_the_crops_that_crop_alone_makes(source):
    split = _batches(source, host_crop=True, stop_step=4)
    crops = _batches(source, CROP, stop_step=4)
    for batch, expected in zip(split, crops, strict=True):
        assert set(batch) == {"images", "labels", "draws"}
        assert batch["images"].dtype == np.uint8
        np.testing.assert_array_equal(batch["images"], expected["images"])
        np.testing.assert_array_equal(batch["labels"], expected["labels"])
        assert batch["draws"].shape == (8, 2, VIEW.num_draws)


def test_a_composition_without_random_numbers(source):
    (batch,) = _batches(source, CROP, host_crop=True, stop_step=1)
    assert batch["draws"].shape == (8, 2, 0)


@pytest.mark.slow
def test_without_a_crop_the_whole_image_is_resized(source):
    whole = Composition(("flip",), {"flip": {"probability": 0.0}}, image_size=8)
    (batch,) = _batches(source, whole, stop_step=1)
    for views, index in zip(batch["images"], batch["labels"], strict=True):
        found, labels = source.read(np.array([index]))
        image, _ = reading.decode_record(source, tf.constant(found[0]), labels[0])
        box = (0, 0, *image.shape[:2])
        expected = definition.to_uint8(definition.crop_and_resize(image, box, (8, 8)))
        for view in views:
            np.testing.assert_allclose(view.astype(int), expected, atol=1)


def test_blocks_are_read_together(source):
    seen = []

    class Watched(_SlowAtFirst):
        waited = True

        def read(self, indices):
            seen.append(indices)
            return super().read(indices)

    settings = {"batch_size": 20, "num_views": 1, "stop_step": 1}
    _batches(Watched(source), CROP, block_size=20, **settings)
    (indices,) = seen
    steps = np.diff(indices) % COUNT
    np.testing.assert_array_equal(steps, 1)


def test_a_dataset_smaller_than_a_batch_is_refused_at_once():
    settings = {"seed": 0, "batch_size": 8, "stop_step": 1}
    with pytest.raises(DataError, match=r"batch_size=8: arrays has only 7 images,"):
        pipeline.train_batches(_arrays(7), VIEW, **settings)
    with pytest.raises(DataError, match=r"only 9 images in blocks of 5, and"):
        pipeline.train_batches(_arrays(9), VIEW, block_size=5, **settings)


def test_a_batch_that_hosts_cannot_share_is_refused():
    with pytest.raises(ValueError, match="batch_size=8: not divisible by 3 hosts"):
        _batches(num_hosts=3)


@pytest.mark.slow
def test_a_late_start_costs_no_more(source):
    def first_batch(step):
        started = time.perf_counter()
        _batches(source, CROP, start_step=step, stop_step=step + 1)
        return time.perf_counter() - started

    first_batch(0)
    times = {step: [] for step in (0, 10**6)}
    for _ in range(4):
        for step, measured in times.items():
            measured.append(first_batch(step))
    assert min(times[10**6]) < 3 * min(times[0])


# All images as they are ---------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 8, 17])
def test_pixels_of_all_images_in_order(count):
    batches = list(reading.pixel_batches(_numbered(count), batch_size=8))
    sizes = [len(batch["labels"]) for batch in batches]
    assert sizes == [min(8, count - start) for start in range(0, count, 8)]
    images = np.concatenate([batch["images"] for batch in batches])
    labels = np.concatenate([batch["labels"] for batch in batches])
    np.testing.assert_array_equal(labels, np.arange(count))
    assert images.shape == (count, 2, 2, 3)
    np.testing.assert_array_equal(images[:, 0, 0, 0], np.arange(count))


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
    source = arrays.ArraySource(_numbered(5)._images, name="numbered")
    (batch,) = _evaluate(source, batch_size=8)
    np.testing.assert_array_equal(batch["labels"], -1)
    assert batch["mask"].sum() == 5
