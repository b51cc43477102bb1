"""Preparing datasets: what is accepted, how it is stored, kill and resume, reading."""

import io
import itertools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import struct
import tarfile
import time
import zipfile
import zlib

import commands
import numpy as np
import pytest
from cases import first
from PIL import Image

from simclr_jax import paths
from simclr_jax.data.sources import base, folder, ranges, reading, registry, storage
from simclr_jax.data.tf_cpu import tf
from simclr_jax.errors import DataError, RunFailed
from simclr_jax.prepare import build, image_check, outputs, parts, steps


def _noise(seed, height=24, width=31):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _encoded(kind, seed=0, *, height=24, width=31, **options):
    buffer = io.BytesIO()
    Image.fromarray(_noise(seed, height, width)).save(buffer, kind, **options)
    return buffer.getvalue()


def _write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _tree(root, count=40, classes=3):
    """A tree of JPEG and PNG files of different sizes in class folders."""
    for i in range(count):
        kind = ("jpeg", "png")[i % 2]
        size = {"height": 20 + i % 7, "width": 25 + i % 5}
        path = root / f"class{i % classes}" / f"{i:05}.{kind}"
        _write(path, _encoded(kind, i, **size))
    return root


def _prepare(root, output, *, num_workers=1, scratch=None, **options):
    made = build.Options(input=str(root), **options)
    return build.prepare(made, str(output), num_workers=num_workers, scratch=scratch)


