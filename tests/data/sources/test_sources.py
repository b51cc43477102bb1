"""Sources: folders, arrays, photographs, synthetic, prepared TFDS datasets."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from tfds_files import SHARDS, prepare

from simclr_jax.data import pipeline
from simclr_jax.data.buffers import Buffers
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.data.sampling import order
from simclr_jax.data.sources import arrays, base, folder, photographs, reading, registry
from simclr_jax.data.tf_cpu import tf
from simclr_jax.data.views.composition import Composition
from simclr_jax.errors import DataError


def _noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _smooth(height, width, channels):
    """An image that JPEG keeps without much loss."""
    y, x = np.mgrid[:height, :width] / 40
    planes = [np.sin(x * (c + 1) + c) * np.cos(y) for c in range(channels)]
    image = np.uint8(127 + 100 * np.stack(planes, axis=-1))
    return image[..., 0] if channels == 1 else image


def _image_at(source, index):
    """The decoded image and its label, by the way the pipeline takes."""
    found, labels = source.read(np.array([index]))
    image, label = reading.decode_record(
        source, tf.constant(found[0]), tf.constant(labels[0])
    )
    assert image.dtype == tf.uint8
    assert label.dtype == tf.int32
    return image.numpy(), int(label)


# Whole images at another size; nothing of it is random.
WHOLE = Composition(("flip",), {"flip": {"probability": 0.0}}, image_size=8)
BUFFERS = Buffers.choose(batch_bytes=1, threads=1)


def _resize(image):
    return tf.image.resize(tf.cast(image, tf.float32), (8, 8))


def _assert_data_error(message, function, *args, **kwargs):
    """Raises a DataError of one line with every part of the message."""
    with pytest.raises(DataError) as caught:
        function(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    for part in message if isinstance(message, (list, tuple)) else [message]:
        assert str(part) in text, text
    return text


# Folders ------------------------------------------------------------------------------


def _palette(transparent):
    image = Image.fromarray(_noise(20, 30, 3)).quantize(64)
    return image, {"transparency": bytes([0, 128] * 32)} if transparent else {}


def _one_bit():
    return Image.fromarray(_noise(20, 30) > 127), {}


def _coloured_transparency():
    image = Image.fromarray(_noise(20, 30, 3))
    return image, {"transparency": tuple(int(v) for v in np.array(image)[0, 0])}


LOSSLESS = {
    "png-rgb": ("png", lambda: (Image.fromarray(_noise(20, 30, 3)), {})),
    "png-grey": ("png", lambda: (Image.fromarray(_noise(20, 30)), {})),
    "png-palette": ("png", lambda: _palette(False)),
    "png-palette-transparent": ("png", lambda: _palette(True)),
    "png-rgb-transparent": ("png", _coloured_transparency),
    "png-rgba": ("png", lambda: (Image.fromarray(_noise(20, 30, 4), "RGBA"), {})),
    "png-la": ("png", lambda: (Image.fromarray(_noise(20, 30, 2), "LA"), {})),
    "png-1-bit": ("png", _one_bit),
    "webp": ("webp", lambda: (Image.fromarray(_noise(20, 30, 3)), {"lossless": True})),
    "webp-rgba": (
        "webp",
        lambda: (
            Image.fromarray(_noise(20, 30, 4), "RGBA"),
            {"lossless": True, "exact": True},
        ),
    ),
    "bmp": ("bmp", lambda: (Image.fromarray(_noise(20, 30, 3)), {})),
    "bmp-grey": ("bmp", lambda: (Image.fromarray(_noise(20, 30)), {})),
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_folder_decodes_as_pillow(kind, tmp_path):
    suffix, make = LOSSLESS[kind]
    image, options = make()
    path = tmp_path / f"image.{suffix}"
    image.save(path, **options)
    with Image.open(path) as file:
        # Pillow asks for this detour where a palette has transparent colours.
        rgba = file.convert("RGBA") if "transparency" in file.info else file
        expected = np.asarray(rgba.convert("RGB"))
    decoded, label = _image_at(folder.FolderSource(str(tmp_path)), 0)
    assert decoded.shape == (20, 30, 3)
    np.testing.assert_array_equal(decoded, expected)
    assert label == base.NO_LABEL


def test_transparency_is_dropped_not_blended(tmp_path):
    pixels = _noise(20, 30, 4)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "image.png")
    decoded, _ = _image_at(folder.FolderSource(str(tmp_path)), 0)
    np.testing.assert_array_equal(decoded, pixels[..., :3])


def test_16_bit_grey_keeps_the_top_byte(tmp_path):
    levels = np.random.default_rng(0).integers(0, 65536, (20, 30)).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "image.png")
    decoded, _ = _image_at(folder.FolderSource(str(tmp_path)), 0)
    expected = (levels >> 8).astype(np.uint8)
    np.testing.assert_array_equal(decoded, np.stack([expected] * 3, axis=-1))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"progressive": True}])
def test_folder_decodes_jpeg(mode, options, tmp_path):
    pixels = _smooth(37, 50, len(mode))
    path = tmp_path / "image.jpg"
    Image.fromarray(pixels, mode).save(path, quality=95, **options)
    with Image.open(path) as file:
        assert file.mode == mode
        expected = np.asarray(file.convert("RGB"))
    decoded, _ = _image_at(folder.FolderSource(str(tmp_path)), 0)
    assert decoded.shape == (37, 50, 3)
    np.testing.assert_allclose(decoded.astype(int), expected.astype(int), atol=2)


def _save(path, level=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (level, level, level)).save(path)


def _labels(source):
    return [_image_at(source, index)[1] for index in range(source.num_examples)]


def test_sub_folders_are_classes(tmp_path):
    names = ["ant/1.png", "ant/deep/2.png", "bee/1.PNG", "cat/1.JPEG", "cat/2.Bmp"]
    for level, name in enumerate(names):
        _save(tmp_path / name, level)
    source = registry.open_source(f"folder:{tmp_path}", split="all")
    assert (source.num_examples, source.num_classes) == (5, 3)
    assert _labels(source) == [0, 0, 1, 2, 2]
    for index, name in enumerate(names):
        assert str(tmp_path / name) in source.describe(index)
        assert abs(int(_image_at(source, index)[0].mean()) - index) <= 1


@pytest.mark.parametrize(
    "names",
    [
        ["1.png", "2.png"],  # flat
        ["ant/1.png", "ant/2.png"],  # a single class
        ["ant/1.png", "bee/1.png", "1.png"],  # an image beside the classes
    ],
)
def test_other_folders_are_unlabelled(names, tmp_path):
    for name in names:
        _save(tmp_path / name)
    source = folder.FolderSource(str(tmp_path))
    assert source.num_examples == len(names)
    assert source.num_classes is None
    assert source.encoded
    assert source.image_shape is None
    assert set(_labels(source)) == {base.NO_LABEL}


def test_split_is_a_sub_folder(tmp_path):
    for name in ("train/ant/1.png", "train/bee/2.png", "test/ant/3.png"):
        _save(tmp_path / name)
    train = registry.open_source(f"folder:{tmp_path}", split="train")
    assert (train.num_examples, train.num_classes) == (2, 2)
    test = registry.open_source(f"folder:{tmp_path}", split="test")
    assert (test.num_examples, test.class_names) == (1, ["ant", "bee"])
    _assert_data_error(
        [tmp_path, "'unlabeled' means a sub-folder"],
        registry.open_source,
        f"folder:{tmp_path}",
        split="unlabeled",
    )


def test_other_suffixes_are_ignored_and_counted(tmp_path):
    _save(tmp_path / "1.jpg")
    for name in ("readme.txt", "labels.csv", "2.jpg.part", "jpg"):
        (tmp_path / name).write_text("no image")
    source = folder.FolderSource(str(tmp_path))
    assert (source.num_examples, source.num_ignored) == (1, 4)


def test_missing_and_empty_folders_are_named(tmp_path):
    missing = tmp_path / "missing"
    _assert_data_error([missing, "no such folder"], folder.FolderSource, str(missing))
    (tmp_path / "readme.txt").write_text("no image")
    _assert_data_error(
        [tmp_path, "no image", ".jpg"], folder.FolderSource, str(tmp_path)
    )


def _huge_png():
    """The header of an image of 60,000 x 60,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    data = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + data + struct.pack(">I", 0) + b"IDAT" + bytes(4)


