"""Class-balanced shares of a dataset."""

import numpy as np
import pytest

from simclr_jax.data.sources import subsets
from simclr_jax.data.sources.arrays import ArraySource
from simclr_jax.data.sources.base import NO_LABEL
from simclr_jax.data.sources.folder import FolderSource
from simclr_jax.data.tf_cpu import tf
from simclr_jax.errors import DataError

CLASSES = 4


def make_source(num_examples=400, labelled=True):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_examples, 8, 8, 3), np.uint8)
    # Classes of different sizes; image i shows its own number.
    numbers = np.minimum(np.arange(num_examples) % 10, CLASSES - 1)
    images[:, 0, 0, :2] = np.stack(np.divmod(np.arange(num_examples), 256), axis=-1)
    return ArraySource(images, numbers if labelled else None, name="made")


def test_takes_the_share_of_each_class():
    source = make_source()
    part = subsets.class_balanced(source, 0.1, seed=0)
    counts = np.bincount(subsets.labels(source))
    np.testing.assert_array_equal(
        np.bincount(subsets.labels(part)), np.ceil(counts * 0.1)
    )
    assert part.num_examples == sum(np.ceil(counts * 0.1)) == len(set(part.indices))


def test_reads_the_images_it_names():
    source = make_source()
    part = subsets.class_balanced(source, 0.1, seed=0)
    records, found = part.read(np.arange(part.num_examples))
    shown = records[:, 0, 0, 0].astype(int) * 256 + records[:, 0, 0, 1]
    np.testing.assert_array_equal(shown, part.indices)
    np.testing.assert_array_equal(found, source.read(part.indices)[1])
    assert part.describe(3) == source.describe(part.indices[3])


def test_smaller_shares_lie_within_larger_ones_and_seeds_differ():
    source = make_source()
    small = subsets.class_balanced(source, 0.05, seed=0)
    large = subsets.class_balanced(source, 0.3, seed=0)
    assert set(small.indices) < set(large.indices)
    again = subsets.class_balanced(source, 0.05, seed=0)
    np.testing.assert_array_equal(small.indices, again.indices)
    other = subsets.class_balanced(source, 0.05, seed=1)
    assert set(small.indices) != set(other.indices)


def test_every_class_has_an_image():
    part = subsets.class_balanced(make_source(), 1e-6, seed=0)
    np.testing.assert_array_equal(np.sort(subsets.labels(part)), np.arange(CLASSES))


def test_all_is_the_source_itself():
    source = make_source()
    assert subsets.class_balanced(source, 1.0, seed=0) is source


def test_needs_labels():
    with pytest.raises(DataError, match="made: has no labels"):
        subsets.class_balanced(make_source(labelled=False), 0.5, seed=0)


def test_known_labels_are_not_read(tmp_path):
    for name in ("a/1.png", "b/2.png"):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_bytes(tf.io.encode_png(np.zeros((8, 8, 3), np.uint8)).numpy())
    source = FolderSource(str(tmp_path))
    path.unlink()
    np.testing.assert_array_equal(subsets.labels(source), [0, 1])
    part = subsets.class_balanced(source, 0.5, seed=0)
    np.testing.assert_array_equal(subsets.labels(part), [0, 1])


class InRecords(ArraySource):
    """Keeps labels in its records, as TFDS does."""

    def __init__(self, images, numbers, *, name):
        super().__init__(images, numbers, name=name)
        self.labels = None

    def read(self, indices):
        return self._images[indices], np.full(len(indices), NO_LABEL, np.int32)

    def unpack(self, record, label):
        del label
        return record, tf.cast(record[1, 1, 0], tf.int32)


@pytest.mark.parametrize("kind", [ArraySource, InRecords])
def test_hidden_labels_are_hidden_wherever_they_are_kept(kind):
    images, numbers = make_source().arrays()
    images[:, 1, 1, 0] = numbers
    source = kind(images, numbers, name="made")
    kept = subsets.class_balanced(source, 0.25, seed=0).indices
    part = subsets.hide_labels(source, 0.25, seed=0)
    expected = np.full(len(numbers), -1)
    expected[kept] = numbers[kept]
    np.testing.assert_array_equal(subsets.labels(part), expected)
    records, _ = part.read(np.arange(part.num_examples))
    np.testing.assert_array_equal(records, images)
    assert subsets.hide_labels(source, 1.0, seed=0) is source


def test_a_record_that_cannot_be_read_is_named():
    class Broken(InRecords):
        def read(self, indices):
            if 3 in indices:
                raise OSError("gone")
            return super().read(indices)

    images, numbers = make_source().arrays()
    with pytest.raises(DataError, match=r"image 3 of made: .*gone"):
        subsets.labels(Broken(images, numbers, name="made"))