def _files(folder):
    """All files of a folder with their content."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def _open(output, split="train"):
    return registry.open_source(f"prepared:{output}", split=split)


def _pixels(source, indices):
    """The images and labels of a source, by the way the pipeline takes."""
    contents, labels = source.read(np.asarray(indices))
    decoded = [
        reading.decode_record(source, tf.constant(content), tf.constant(label))
        for content, label in zip(contents, labels, strict=True)
    ]
    return [image.numpy() for image, _ in decoded], [int(label) for _, label in decoded]


def _assert_same_images(source, other):
    assert source.num_examples == other.num_examples
    indices = np.arange(source.num_examples)
    images, labels = _pixels(source, indices)
    expected, expected_labels = _pixels(other, indices)
    for image, correct in zip(images, expected, strict=True):
        np.testing.assert_array_equal(image, correct)
    assert labels == expected_labels


def _assert_data_error(parts_of_message, function, *args, **kwargs):
    with pytest.raises(DataError) as caught:
        function(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    for part in parts_of_message:
        assert str(part) in text, text


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "_PART_IMAGES", 7)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return _tree(tmp_path_factory.mktemp("tree") / "images")


@pytest.fixture(scope="module")
def dataset(tree, tmp_path_factory):
    output = tmp_path_factory.mktemp("prepared") / "dataset"
    _prepare(tree, output, shard_size_mb=0.02)
    return output


# Reading back -------------------------------------------------------------------------


def test_images_and_labels_are_those_of_the_folder(tree, dataset):
    source = _open(dataset)
    expected = folder.FolderSource(str(tree))
    assert source.class_names == expected.class_names == ["class0", "class1", "class2"]
    assert source.num_classes == 3
    _assert_same_images(source, expected)


def test_jpeg_and_png_files_are_kept_byte_for_byte(tree, dataset):
    files = sorted(path for path in tree.rglob("*") if path.is_file())
    _assert_holds_files(dataset, files, tree)


def _assert_holds_files(dataset, files, root):
    contents, _ = _open(dataset).read(np.arange(len(files)))
    assert list(contents) == [path.read_bytes() for path in files]
    shards = [str(path) for path in dataset.glob("*.tfrecord*")]
    found = {}
    for record in tf.data.TFRecordDataset(shards).as_numpy_iterator():
        features = tf.train.Example.FromString(record).features.feature
        (name,) = features["file_name"].bytes_list.value
        (found[name.decode()],) = features["image"].bytes_list.value
    expected = {path.relative_to(root).as_posix(): path.read_bytes() for path in files}
    assert found == expected


def test_tfds_reads_it(tree, dataset):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(dataset))
    assert builder.info.splits["train"].num_examples == 40
    assert len(builder.info.splits["train"].filenames) > 2
    assert builder.info.features["label"].names == ["class0", "class1", "class2"]
    read = tfds.ReadConfig(interleave_cycle_length=1)
    examples = list(
        builder.as_dataset(split="train", read_config=read).as_numpy_iterator()
    )
    _, labels = _pixels(folder.FolderSource(str(tree)), np.arange(40))
    assert [example["label"] for example in examples] == labels
    for example in examples:
        content = (tree / example["file_name"].decode()).read_bytes()
        np.testing.assert_array_equal(example["image"], tf.image.decode_image(content))


def test_any_order_of_indices(dataset):
    source = _open(dataset)
    indices = np.random.default_rng(0).integers(0, 40, 200)
    contents, labels = source.read(indices)
    for index, content, label in zip(indices, contents, labels, strict=True):
        (single,), (correct,) = source.read(np.array([index]))
        assert content == single
        assert label == correct
    contents, labels = source.read(np.array([], np.int64))
    assert len(contents) == len(labels) == 0


def test_neighbours_are_read_in_one_request(dataset, monkeypatch):
    manifest = json.loads((dataset / "manifest.json").read_text())
    first = manifest["splits"]["train"]["shards"][0]["records"]
    source = _open(dataset)
    requests = []
    request = ranges.Files._request
    monkeypatch.setattr(
        ranges.Files,
        "_request",
        lambda self, *place: requests.append(place) or request(self, *place),
    )
    source.read(np.arange(first - 3, first + 2)[::-1])
    assert len(requests) == 2, "one for each shard"
    source.read(np.array([0, 1, 1, 3]))
    index = np.load(dataset / "index-train.npz")
    start, last = index["image_offset"][0], index["image_offset"][3]
    stop = last + index["image_length"][3]
    assert requests[2:] == [(0, start, stop)], "names and labels are read over"


def test_a_dataset_of_an_earlier_version(dataset, tmp_path):
    expected, _ = _open(dataset).read(np.arange(40))
    index = dict(np.load(dataset / "index-train.npz"))
    older = tmp_path / "older"
    shutil.copytree(dataset, older)
    del index["image_offset"], index["image_length"]
    np.savez(older / "index-train.npz", **index)
    manifest = json.loads((older / "manifest.json").read_text())
    size = (older / "index-train.npz").stat().st_size
    manifest["splits"]["train"]["index"]["bytes"] = size
    (older / "manifest.json").write_text(json.dumps(manifest))
    found, _ = _open(older).read(np.arange(40))
    assert found.tolist() == expected.tolist()


def test_index_finds_every_record(dataset):
    index = np.load(dataset / "index-train.npz")
    manifest = json.loads((dataset / "manifest.json").read_text())
    position = 0
    for number, shard in enumerate(manifest["splits"]["train"]["shards"]):
        path = str(dataset / shard["file"])
        assert shard["bytes"] == os.path.getsize(path) <= 20_000
        # This reader checks the checksums of length and data.
        for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
            assert index["shard"][position] == number
            place = int(index["offset"][position]), int(index["length"][position])
            assert storage.read_range(path, *place) == record
            position += 1
    assert position == 40


# The result is a function of the input and the options --------------------------------


@pytest.mark.slow
def test_other_numbers_of_processes_give_the_same_bytes(tree, dataset, tmp_path):
    _prepare(tree, tmp_path / "two", num_workers=2, shard_size_mb=0.02)
    assert _files(tmp_path / "two") == _files(dataset)


def _stop_behind(monkeypatch, module, name, calls):
    """Makes a function of a module fail from some call on."""
    function, count = getattr(module, name), itertools.count()

    def stopping(*args, **kwargs):
        if next(count) >= calls:
            raise OSError(28, "No space left on device")
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, stopping)


@pytest.mark.parametrize(
    ("module", "name", "calls"),
    [
        (steps, "write_part", 3),
        (steps.files, "write_shard", 2),
        (steps.files, "write_preview", 0),
        (os, "replace", 30),
    ],
    ids=["parts", "shards", "preview", "anywhere"],
)
def test_unfinished_work_is_gone_on_with(
    module, name, calls, tree, dataset, tmp_path, monkeypatch
):
    output = tmp_path / "dataset"
    with monkeypatch.context() as patch:
        _stop_behind(patch, module, name, calls)
        with pytest.raises(RunFailed, match=r"No space left.*the same command"):
            _prepare(tree, output, shard_size_mb=0.02)
    _assert_data_error(["no manifest.json", output], _open, output)

    written = []
    write_part = steps.write_part
    monkeypatch.setattr(
        steps, "write_part", lambda part: written.append(part) or write_part(part)
    )
    _prepare(tree, output, shard_size_mb=0.02)
    assert _files(output) == _files(dataset)
    assert len(written) == (6 - calls if name == "write_part" else 0)


def test_a_finished_dataset_is_left_alone(tree, dataset, caplog):
    before = {path: path.stat().st_mtime_ns for path in dataset.iterdir()}
    with caplog.at_level("INFO", "simclr_jax"):
        manifest = _prepare(tree, dataset, shard_size_mb=0.02)
    assert "is finished: nothing to do" in caplog.text
    assert manifest["num_images"] == 40
    assert {path: path.stat().st_mtime_ns for path in dataset.iterdir()} == before


def test_other_options_or_files_are_refused(tmp_path):
    root = _tree(tmp_path / "images", 4)
    output = tmp_path / "dataset"
    _prepare(root, output)
    before = _files(output)
    message = ["--resize_short_side=9", output, "None"]
    _assert_data_error(message, _prepare, root, output, resize_short_side=9)
    _assert_data_error(["--input"], _prepare, tmp_path, output)
    _write(root / "class0" / "more.png", _encoded("png"))
    _assert_data_error([output, "other files"], _prepare, root, output)
    shutil.rmtree(root)
    assert _prepare(root, output)["num_images"] == 4, "the input need not be kept"
    assert _files(output) == before


def test_unfinished_work_of_other_options_or_files_is_refused(tmp_path, monkeypatch):
    root = _tree(tmp_path / "images", 20)
    output = tmp_path / "dataset"
    with monkeypatch.context() as patch:
        _stop_behind(patch, steps, "write_part", 1)
        with pytest.raises(RunFailed):
            _prepare(root, output)
    message = ["--drop_duplicates=True", "unfinished", output]
    _assert_data_error(message, _prepare, root, output, drop_duplicates=True)
    os.utime(root / "class0" / "00000.jpeg", (1, 1))
    _assert_data_error(["have changed", output], _prepare, root, output)


def test_two_commands_do_not_share_an_output(tree, tmp_path):
    output = outputs.open_output(str(tmp_path), scratch=None)
    output.claim()
    with build._lock(output):
        message = ["--output", tmp_path, "another command"]
        _assert_data_error(message, _prepare, tree, tmp_path)


def test_the_checksum_is_of_the_images_not_of_the_shards(tree, dataset, tmp_path):
    one = _prepare(tree, tmp_path / "one")
    other = json.loads((dataset / "manifest.json").read_text())
    assert len(one["splits"]["train"]["shards"]) == 1
    assert one["dataset_sha256"] == other["dataset_sha256"]
    fewer = _prepare(tree / "class0", tmp_path / "fewer")
    assert fewer["dataset_sha256"] != one["dataset_sha256"]


# What is broken -----------------------------------------------------------------------


def _png_chunk(kind, content):
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def _png_of_size(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = _png_chunk(b"IDAT", zlib.compress(bytes(100)))
    start = b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", header)
    return start + data + _png_chunk(b"IEND", b"")


def _damaged(content):
    """With other bytes in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes(200) + content[middle + 200 :]