@pytest.mark.parametrize(
    "content",
    [b"just some text", b"", _huge_png()],
    ids=["text", "empty", "decompression bomb"],
)
def test_a_file_that_is_no_image_is_named_at_start(content, tmp_path):
    _save(tmp_path / "a.jpg")
    path = tmp_path / "b.jpg"
    path.write_bytes(content)
    _assert_data_error([path, "no readable image"], folder.FolderSource, str(tmp_path))


@pytest.fixture(
    params=[
        ("jpg", "RGB"),
        pytest.param(("jpg", "CMYK"), marks=pytest.mark.slow),
        pytest.param(("png", "RGB"), marks=pytest.mark.slow),
        ("png", "RGBA"),
    ]
)
def truncated(request, tmp_path):
    """A folder of six images and the path of one that is cut off after its header."""
    suffix, mode = request.param
    for number in range(6):
        pixels = _noise(64, 64, len(mode), seed=number)
        Image.fromarray(pixels, mode).save(tmp_path / f"{number}.{suffix}")
    path = tmp_path / f"4.{suffix}"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return folder.FolderSource(str(tmp_path)), path


def test_a_truncated_file_is_named_when_training_reads_it(truncated):
    source, path = truncated
    plan = {"num_examples": 6, "batch_size": 2}
    for step in range(2):  # the step that shows file 4
        seeds = range(100)
        seed = next(
            s for s in seeds if 4 in order.batch_indices(step, seed=s, **plan)[0]
        )
        batches = pipeline.train_batches(
            source,
            WHOLE,
            seed=seed,
            batch_size=2,
            stop_step=step + 1,
            buffers=BUFFERS,
        )
        _assert_data_error([path, "cannot be decoded"], list, batches)


