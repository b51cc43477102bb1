"""Images decoded by Pillow and held in memory: those that TensorFlow decodes."""

import io
import pathlib
import types

import numpy as np
import pytest
from PIL import Image

from simclr_jax import host_resources
from simclr_jax.data import pillow_decode, tf_decode
from simclr_jax.data.sources import arrays, folder, in_memory, pixels, prepared
from simclr_jax.data.sources.subsets import Subset
from simclr_jax.data.tf_cpu import tf
from simclr_jax.errors import DataError
from simclr_jax.prepare import build


def _noise(*shape, dtype=np.uint8):
    generator = np.random.default_rng(0)
    return generator.integers(0, np.iinfo(dtype).max + 1, shape, dtype)


def _photograph(height=37, width=52):
    y, x = np.mgrid[:height, :width] / 7.0
    planes = [np.sin(x + plane) * np.cos(y * plane) for plane in range(3)]
    return np.uint8(110 + 100 * np.stack(planes, axis=-1))


def _file(image, kind, **options):
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


FILES = {
    "jpeg": lambda: _file(_photograph(), "JPEG"),
    "4:4:4": lambda: _file(_photograph(), "JPEG", subsampling=0, quality=95),
    "4:2:2": lambda: _file(_photograph(), "JPEG", subsampling=1, quality=30),
    "progressive": lambda: _file(_photograph(), "JPEG", progressive=True),
    "grey jpeg": lambda: _file(_photograph()[..., 0], "JPEG"),
    "png": lambda: _file(_noise(9, 7, 3), "PNG"),
    "alpha": lambda: _file(_noise(9, 7, 4), "PNG"),
    "grey png": lambda: _file(_noise(9, 7), "PNG"),
    "grey alpha": lambda: _file(_noise(9, 7, 2), "PNG"),
    "16 bits": lambda: _file(_noise(9, 7, dtype=np.uint16), "PNG"),
    "palette": lambda: _file(
        Image.fromarray(_photograph()).quantize(16), "PNG", transparency=3
    ),
    "1 bit": lambda: _file(Image.fromarray(_noise(9, 7)).convert("1"), "PNG"),
}


@pytest.mark.parametrize("kind", FILES)
def test_pixels_are_those_of_tensorflow(kind):
    content = FILES[kind]()
    expected = tf_decode.decode_rgb(tf.constant(content)).numpy()
    found = pillow_decode.decode_rgb(content)
    assert found.dtype == np.uint8
    assert found.flags.writeable, "the kernels are compiled for such arrays"
    np.testing.assert_array_equal(found, expected)
    assert pillow_decode.image_shape(content) == expected.shape[:2]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images of three sizes in two classes, and its pixels by path."""
    root = tmp_path_factory.mktemp("images")
    for number in range(10):
        path = root / "train" / f"{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_file(_photograph(8 + number % 3, 9) + number, "PNG"))
    return root


@pytest.fixture(scope="module")
def stored(images, tmp_path_factory):
    """The same, prepared."""
    output = tmp_path_factory.mktemp("stored")
    build.prepare(build.Options(input=str(images)), str(output), num_workers=1)
    return output


def _open(kind, images, stored):
    if kind == "folder":
        return folder.FolderSource(str(images), split="train")
    return prepared.ShardSource(str(stored), split="train")


@pytest.mark.parametrize("kind", ["folder", "prepared"])
def test_files_are_held_as_they_are(kind, images, stored):
    source = _open(kind, images, stored)
    held = in_memory.hold(source, limit_mb=1)
    assert isinstance(held, arrays.HeldFiles)
    indices = np.array([7, 0, 9])
    found, labels = pixels.read(held, indices)
    expected, _ = pixels.read(source, indices)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(labels, source.labels[indices])
    for name in ("name", "num_examples", "num_classes", "class_names"):
        assert getattr(held, name) == getattr(source, name)
    assert held.describe(4) == source.describe(4)
    records, _ = held.read(indices)
    assert records.tolist() == source.read(indices)[0].tolist()
    assert in_memory.hold(held, limit_mb=0) is held


def test_a_prepared_record_is_its_image(images, stored):
    source = _open("prepared", images, stored)
    files = folder.FolderSource(str(images), split="train")
    every = np.arange(10)
    assert sorted(source.read(every)[0]) == sorted(files.read(every)[0])


def test_records_of_others_are_read_and_damage_is_named(images, stored, monkeypatch):
    source = _open("prepared", images, stored)
    features = {
        # More features than `prepare` writes, in an order of their own.
        "a": tf.train.Feature(float_list=tf.train.FloatList(value=[1.0, 2.0])),
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"x" * 300])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[2**40])),
    }
    message = tf.train.Example(features=tf.train.Features(feature=features))
    whole = message.SerializeToString()

    def read(record):
        found = np.empty(1, object)
        found[0] = record
        files = types.SimpleNamespace(read=lambda *_: found, path=lambda _: "shard")
        monkeypatch.setattr(source, "_files", files)
        # As in a dataset whose index does not say where images lie.
        monkeypatch.setattr(source, "_image", None)
        return source.read(np.array([3]))[0][0]

    assert read(whole) == b"x" * 300
    other = tf.train.Example(
        features=tf.train.Features(feature={"label": features["label"]})
    )
    for damaged in (b"", whole[:50], other.SerializeToString(), b"\xff" * 40):
        with pytest.raises(DataError, match=r"record 3 of prepared.*holds no image"):
            read(damaged)


def test_images_of_one_size_become_an_array(images):
    source = folder.FolderSource(str(images), split="train")
    sizes = np.array(pixels.shapes(source, np.arange(10)))[:, 0]
    same = Subset(source, np.flatnonzero(sizes == 9), name="same")
    held = in_memory.hold(same, limit_mb=1)
    assert isinstance(held, arrays.ArraySource)
    assert held.image_shape == (9, 9)
    np.testing.assert_array_equal(
        held.arrays()[0], pixels.read(same, np.arange(same.num_examples))[0]
    )
    np.testing.assert_array_equal(held.labels, same.labels)


def test_a_part_of_arrays_is_held():
    source = arrays.ArraySource(_noise(6, 4, 5, 1), np.arange(6), name="grey")
    part = Subset(source, np.array([5, 1]), name="part")
    held = in_memory.hold(part, limit_mb=1)
    np.testing.assert_array_equal(held.arrays()[0], source.arrays()[0][[5, 1]])
    np.testing.assert_array_equal(held.arrays()[1], [5, 1])


def test_no_more_is_read_than_shows_that_it_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(pixels, "_CHUNK", 2)
    monkeypatch.setattr(host_resources, "num_cpus", lambda: 1)
    for number in range(40):
        path = pathlib.Path(tmp_path, f"{number:02}.png")
        path.write_bytes(_file(np.zeros((400, 400, 3), np.uint8), "PNG"))
    source = folder.FolderSource(str(tmp_path))
    opened = []
    read = folder.read_image_file
    monkeypatch.setattr(
        folder,
        "read_image_file",
        lambda path, **options: opened.append(path) or read(path, **options),
    )
    # Two images take 0.92 MiB and three 1.4.
    assert in_memory.hold(source, limit_mb=1) is None
    assert len(opened) <= 2 * 2
    assert in_memory.hold(source, limit_mb=0) is None
    assert len(opened) <= 2 * 2