def _animation(kind):
    more = [Image.fromarray(_noise(1))]
    return _encoded(kind, save_all=True, append_images=more)


BROKEN = {
    "empty.jpg": (lambda: b"", "is empty"),
    "text.jpg": (lambda: b"no image", "no image of a known kind"),
    "page.jpg": (lambda: b"<!DOCTYPE html><html></html>", "<!DOCTYPE ht"),
    "truncated.jpg": (lambda: _encoded("jpeg")[:-300], "truncated"),
    "header.jpg": (lambda: _encoded("jpeg")[:100], "Pillow"),
    "magic.jpg": (lambda: b"\0\0" + _encoded("jpeg")[2:], "no image of a known"),
    "damaged.jpg": (lambda: _damaged(_encoded("jpeg", quality=95)), "Corrupt JPEG"),
    "truncated.png": (lambda: _encoded("png")[:-300], "truncated"),
    "end.png": (lambda: _encoded("png")[:-12], "TensorFlow: Invalid PNG"),
    "damaged.png": (lambda: _damaged(_encoded("png")), "broken data stream"),
    "zero.png": (lambda: _png_of_size(0, 5), "no image of a known kind"),
    "bomb.png": (lambda: _png_of_size(40_000, 40_000), "decompression bomb"),
    "heic.jpg": (lambda: b"\0\0\0\x18ftypheic" + bytes(16), "is HEIC, which"),
}


def test_broken_files_are_listed_and_left_out(tree, dataset, tmp_path):
    root = tmp_path / "images"
    shutil.copytree(tree, root)
    for name, (make, _) in BROKEN.items():
        _write(root / "class1" / name, make())
    (root / "class1" / "link.jpg").symlink_to(tmp_path / "nothing")
    output = tmp_path / "dataset"
    manifest = _prepare(root, output, shard_size_mb=0.02)
    rows = (output / "broken.tsv").read_text().splitlines()
    listed = dict(row.split("\t") for row in rows)
    assert list(listed) == sorted(f"class1/{name}" for name in (*BROKEN, "link.jpg"))
    for name, (_, reason) in BROKEN.items():
        assert reason in listed[f"class1/{name}"]
    assert listed["class1/link.jpg"] == "cannot be read (No such file or directory)"
    assert manifest["num_broken"] == len(BROKEN) + 1
    assert manifest["num_images"] == 40
    assert manifest["splits"]["train"]["images_per_class"]["class1"] == 13
    other = json.loads((dataset / "manifest.json").read_text())
    assert manifest["dataset_sha256"] == other["dataset_sha256"]


def test_nothing_but_broken_files(tmp_path):
    _write(tmp_path / "images" / "a.jpg", b"text")
    message = ["all 1 files are broken", "a.jpg", "no image"]
    _assert_data_error(message, _prepare, tmp_path / "images", tmp_path / "dataset")


def _stray_bytes(count):
    content = _encoded("jpeg")
    return content[:-2] + bytes(count) + content[-2:]


def test_padding_before_the_end_of_a_jpeg_is_no_damage():
    image_check.check_image(_stray_bytes(12), image_check.Encoding())
    with pytest.raises(image_check.NotAnImage, match="extraneous bytes before"):
        image_check.check_image(_stray_bytes(40), image_check.Encoding())


def test_several_pictures_in_a_jpeg_are_its_first():
    content = _animation("mpo")
    accepted = image_check.check_image(content, image_check.Encoding())
    assert (accepted.content, accepted.format) == (content, "JPEG")