def test_a_truncated_file_is_named_when_evaluation_reads_it(truncated):
    source, path = truncated
    batches = pipeline.eval_batches(
        source,
        Preprocessing(image_size=4, crop_proportion=1.0),
        batch_size=2,
        threads=1,
    )
    _assert_data_error([path, "cannot be decoded"], list, batches)


# Arrays -------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_are_read_by_number(channels):
    images, labels = _noise(5, 6, 7, channels), np.array([3, 0, 1, 2, 3])
    source = arrays.ArraySource(images, labels, name="arrays")
    assert (source.num_examples, source.num_classes) == (5, 4)
    for index in range(5):
        image, label = _image_at(source, index)
        np.testing.assert_array_equal(image, np.broadcast_to(images[index], (6, 7, 3)))
        assert label == labels[index]
    assert source.describe(3) == "image 3 of arrays"


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_of_pixels_are_unpacked_by_the_chunk(channels):
    images = _noise(5, 6, 7, channels)
    source = arrays.ArraySource(images, np.arange(5), name="arrays")
    assert not source.encoded
    assert source.image_shape == (6, 7)
    found, labels = source.read(np.array([4, 0, 2]))
    chunk, labels = reading.unpack(source, tf.constant(found), tf.constant(labels))
    expected = np.broadcast_to(images[[4, 0, 2]], (3, 6, 7, 3))
    np.testing.assert_array_equal(chunk, expected)
    np.testing.assert_array_equal(labels, [4, 0, 2])
    np.testing.assert_array_equal(source.arrays()[0][[4, 0, 2]], expected)
    np.testing.assert_array_equal(source.arrays()[1], np.arange(5))


