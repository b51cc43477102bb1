"""Features that are split over devices against the same in one NumPy array."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from simclr_jax import parallel
from simclr_jax.configs import base
from simclr_jax.data import pipeline
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.data.sources.arrays import ArraySource
from simclr_jax.data.sources.subsets import Subset
from simclr_jax.errors import DataError
from simclr_jax.evaluation import features
from simclr_jax.evaluation.kept_features import KeptFeatures

COUNT = 101


def mesh_of(devices):
    return parallel.create_mesh(jax.devices()[:devices])


def numbered_images(count=COUNT):
    """A source whose image i has the red value i and the label 2 i."""
    images = np.zeros((count, 4, 4, 3), np.uint8)
    images[..., 0] = np.arange(count)[:, None, None]
    labels = 2 * np.arange(count, dtype=np.int32)
    return ArraySource(images, labels, name="numbered")


@jax.tree_util.Partial
def red(images):
    """[N, 2]: the red value and its square."""
    value = 255 * images[:, 0, 0, 0]
    return jnp.stack([value, value**2], axis=1)


def batches_of(source, devices):
    return pipeline.eval_batches(
        source, Preprocessing(4, 1.0), batch_size=16, num_parts=devices
    )


def extract(devices, source=None):
    source = source or numbered_images()
    return features.extract(
        red,
        batches_of(source, devices),
        mesh_of(devices),
        num_examples=source.num_examples,
        name="numbered",
    )


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_every_image_is_encoded_once_where_it_belongs(devices):
    found = extract(devices)
    assert len(found) == COUNT
    assert found.width == 2
    numbers = np.arange(COUNT)
    x = found.by_image(np.asarray(found.x))
    np.testing.assert_allclose(x, np.stack([numbers, numbers**2], axis=1), rtol=1e-5)
    np.testing.assert_array_equal(found.labels, 2 * numbers)
    # Each device holds consecutive images, and all hold as many rows.
    assert {shard.data.shape for shard in found.x.addressable_shards} == {
        (len(found.x) // devices, 2)
    }
    order = found.positions[found.positions >= 0]
    np.testing.assert_array_equal(order, numbers)


def test_figures_of_some_images_are_refused():
    few, many = (list(batches_of(numbered_images(n), 2)) for n in (60, 101))
    settings = {"name": "numbered", "num_examples": 80}
    for batches, message in ((few, "gave 64 of"), (many, "gave more than")):
        with pytest.raises(DataError, match=f"numbered: {message} its 80 images"):
            features.extract(red, batches, mesh_of(2), **settings)
    # As many batches, but with fewer images in them.
    with pytest.raises(DataError, match="gave 60 of its 64 images"):
        features.extract(red, few, mesh_of(2), name="numbered", num_examples=64)
    with pytest.raises(DataError, match="gave 0 of its 64 images"):
        features.extract(red, [], mesh_of(2), name="numbered", num_examples=64)


@pytest.mark.parametrize("devices", [1, 8])
def test_a_part_is_taken_in_the_given_order(devices):
    found = extract(devices)
    chosen = np.array([3, 100, 57, 0, 4, 99])
    part = found.take(chosen)
    np.testing.assert_array_equal(part.labels, 2 * chosen)
    np.testing.assert_allclose(
        part.by_image(np.asarray(part.x))[:, 0], chosen, rtol=1e-5
    )
    again = part.take(np.array([5, 1]))
    np.testing.assert_array_equal(again.labels, [2 * 99, 2 * 100])
    np.testing.assert_allclose(
        again.by_image(np.asarray(again.x))[:, 0], [99, 100], rtol=1e-5
    )


def test_features_of_features(monkeypatch):
    monkeypatch.setattr(features, "_ROWS_AT_A_TIME", 5)
    found = extract(8)
    weights = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    mapped = found.map(jax.tree_util.Partial(jnp.dot, b=weights))
    np.testing.assert_allclose(
        np.asarray(mapped.x), np.asarray(found.x) @ weights, rtol=1e-5
    )
    np.testing.assert_array_equal(mapped.positions, found.positions)


def test_values_by_row_and_by_image_are_inverse():
    found = extract(8).take(np.array([90, 5, 17]))
    values = np.array([1.5, 2.5, 3.5], np.float32)
    rows = np.asarray(found.by_row(values, fill=-7))
    np.testing.assert_array_equal(found.by_image(rows), values)
    assert (rows[found.positions < 0] == -7).all()


def test_pixels_are_shrunk_as_pillow_shrinks_them():
    image = np.random.default_rng(0).random((90, 90, 3), np.float32)
    found = np.asarray(features.pixels(image[None])).reshape(32, 32, 3)
    channels = [
        Image.fromarray(image[..., i]).resize((32, 32), Image.Resampling.BILINEAR)
        for i in range(3)
    ]
    np.testing.assert_allclose(found, np.stack(channels, axis=-1), atol=1e-5)
    small = image[None, :20, :20]
    np.testing.assert_array_equal(features.pixels(small), small.reshape(1, -1))


def kept(tmp_path, devices, **changes):
    config = base.get_config()
    settings = {
        "workdir": str(tmp_path),
        "encoder": "0" * 64,
        "preprocessing": Preprocessing(4, 1.0),
        "config": config,
        "mesh": mesh_of(devices),
    }
    return KeptFeatures(**settings | changes)


@pytest.mark.parametrize(("wrote", "reads"), [(8, 8), (8, 1), (1, 2)])
def test_kept_features_are_the_same_on_any_number_of_devices(
    tmp_path, monkeypatch, wrote, reads
):
    monkeypatch.setattr("simclr_jax.evaluation.kept_features._FILE_BYTES", 5 * 8)
    monkeypatch.setattr("simclr_jax.evaluation.kept_features._READ_BYTES", 7 * 8)
    source, h = numbered_images(), extract(wrote)
    assert kept(tmp_path, wrote).read(source) is None
    kept(tmp_path, wrote).write(source, h)
    (folder,) = (tmp_path / "eval" / "features").iterdir()
    files = sorted(folder.glob("h-*.npy"))
    assert max(len(np.load(path)) for path in files) == 5
    # For other programs: the files one after the other are the dataset.
    joined = np.concatenate([np.load(path) for path in files])
    np.testing.assert_array_equal(joined, h.by_image(np.asarray(h.x)))
    found = kept(tmp_path, reads).read(source)
    np.testing.assert_array_equal(found.by_image(np.asarray(found.x)), joined)
    np.testing.assert_array_equal(found.labels, h.labels)
    assert found.mesh.size == reads


def test_kept_features_of_something_else_are_not_used(tmp_path):
    source = numbered_images()
    kept(tmp_path, 1).write(source, extract(1))
    other = base.get_config()
    other.data.dataset = "cifar100"
    for changes in (
        {"encoder": "1" * 64},
        {"preprocessing": Preprocessing(4, 0.875)},
        {"config": other},
    ):
        assert kept(tmp_path, 1, **changes).read(source) is None
    assert kept(tmp_path, 1).read(numbered_images(100)) is None
    assert kept(tmp_path, 1).read(Subset(source, np.arange(COUNT), name="s")) is None
    relabelled = numbered_images()
    relabelled.labels = relabelled.labels + 1
    assert kept(tmp_path, 1).read(relabelled) is None
    assert kept(tmp_path, 1).read(source) is not None


def test_damaged_features_are_named(tmp_path):
    source = numbered_images()
    kept(tmp_path, 2).write(source, extract(2))
    (folder,) = (tmp_path / "eval" / "features").iterdir()
    damaged = folder / "h-000000056.npy"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(DataError, match=r"h-000000056\.npy: is damaged; delete the f"):
        kept(tmp_path, 1).read(source)
    # A writer that was killed leaves no index.
    (folder / "index.json").unlink()
    assert kept(tmp_path, 1).read(source) is None


def test_shards_are_not_copied():
    """The buffer that is filled is the one that is returned."""
    found = extract(2)
    assert found.x.sharding == parallel.batch_sharding(mesh_of(2))
    x = dataclasses.replace(found).x
    rows = jnp.zeros((4, 2))
    split = parallel.batch_sharding(mesh_of(2))
    before = [shard.data.unsafe_buffer_pointer() for shard in x.addressable_shards]
    written = features._write(x, jax.device_put(rows, split), 1, mesh=mesh_of(2))
    after = [shard.data.unsafe_buffer_pointer() for shard in written.addressable_shards]
    assert after == before