def test_a_file_is_what_its_bytes_say(tmp_path):
    _write(tmp_path / "images" / "a.jpg", _encoded("png"))
    manifest = _prepare(tmp_path / "images", tmp_path / "dataset")
    assert manifest["formats"] == {"PNG": 1}


@pytest.mark.parametrize("kind", ["webp", "bmp", "gif", "tiff"])
def test_other_formats_become_png_without_loss(kind, tmp_path):
    content = _encoded(kind, **({"lossless": True} if kind == "webp" else {}))
    _write(tmp_path / "images" / f"a.{kind}", content)
    _prepare(tmp_path / "images", tmp_path / "dataset")
    ((image,), _) = _pixels(_open(tmp_path / "dataset"), [0])
    with Image.open(io.BytesIO(content)) as picture:
        np.testing.assert_array_equal(image, np.asarray(picture.convert("RGB")))


# Options ------------------------------------------------------------------------------


def _with_duplicates(root):
    for name in ("b/1.jpeg", "a/2.jpeg", "c/3.png"):
        _write(root / name, _encoded("jpeg"))
    _write(root / "c" / "4.jpeg", _encoded("jpeg", 1))
    for name in ("a/5.jpeg", "b/5.jpeg"):
        _write(root / name, b"")
    return root


def test_duplicates_are_listed_and_dropped_if_asked_for(tmp_path):
    root = _with_duplicates(tmp_path / "images")
    kept = _prepare(root, tmp_path / "kept")
    dropped = _prepare(root, tmp_path / "dropped", drop_duplicates=True)
    for name, manifest, count in (("kept", kept, 4), ("dropped", dropped, 2)):
        listed = (tmp_path / name / "duplicates.tsv").read_text()
        assert listed == "b/1.jpeg\ta/2.jpeg\nc/3.png\ta/2.jpeg\n"
        assert (manifest["num_duplicates"], manifest["num_broken"]) == (2, 2)
        assert manifest["num_images"] == count == _open(tmp_path / name).num_examples
    assert dropped["splits"]["train"]["images_per_class"] == {"a": 1, "b": 0, "c": 1}
    assert _pixels(_open(tmp_path / "dropped"), [0, 1])[1] == [0, 2]


@pytest.mark.parametrize("resize_filter", ["lanczos", "bicubic"])
def test_larger_images_are_shrunk(resize_filter, tmp_path):
    sizes = {"wide.png": (30, 61), "tall.jpeg": (45, 20), "small.png": (9, 12)}
    for name, (height, width) in sizes.items():
        kind = name.split(".")[1]
        content = _encoded(kind, height=height, width=width)
        _write(tmp_path / "images" / name, content)
    manifest = _prepare(
        tmp_path / "images",
        tmp_path / "dataset",
        resize_short_side=12,
        resize_filter=resize_filter,
        jpeg_quality=50,
    )
    small, tall, wide = _pixels(_open(tmp_path / "dataset"), np.arange(3))[0]
    assert manifest["num_resized"] == 2
    np.testing.assert_array_equal(small, _noise(0, 9, 12))
    assert tall.shape == (27, 12, 3)
    method = getattr(Image.Resampling, resize_filter.upper())
    expected = Image.fromarray(_noise(0, 30, 61)).resize((24, 12), method)
    np.testing.assert_array_equal(wide, np.asarray(expected))
    assert manifest["sizes"]["width"] == {"min": 12, "median": 12.0, "max": 24}
    stored = _open(tmp_path / "dataset").read(np.array([1]))[0][0]
    with Image.open(io.BytesIO(stored)) as picture:
        assert picture.format == "JPEG"
        tables = picture.quantization
    with Image.open(io.BytesIO(_encoded("jpeg", quality=50))) as picture:
        assert picture.quantization == tables