def test_arrays_without_labels():
    source = arrays.ArraySource(_noise(2, 4, 4, 3), name="arrays")
    assert source.num_classes is None
    assert _labels(source) == [base.NO_LABEL] * 2


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (_noise(5, 4, 4), None, "images have shape (5, 4, 4)"),
        (_noise(5, 4, 4, 4), None, "images have shape (5, 4, 4, 4)"),
        (np.zeros((5, 4, 4, 3), np.float32), None, "dtype float32, must be uint8"),
        (_noise(5, 4, 4, 3), np.zeros(4, int), "(4,)"),
        (_noise(5, 4, 4, 3), np.zeros((5, 1), int), "(5, 1)"),
        (_noise(5, 4, 4, 3), np.array([0, 1, -1, 0, 0]), "at least 0"),
        (_noise(5, 4, 4, 3), np.array([0, 1, 0.5, 0, 0]), "integer"),
    ],
)
def test_unusable_arrays_are_refused(images, labels, message):
    _assert_data_error(
        ["arrays", message], arrays.ArraySource, images, labels, name="arrays"
    )


def test_npz(tmp_path):
    images, labels = _noise(4, 5, 5, 3), np.array([0, 1, 2, 1], np.uint8)
    np.savez(tmp_path / "labelled.npz", images=images, labels=labels)
    np.savez(tmp_path / "plain.npz", images=images)
    labelled = registry.open_source(f"npz:{tmp_path}/labelled.npz", split="train")
    assert (labelled.num_examples, labelled.num_classes) == (4, 3)
    assert _labels(labelled) == [0, 1, 2, 1]
    np.testing.assert_array_equal(_image_at(labelled, 2)[0], images[2])
    plain = registry.open_source(f"npz:{tmp_path}/plain.npz", split="train")
    assert plain.num_classes is None


def test_npz_path_may_name_the_split(tmp_path):
    for number, split in enumerate(("train", "test"), start=1):
        np.savez(tmp_path / f"my-{split}.npz", images=_noise(number, 4, 4, 3))
    for number, split in enumerate(("train", "test"), start=1):
        source = registry.open_source(f"npz:{tmp_path}/my-{{split}}.npz", split=split)
        assert source.num_examples == number


def _write_other_array(path):
    np.savez(path, pictures=_noise(4, 5, 5, 3))


def _write_objects(path):
    np.savez(path, images=np.array([_noise(4, 4, 3), None], object))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: None,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no zip file"),
        _write_other_array,
        _write_objects,
    ],
    ids=["missing", "empty", "text", "other array", "objects"],
)
def test_unusable_npz_is_named(write, tmp_path):
    path = tmp_path / "data.npz"
    write(path)
    _assert_data_error([path], registry.open_source, f"npz:{path}", split="train")


def test_synthetic_is_noise_of_any_number():
    source = registry.open_source("synthetic:16", split="train")
    assert source.num_examples == 1_281_167
    assert source.num_classes == 10
    image, label = _image_at(source, 1_281_166)
    assert image.shape == (16, 16, 3)
    assert 0 <= label < 10
    again = registry.open_source("synthetic:16", split="train")
    np.testing.assert_array_equal(image, _image_at(again, 1_281_166)[0])
    assert not np.array_equal(image, _image_at(source, 0)[0])
    assert _image_at(registry.open_source("synthetic", split="train"), 0)[0].shape == (
        224,
        224,
        3,
    )


# Photographs --------------------------------------------------------------------------


def test_photographs():
    for split, each in (("train", 400), ("test", 60)):
        images, labels = photographs.load(split)
        assert images.shape == (18 * each, 32, 32, 3)
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(labels, np.repeat(np.arange(18), each))
        np.testing.assert_array_equal(photographs.load(split)[0], images)
        source = registry.open_source("photographs", split=split)
        assert (source.num_examples, source.num_classes) == (18 * each, 18)
        np.testing.assert_array_equal(_image_at(source, 100)[0], images[100])


