"""Datasets that are decoded once and kept as pixels, and those that cannot be."""

import numpy as np
import pytest
from tfds_files import prepare

from simclr_jax.data.sources import arrays, base, in_memory, reading, registry
from simclr_jax.data.tf_cpu import tf
from simclr_jax.errors import DataError

SIZE = 6 * 7 * 3  # bytes of an image of tfds_files.py
MIB = 2**20


def _open(folder, split="train"):
    return registry.open_source("noise", split=split, data_dir=str(folder))


def _one_by_one(source):
    """Images and labels by the way of a single record."""
    images, labels = [], []
    for index in range(source.num_examples):
        found, label = source.read(np.array([index]))
        image, label = reading.decode_record(source, tf.constant(found[0]), label[0])
        images.append(image.numpy())
        labels.append(int(label))
    return np.stack(images), labels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("split", ["train", "train[3:10]"])
def test_a_loaded_dataset_is_that_of_single_records(channels, split, tmp_path):
    prepare(tmp_path, channels=channels)
    source = _open(tmp_path, split)
    images, labels = _one_by_one(source)
    held = in_memory.hold(source, limit_mb=1024)
    assert isinstance(held, arrays.ArraySource)
    for found in (held.arrays(), in_memory.whole(held), _one_by_one(held)):
        np.testing.assert_array_equal(found[0], images)
        np.testing.assert_array_equal(found[1], labels)
    assert held.num_examples == source.num_examples
    assert held.image_shape == (6, 7)
    assert not held.encoded


def test_more_images_than_are_decoded_at_a_time(tmp_path, monkeypatch):
    _, images = prepare(tmp_path)
    monkeypatch.setattr(in_memory, "_BATCH_SIZE", 5)
    held, labels = in_memory.hold(_open(tmp_path), limit_mb=1024).arrays()
    np.testing.assert_array_equal(held, images)
    np.testing.assert_array_equal(labels, np.arange(12) % 10)


def test_names_and_classes_are_kept(tmp_path):
    prepare(tmp_path)
    # Without the highest labels there are as many classes as before.
    source = _open(tmp_path, "train[:4]")
    source.class_names = [f"class {number}" for number in range(10)]
    held = in_memory.hold(source, limit_mb=1024)
    assert held.name == source.name == "noise/train[:4]"
    assert held.num_classes == 10
    assert held.class_names == source.class_names
    assert held.describe(3) == source.describe(3)


def test_images_without_labels(tmp_path):
    _, images = prepare(tmp_path, label=False)
    held = in_memory.hold(_open(tmp_path), limit_mb=1024)
    assert held.num_classes is None
    np.testing.assert_array_equal(held.arrays()[0], images)
    np.testing.assert_array_equal(held.arrays()[1], base.NO_LABEL)


def test_arrays_are_not_copied():
    source = arrays.ArraySource(np.zeros((2, 4, 4, 3), np.uint8), name="arrays")
    assert in_memory.hold(source, limit_mb=1024) is source


def test_an_image_of_another_size_is_named(tmp_path):
    prepare(tmp_path, said_size=(6, 8))
    with pytest.raises(DataError) as caught:
        in_memory.hold(_open(tmp_path), limit_mb=1024)
    message = str(caught.value)
    assert message.startswith("record 0 of noise/train: has 6 x 7 pixels")
    assert "6 x 8" in message
    assert "\n" not in message


def _large(count):
    """A source of that many images of 1 MiB, of which none is read."""

    class Large:
        num_examples = count
        image_shape = (1024, 1024 // 3)
        encoded = False

        def read(self, indices):
            raise _Read

    return Large()


class _Read(Exception):
    pass


def _fits(source, limit_mb):
    """Whether such a source would be read into memory."""
    try:
        assert in_memory.hold(source, limit_mb=limit_mb) is None
    except _Read:
        return True
    return False


def test_what_fits():
    each = 1024 * (1024 // 3) * 3
    source = _large(100)
    limit = -(-100 * each // MIB)
    assert _fits(source, limit)
    assert not _fits(source, limit - 1)
    assert not _fits(source, 0)


def test_images_to_the_last_byte_fit():
    source = _large(1)
    source.image_shape = (1024, 1024)
    assert _fits(source, 3)
    source.image_shape = (1024, 1025)
    assert not _fits(source, 3)


def test_made_up_images_have_no_pixels():
    source = registry.open_source("synthetic:8", split="train")
    with pytest.raises(DataError, match=r"dataset synthetic: .* 64 .* 1281167"):
        in_memory.whole(source)