def test_part_of_the_images_for_validation(tmp_path):
    root = tmp_path / "images"
    for i in range(60):
        _write(root / f"{i}.png", _encoded("png", i // 2, height=4, width=4))
    manifest = _prepare(root, tmp_path / "dataset", val_fraction=0.3)
    train, val = (_open(tmp_path / "dataset", split) for split in ("train", "val"))
    assert train.num_examples + val.num_examples == 60
    assert 8 <= val.num_examples <= 28
    images = [
        {i.tobytes() for i in _pixels(s, np.arange(s.num_examples))[0]}
        for s in (train, val)
    ]
    assert not images[0] & images[1], "equal images are on one side"
    assert len(images[0] | images[1]) == 30
    assert list(manifest["splits"]) == ["train", "val"]
    everything = _pixels(_open(tmp_path / "dataset", "."), np.arange(60))[0]
    halves = [_pixels(s, np.arange(s.num_examples))[0] for s in (train, val)]
    np.testing.assert_array_equal(everything, [*halves[0], *halves[1]])
    assert _open(tmp_path / "dataset", "all").num_examples == train.num_examples


@pytest.mark.parametrize(
    "options",
    [
        {"split": "a-b"},
        {"split": "all"},
        {"top_folders": "class"},
        {"split": "val", "val_fraction": 0.5},
        {"val_fraction": 1.0},
        {"resize_short_side": 0},
        {"resize_filter": "nearest"},
        {"jpeg_quality": 101},
        {"shard_size_mb": 0},
    ],
    ids=str,
)
def test_options_that_cannot_be(options, tree, tmp_path):
    (name, value), *_ = options.items()
    message = [f"--{name}={value}", "must be"]
    _assert_data_error(message, _prepare, tree, tmp_path / "dataset", **options)
    assert not (tmp_path / "dataset").exists()


def test_outputs_that_cannot_be(tree, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    for name, rule in (("full", "empty"), ("file", "File exists")):
        message = [f"--output={tmp_path / name}", rule]
        _assert_data_error(message, _prepare, tree, tmp_path / name)
    _assert_data_error(["xy://a/b", "gs://"], _prepare, tree, "xy://a/b")


# Inputs -------------------------------------------------------------------------------


def _pack(root, path, mode="w", around="photos/"):
    with tarfile.open(path, mode) as archive:
        # Not in order of names.
        for file in sorted(root.rglob("*.*"), reverse=True):
            archive.add(file, f"{around}{file.relative_to(root)}")
    return path


@pytest.mark.parametrize(
    "name", ["a.tar", "a.tar.gz", "a.tgz", "a.tar.bz2", "a.tar.xz"]
)
def test_tar(name, tree, tmp_path):
    mode = {"gz": "w:gz", "gz2": "w:bz2", "bz2": "w:bz2", "xz": "w:xz"}
    mode = mode.get(name.split(".")[-1].replace("tgz", "gz"), "w")
    path = _pack(tree, tmp_path / name, mode)
    _prepare(path, tmp_path / "dataset")
    _assert_same_images(_open(tmp_path / "dataset"), folder.FolderSource(str(tree)))
    assert not (tmp_path / "dataset" / ".prepare").exists()


def test_zip(tree, tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(tree.rglob("*.*"), reverse=True):
            archive.write(file, f"photos/{file.relative_to(tree)}")
        archive.writestr("__MACOSX/photos/class0/._00000.jpeg", b"of macOS")
        archive.writestr("photos/class0/readme.txt", b"of somebody")
    manifest = _prepare(path, tmp_path / "dataset")
    assert manifest["left_out"] == {
        "hidden or of a system": {"count": 1, "names": ["__MACOSX/"]},
        "not named as an image": {"count": 1, "names": ["photos/class0/readme.txt"]},
    }
    assert manifest["num_broken"] == 0
    _assert_same_images(_open(tmp_path / "dataset"), folder.FolderSource(str(tree)))


def test_a_damaged_member_of_a_zip_is_broken(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(3):
            archive.writestr(f"{i}.png", _encoded("png", i))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    _prepare(path, tmp_path / "dataset")
    broken = (tmp_path / "dataset" / "broken.tsv").read_text()
    assert re.fullmatch(r"1.png\tcannot be read \(Bad CRC-32 .*\)\n", broken)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip"])
@pytest.mark.parametrize("damage", ["cut", "text"])
def test_damaged_archives_are_named(name, damage, tree, tmp_path):
    path = tmp_path / name
    if name == "a.zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.png", _encoded("png"))
    else:
        _pack(tree, path, "w:gz" if name.endswith("gz") else "w")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"text" * 200)
    _assert_data_error(["--input", path], _prepare, path, tmp_path / "dataset")


def test_glob(tree, tmp_path):
    _prepare(f"{tree}/*[02]/*.png", tmp_path / "dataset")
    source = _open(tmp_path / "dataset")
    files = sorted([*tree.glob("class0/*.png"), *tree.glob("class2/*.png")])
    assert source.class_names == ["class0", "class2"]
    images, labels = _pixels(source, np.arange(source.num_examples))
    assert labels == [int(path.parent.name == "class2") for path in files]
    for image, path in zip(images, files, strict=True):
        with Image.open(path) as picture:
            np.testing.assert_array_equal(image, np.asarray(picture))
    _prepare(f"{tree}/**/*.*", tmp_path / "all")
    _assert_same_images(_open(tmp_path / "all"), folder.FolderSource(str(tree)))


def test_top_folders_of_splits_become_splits(tree, tmp_path):
    root = tmp_path / "images"
    shutil.copytree(tree, root / "train")
    shutil.copytree(tree / "class2", root / "val" / "class2")
    manifest = _prepare(root, tmp_path / "dataset")
    train, val = (_open(tmp_path / "dataset", split) for split in ("train", "val"))
    _assert_same_images(train, folder.FolderSource(str(tree)))
    assert val.class_names == train.class_names
    assert set(_pixels(val, np.arange(val.num_examples))[1]) == {2}
    assert manifest["splits"]["val"]["images_per_class"]["class2"] == 13
    message = ["--val_fraction=0.5", "train, val"]
    _assert_data_error(message, _prepare, root, tmp_path / "other", val_fraction=0.5)


def test_usual_names_of_splits_become_splits(tmp_path):
    names = [
        f"{split}/{name}/1.png" for split in ("training_set", "Test") for name in "ab"
    ]
    names += ["unlabelled/x/1.png", "unlabelled/x/2.png", "cover.png", "Test/c/1.png"]
    for number, name in enumerate(names):
        _write(tmp_path / "images" / name, _encoded("png", number, height=4, width=4))
    manifest = _prepare(tmp_path / "images", tmp_path / "dataset")
    assert {n: s["num_images"] for n, s in manifest["splits"].items()} == {
        **{"test": 3, "train": 2, "unlabeled": 2},
    }
    assert manifest["left_out"]["outside of the splits"]["names"] == ["cover.png"]
    for split in ("train", "test", "training_set", "unlabeled"):
        source = _open(tmp_path / "dataset", split)
        expected = folder.FolderSource(str(tmp_path / "images"), split=split)
        assert source.class_names == expected.class_names
        _assert_same_images(source, expected)
    assert _open(tmp_path / "dataset", "all").labels.tolist() == [0, 1, -1, -1]
    assert _open(tmp_path / "dataset", "val").split == "test"
    message = ["'extra'", "must be one of test, train, unlabeled"]
    _assert_data_error(message, _open, tmp_path / "dataset", "extra")
    # Datasets of earlier versions are read as they were.
    path = tmp_path / "dataset" / "manifest.json"
    path.write_text(json.dumps({**manifest, "split_meanings": None}))
    _assert_data_error(["split_meanings"], _open, tmp_path / "dataset", "all")
    del manifest["split_meanings"]
    path.write_text(json.dumps(manifest))
    assert _open(tmp_path / "dataset", "all").num_examples == 7
    assert _open(tmp_path / "dataset", "unlabeled").class_names == ["a", "b", "c"]


def test_top_folders_may_be_anything(tmp_path):
    for number, name in enumerate(("train/a/1.png", "train/b/1.png", "car/a/1.png")):
        _write(tmp_path / "images" / name, _encoded("png", number, height=4, width=4))
    found = {}
    for kind in ("auto", "classes", "splits"):
        manifest = _prepare(tmp_path / "images", tmp_path / kind, top_folders=kind)
        splits = manifest["splits"]
        found[kind] = {name: splits[name]["images_per_class"] for name in splits}
    assert found["auto"] == found["classes"] == {"train": {"car": 1, "train": 2}}
    assert found["splits"] == {"car": {"a": 1, "b": 0}, "train": {"a": 1, "b": 1}}


def test_a_flat_folder_has_no_labels_and_the_output_may_lie_in_it(tree, tmp_path):
    root = tmp_path / "images"
    for path in tree.rglob("*.*"):
        _write(root / path.name, path.read_bytes())
    expected = folder.FolderSource(str(root))
    for _ in range(2):
        manifest = _prepare(root, root / "dataset", split="photos")
        assert manifest["num_images"] == 40
    assert manifest["class_names"] is None
    source = _open(root / "dataset", "photos")
    assert source.num_classes is None
    _assert_same_images(source, expected)
    assert set(_pixels(source, np.arange(40))[1]) == {base.NO_LABEL}


def test_linked_folders_are_entered_but_not_for_ever(tree, tmp_path):
    (tmp_path / "images").mkdir()
    for path in tree.iterdir():
        (tmp_path / "images" / path.name).symlink_to(path)
    (tmp_path / "images" / "class0x").symlink_to(tmp_path / "images")
    manifest = _prepare(tmp_path / "images", tmp_path / "dataset")
    assert manifest["num_images"] == 40


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "no such file or folder"),
        ("nothing/*.jpg", "holds no image"),
        ("empty", "holds no image"),
        ("notes.txt", ".tar.gz"),
    ],
)
def test_inputs_that_cannot_be(name, message, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    path, output = tmp_path / name, tmp_path / "dataset"
    _assert_data_error(["--input", path, message], _prepare, path, output)
    assert not list(output.iterdir()), "another input can be tried"


@pytest.fixture(params=["gcs", "s3"])
def bucket(request):
    return request.getfixturevalue(request.param)


def _upload(folder, url):
    paths.upload(folder, paths.as_path(url))


@pytest.mark.parametrize("bucket", first(1, ["gcs", "s3"]), indirect=True)
def test_from_a_store_to_a_store(tree, bucket, tmp_path):
    _upload(tree, f"{bucket}/images")
    here = _prepare(tree, tmp_path / "here")
    there = _prepare(
        f"{bucket}/images", f"{bucket}/dataset", scratch=str(tmp_path / "scratch")
    )
    assert there["dataset_sha256"] == here["dataset_sha256"]
    found = storage.files_in(f"{bucket}/dataset")
    assert {name: size for name, (size, _) in found.items()} == {
        path.name: path.stat().st_size
        for path in (tmp_path / "here").iterdir()
        # The manifest names the input.
        if path.name != "manifest.json"
    } | {"manifest.json": found["manifest.json"][0]}
    assert not list((tmp_path / "scratch" / "prepare").iterdir())
    expected = _open(tmp_path / "here")
    _assert_same_images(_open(f"{bucket}/dataset"), expected)
    again = _prepare(f"{bucket}/images", f"{bucket}/dataset")
    assert again == there, "it is finished"
    shard = f"{bucket}/dataset/images-train.tfrecord-00000-of-00001"
    paths.as_path(shard).unlink()
    _assert_data_error([shard, "missing"], _open, f"{bucket}/dataset")


def test_globs_and_archives_on_a_store(tree, gcs, tmp_path):
    _upload(tree, f"{gcs}/images")
    _prepare(f"{gcs}/images/*/*.png", tmp_path / "glob")
    assert _open(tmp_path / "glob").num_examples == 20
    _prepare(f"{gcs}/images/class[01]", tmp_path / "folders")
    assert _open(tmp_path / "folders").num_classes == 2
    archive = _pack(tree, tmp_path / "a.tar.gz", "w:gz")
    paths.as_path(f"{gcs}/a.tar.gz").write_bytes(archive.read_bytes())
    _prepare(f"{gcs}/a.tar.gz", tmp_path / "archive")
    _assert_same_images(_open(tmp_path / "archive"), folder.FolderSource(str(tree)))


def test_an_output_on_a_store_is_resumed_where_it_was_begun(
    tree, gcs, tmp_path, monkeypatch
):
    output = f"{gcs}/dataset"
    upload = outputs._Bucket._upload

    def fail_at_index(self, path):
        if path.name.startswith("index"):
            raise OSError("lost")
        upload(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(outputs._Bucket, "_upload", fail_at_index)
        with pytest.raises(RunFailed, match=r"lost.*the same command resumes"):
            _prepare(tree, output, scratch=str(tmp_path / "a"))
    _assert_data_error(["no manifest.json"], _open, output)
    elsewhere = ["--output", "continue there", str(tmp_path / "a")]
    _assert_data_error(elsewhere, _prepare, tree, output, scratch=str(tmp_path / "b"))
    uploaded = []
    monkeypatch.setattr(
        outputs._Bucket,
        "_upload",
        lambda self, path: uploaded.append(path.name) or upload(self, path),
    )
    _prepare(tree, output, scratch=str(tmp_path / "a"))
    assert "images-train.tfrecord-00000-of-00001" not in uploaded
    assert uploaded[-1] == "manifest.json"
    _assert_same_images(_open(output), folder.FolderSource(str(tree)))


def test_outputs_on_a_store_that_cannot_be(tree, gcs, tmp_path):
    missing = ["gs://no-such-bucket", "no such bucket"]
    _assert_data_error(missing, _prepare, tree, "gs://no-such-bucket/dataset")
    paths.as_path(f"{gcs}/full/thesis.tex").write_text("")
    _assert_data_error(["--output", "empty"], _prepare, tree, f"{gcs}/full")
    local = ["--scratch", "on a store"]
    _assert_data_error(local, _prepare, tree, tmp_path / "a", scratch="b")


def _table(files, *, declared):
    import pyarrow as pa

    values = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
    labels = [int(path.parent.name[-1]) for path in files]
    table = pa.table({"image": values, "label": labels})
    features = {
        "image": {"_type": "Image"},
        "label": {"names": ["class0", "class1", "class2"], "_type": "ClassLabel"},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return table.replace_schema_metadata(metadata if declared else {})


def _save_arrow(folder, table):
    import pyarrow as pa

    folder.mkdir(parents=True)
    name = "data-00000-of-00001.arrow"
    with (
        pa.OSFile(str(folder / name), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as writer,
    ):
        writer.write_table(table, max_chunksize=7)
    state = {"_data_files": [{"filename": name}]}
    (folder / "state.json").write_text(json.dumps(state))


@pytest.mark.parametrize("declared", [True, False])
def test_hugging_face_parquet(declared, tree, tmp_path):
    import pyarrow.parquet as pq

    files = sorted(tree.rglob("*.*"))
    (tmp_path / "hub" / "data").mkdir(parents=True)
    pieces = {
        "train-00000-of-00002": files[:20],
        "train-00001-of-00002": files[20:],
        "test-00000-of-00001": files[::2],
    }
    for name, own in pieces.items():
        path = tmp_path / "hub" / "data" / f"{name}.parquet"
        pq.write_table(_table(own, declared=declared), path, row_group_size=6)
    _prepare(tmp_path / "hub", tmp_path / "dataset")
    train = _open(tmp_path / "dataset")
    names = ["class0", "class1", "class2"] if declared else ["0", "1", "2"]
    assert train.class_names == names
    _assert_same_images(train, folder.FolderSource(str(tree)))
    assert _open(tmp_path / "dataset", "test").num_examples == 20


def test_hugging_face_saved_dataset(tree, tmp_path):
    files = sorted(tree.rglob("*.*"))
    _save_arrow(tmp_path / "saved" / "train", _table(files, declared=True))
    _save_arrow(tmp_path / "saved" / "test", _table(files[:5], declared=True))
    splits = {"splits": ["train", "test"]}
    (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps(splits))
    _prepare(tmp_path / "saved", tmp_path / "dataset")
    source = _open(tmp_path / "dataset")
    _assert_same_images(source, folder.FolderSource(str(tree)))
    assert _open(tmp_path / "dataset", "test").num_examples == 5


def test_hugging_face_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "state.json").write_text("{}")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "a"}]}')
    message = ["pyarrow", "not installed"]
    _assert_data_error(message, _prepare, tmp_path, tmp_path / "dataset")