def test_photographs_of_train_and_test_share_no_pixel(tmp_path, monkeypatch):
    # Photographs whose pixels say in which column they lie.
    names = ("narrow.png", "wide.png")
    for name, width in zip(names, (150, 250), strict=True):
        columns = np.arange(width, dtype=np.uint8)[None].repeat(90, axis=0)
        (tmp_path / "data").mkdir(exist_ok=True)
        Image.fromarray(columns).save(tmp_path / "data" / name)
    monkeypatch.setattr(photographs, "PHOTOGRAPHS", names)
    monkeypatch.setattr(photographs, "_folder", lambda: tmp_path / "data")
    train, train_labels = photographs.load("train")
    test, test_labels = photographs.load("test")
    for number, width in enumerate((150, 250)):
        seen = train[train_labels == number]
        unseen = test[test_labels == number]
        assert seen.min() == 0
        assert seen.max() < 0.65 * width <= 0.7 * width <= unseen.min()
        assert unseen.max() == width - 1


def test_photographs_have_two_splits():
    _assert_data_error(
        ["'validation'", "train, test"],
        registry.open_source,
        "photographs",
        split="validation",
    )


# Prepared TFDS datasets ---------------------------------------------------------------

COUNT = sum(SHARDS)


def _open(data_dir, split="train", name="noise", **keys):
    return registry.open_source(name, split=split, data_dir=str(data_dir), **keys)


def _assert_holds(source, images, numbers):
    assert source.num_examples == len(numbers)
    for index, number in enumerate(numbers):
        image, label = _image_at(source, index)
        np.testing.assert_array_equal(image, np.broadcast_to(images[number], (6, 7, 3)))
        assert label == number % 10


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfds")
    _, images = prepare(data_dir)
    return data_dir, images


@pytest.mark.parametrize(
    ("split", "numbers"),
    [
        ("train", range(COUNT)),
        ("train[10%:50%]", range(1, 6)),
        ("train[:5]", range(5)),
        ("train[5:8]", range(5, 8)),
        ("train[6:11]", range(6, 11)),
        ("train[-1:]", range(COUNT - 1, COUNT)),
    ],
)
def test_tfds_record_by_number(split, numbers, prepared):
    data_dir, images = prepared
    source = _open(data_dir, split)
    assert source.num_classes == 10
    _assert_holds(source, images, numbers)


def test_tfds_records_in_any_order(prepared):
    data_dir, images = prepared
    source = _open(data_dir)
    numbers = np.array([11, 0, 7, 4, 5, 8, 7])
    found, labels = source.read(numbers)
    assert len(labels) == len(numbers)
    for record, number in zip(found, numbers, strict=True):
        image, label = reading.decode_record(
            source, tf.constant(record), tf.constant(-1)
        )
        np.testing.assert_array_equal(image, images[number])
        assert label == number % 10


def test_tfds_in_the_pipeline(prepared):
    data_dir, images = prepared
    source = _open(data_dir)
    preprocessing = Preprocessing(image_size=6, crop_proportion=1.0)
    (batch,) = pipeline.eval_batches(source, preprocessing, batch_size=COUNT)
    np.testing.assert_allclose(batch["images"], preprocessing(images), atol=1e-6)
    np.testing.assert_array_equal(batch["labels"], np.arange(COUNT) % 10)


@pytest.mark.parametrize(
    ("said", "known"), [((6, 7), (6, 7)), ((-1, -1), None), ((6, -1), None)]
)
def test_tfds_knows_the_size_of_its_images(said, known, tmp_path):
    _, images = prepare(tmp_path, said_size=said)
    source = _open(tmp_path)
    assert source.encoded
    assert source.image_shape == known
    _assert_holds(source, images, range(COUNT))


def test_tfds_without_labels(tmp_path):
    _, images = prepare(tmp_path, label=False)
    source = _open(tmp_path)
    assert source.num_classes is None
    assert set(_labels(source)) == {base.NO_LABEL}
    np.testing.assert_array_equal(_image_at(source, 9)[0], images[9])


def test_tfds_label_key_that_is_absent_means_unlabelled(prepared):
    source = _open(prepared[0], label_key="kind")
    assert source.num_classes is None
    assert _image_at(source, 3)[1] == base.NO_LABEL