# Datasets that are not whole ----------------------------------------------------------


@pytest.fixture
def copy(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "copy")
    return tmp_path / "copy"


def _shard(folder, number):
    return sorted(folder.glob("*.tfrecord*"))[number]


def test_shard_of_another_size_is_named(copy):
    path = _shard(copy, 1)
    path.write_bytes(path.read_bytes() + b"x")
    _assert_data_error([path, "bytes, must have"], _open, copy)


def test_missing_files_are_named(copy):
    for path in (_shard(copy, 0), copy / "index-train.npz"):
        moved = path.rename(copy.parent / path.name)
        _assert_data_error([path, "missing"], _open, copy)
        moved.rename(path)
    _open(copy)
    (copy / "manifest.json").unlink()
    _assert_data_error([copy, "no manifest.json"], _open, copy)


def test_damaged_manifest_and_index_are_named(copy):
    index = copy / "index-train.npz"
    index.write_bytes(b"x" * index.stat().st_size)
    _assert_data_error([index, "no index"], _open, copy)
    manifest = copy / "manifest.json"
    manifest.write_text("{")
    _assert_data_error([manifest, "no manifest"], _open, copy)
    manifest.write_text('{"format_version": 2}')
    _assert_data_error([manifest, "format_version 2"], _open, copy)