def test_tfds_one_channel_becomes_three(tmp_path):
    _, images = prepare(tmp_path, channels=1)
    _assert_holds(_open(tmp_path), images, range(COUNT))


@pytest.mark.parametrize(
    ("split", "numbers"), [("train", range(COUNT)), ("train[3:10]", range(3, 10))]
)
def test_tfds_array_record(split, numbers, tmp_path):
    pytest.importorskip("array_record")
    _, images = prepare(tmp_path, file_format="array_record", shards=(5, 7))
    _assert_holds(_open(tmp_path, split), images, numbers)


def test_tfds_that_is_not_prepared(tmp_path):
    message = _assert_data_error(
        ["'noise'", tmp_path, "tfds build noise"], _open, tmp_path
    )
    assert "data_dir" in message


@pytest.mark.parametrize("split", ["test", "test[:10%]", "train[10%", "train[a:b]"])
def test_tfds_split_that_is_not_there(split, prepared):
    _assert_data_error([f"{split!r}", "train"], _open, prepared[0], split)


def test_tfds_image_key_that_is_not_there(prepared):
    _assert_data_error(
        ["'picture'", "image", "label"], _open, prepared[0], image_key="picture"
    )


def test_tfds_missing_shard_is_named(tmp_path):
    folder, _ = prepare(tmp_path)
    path = folder / "noise-train.tfrecord-00001-of-00003"
    path.unlink()
    _assert_data_error([path, "missing"], _open, tmp_path)


@pytest.mark.parametrize("cut", [1, 4, 5, 50])
def test_tfds_truncated_shard_is_named(cut, tmp_path):
    folder, _ = prepare(tmp_path)
    path = folder / "noise-train.tfrecord-00001-of-00003"
    path.write_bytes(path.read_bytes()[:-cut])
    _assert_data_error([path], _open, tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 100, b"some other file " * 20],
    ids=["empty", "huge length", "text"],
)
def test_tfds_shard_of_another_kind_is_named(content, tmp_path):
    folder, _ = prepare(tmp_path)
    path = folder / "noise-train.tfrecord-00002-of-00003"
    path.write_bytes(content)
    _assert_data_error([path], _open, tmp_path)


def test_tfds_record_that_is_damaged_is_named(tmp_path):
    folder, _ = prepare(tmp_path, shards=(4,))
    path = folder / "noise-train.tfrecord-00000-of-00001"
    content = bytearray(path.read_bytes())
    position = 0
    for _ in range(2):
        position += 16 + struct.unpack_from("<Q", content, position)[0]
    content[position + 20 : position + 60] = bytes(40)  # in the third record
    path.write_bytes(content)
    batches = pipeline.train_batches(
        _open(tmp_path), WHOLE, seed=0, batch_size=4, stop_step=1, buffers=BUFFERS
    )
    _assert_data_error(["record 2 of noise/train", "cannot be decoded"], list, batches)


@pytest.mark.parametrize("dataset", ["synthetic:abc", "synthetic:0"])
def test_a_synthetic_size_must_be_a_number(dataset):
    _assert_data_error([dataset, "SIZE"], registry.open_source, dataset, split="train")


def test_no_images_at_all_are_refused():
    images = np.zeros((0, 4, 4, 3), np.uint8)
    with pytest.raises(DataError, match="holds no images"):
        arrays.ArraySource(images, name="arrays")


def test_folders_of_splits_are_no_classes(tmp_path):
    for name in ("train/a/1.png", "train/b/2.png", "val/b/3.png"):
        _save(tmp_path / name)
    for split in ("all", "train"):
        train = folder.FolderSource(str(tmp_path), split=split)
        assert train.class_names == ["a", "b"]
        assert train.name == f"folder:{tmp_path}/train"
        assert _labels(train) == [0, 1]
    val = folder.FolderSource(str(tmp_path), split="val")
    assert (val.class_names, _labels(val)) == (["a", "b"], [1])
    whole = folder.FolderSource(str(tmp_path), split=".")
    assert (whole.class_names, _labels(whole)) == (["train", "val"], [0, 0, 1])