def test_split_that_is_not_there(dataset):
    _assert_data_error(["'test'", "train", "'all'"], _open, dataset, "test")


def test_a_range_behind_the_end_is_an_error(tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789")
    assert storage.read_range(str(tmp_path / "file"), 3, 4) == b"3456"
    with pytest.raises(DataError, match="ends within bytes 8 to 12"):
        storage.read_range(str(tmp_path / "file"), 8, 4)


# The command --------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command(tree, dataset, tmp_path):
    arguments = ["--shard_size_mb=0.02", "--num_workers=1"]
    code, out, err = commands.run(
        "prepare", f"--input={tree}", f"--output={tmp_path}/a", *arguments
    )
    assert code == 0, err
    assert out.startswith("40 images in 3 classes, 0 broken files")
    assert "40/40 files | 0 broken | " in err
    assert "files/s | 0:00:00 left" in err
    assert _open(tmp_path / "a").num_examples == 40
    code, _, err = commands.run(
        "prepare", f"--input={tree}", f"--output={tmp_path}/a", "--jpeg_quality=9"
    )
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith("error: --jpeg_quality=9: ")


BROKEN_KINDS = [*[*BROKEN][:9], "heic.jpg"]


@pytest.fixture(scope="module")
def large_tree(tmp_path_factory):
    """10,000 files, 50 of them broken, in ten ways."""
    root = tmp_path_factory.mktemp("large")
    _tree(root, 9950, classes=10)
    for name, i in itertools.product(BROKEN_KINDS, range(5)):
        _write(root / f"class{i}" / f"{i}{name}", BROKEN[name][0]())
    return root


def _start(root, output):
    arguments = ["--num_workers=2", "--shard_size_mb=2", "--drop_duplicates"]
    return commands.start(
        "prepare", f"--input={root}", f"--output={output}", *arguments
    )


@pytest.mark.slow
def test_a_large_tree_survives_sigkill(large_tree, tmp_path):
    whole, killed = tmp_path / "dataset", tmp_path / "killed"
    process = _start(large_tree, whole)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    manifest = json.loads((whole / "manifest.json").read_text())
    assert (manifest["num_images"], manifest["num_broken"]) == (9950, 50)
    listed = (whole / "broken.tsv").read_text().splitlines()
    assert [row.split("\t")[0] for row in listed] == sorted(
        f"class{i}/{i}{name}" for name in BROKEN_KINDS for i in range(5)
    )

    moment = random.Random()
    kills = 0
    for wanted in (moment.randint(2, 12), moment.randint(14, 30), 39):
        process = _start(large_tree, killed)
        done = lambda: len(list(killed.glob(".prepare/parts/*.npz")))  # noqa: E731
        while done() < wanted and process.poll() is None:
            time.sleep(moment.uniform(0, 0.05))
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert done() < 40 or (killed / ".prepare").exists()
    assert kills >= 2
    process = _start(large_tree, killed)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert "Resuming: " in err
    assert _files(killed) == _files(whole)
    good = [path for path in large_tree.rglob("*.*") if path.stem.isdecimal()]
    _assert_holds_files(killed, sorted(good), large_tree)


@pytest.mark.slow
def test_workers_end_with_the_command(large_tree, tmp_path):
    process = _start(large_tree, tmp_path / "dataset")
    work = tmp_path / "dataset" / ".prepare" / "parts"
    while len(list(work.glob("*.npz"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    group = _descendants(process.pid)
    assert len(group) >= 3, "a fork server and two workers"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 20
    while any(pathlib.Path(f"/proc/{pid}").exists() for pid in group):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _descendants(pid):
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(c) for c in children] + [
        d for child in children for d in _descendants(int(child))
    ]
