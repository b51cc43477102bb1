"""Files on disks and stores that fail now and then, and what reads them."""

import errno
import io
import itertools
import logging
import os
import types

import numpy as np
import pytest
from PIL import Image

from simclr_jax.data import pipeline
from simclr_jax.data.buffers import Buffers
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.data.sources import folder, prepared, reading, storage, tfds
from simclr_jax.data.tf_cpu import tf
from simclr_jax.data.views.composition import Composition
from simclr_jax.errors import DataError, RunFailed, StoreFailed
from simclr_jax.prepare import build

CONTENT = bytes(range(200))
REQUESTS = {
    "file": (lambda path: storage.read_file(path), CONTENT),
    "range": (lambda path: storage.read_range(path, 20, 60), CONTENT[20:80]),
    "size": (lambda path: storage.file_size(path), 200),
}
PASSING_ERRNOS = ("ESTALE", "EIO", "ETIMEDOUT", "ENOTCONN", "ECONNRESET", "EAGAIN")
PASSING_ERRORS = (
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.AbortedError,
    tf.errors.InternalError,
    tf.errors.ResourceExhaustedError,
    tf.errors.UnknownError,
)
CROP = {"area_min": 0.08, "area_max": 1.0, "ratio_min": 0.75, "ratio_max": 1.33}
request_kinds = pytest.mark.parametrize("kind", REQUESTS)


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """The seconds that would have been waited."""
    seconds = []
    policy = storage.Retries(jitter=lambda: 1.0, sleep=seconds.append)
    monkeypatch.setattr(storage, "RETRIES", policy)
    return seconds


@pytest.fixture
def local(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return str(path)


_numbers = itertools.count()


@pytest.fixture
def remote():
    path = f"ram://storage{next(_numbers)}/file"
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(CONTENT)
    return path


class Faults:
    """Makes a function raise at its first calls for paths that end in `suffix`."""

    def __init__(self, function, error, times, suffix=""):
        self._function, self._error, self._times = function, error, times
        self._suffix = suffix
        self.calls = 0

    def __call__(self, path, *args, **kwargs):
        if not str(path).endswith(self._suffix):
            return self._function(path, *args, **kwargs)
        self.calls += 1
        if self.calls <= self._times:
            raise self._error
        return self._function(path, *args, **kwargs)


def fail_disk(monkeypatch, name, times, suffix=""):
    """Opening a file and asking for its size fail; how often is in `calls`."""
    number = getattr(errno, name)
    error = OSError(number, os.strerror(number), "somewhere")
    opening = Faults(open, error, times, suffix)
    # Not the module's own `os`, which is everybody's.
    asking = Faults(os.stat, error, times, suffix)
    names = {key: getattr(os, key) for key in dir(os)}
    fake = types.SimpleNamespace(**{**names, "stat": asking})
    monkeypatch.setattr(storage, "open", opening, raising=False)
    monkeypatch.setattr(storage, "os", fake)
    return opening, asking


def fail_store(monkeypatch, error, times, suffix=""):
    real = tf.io.gfile
    opening = Faults(real.GFile, error, times, suffix)
    asking = Faults(real.stat, error, times, suffix)
    fake = types.SimpleNamespace(
        GFile=opening, stat=asking, exists=real.exists, isdir=real.isdir
    )
    monkeypatch.setattr(storage, "gfile", lambda: fake)
    return opening, asking


def calls(faults):
    return max(fault.calls for fault in faults)


# Faults that pass ---------------------------------------------------------------------


@pytest.mark.parametrize("name", PASSING_ERRNOS)
@request_kinds
def test_a_fault_of_a_disk_passes(kind, name, local, waits, monkeypatch):
    request, expected = REQUESTS[kind]
    faults = fail_disk(monkeypatch, name, 2)
    assert request(local) == expected
    assert calls(faults) == 3
    assert waits == [0.5, 1.5]


@pytest.mark.parametrize("kind_of_error", PASSING_ERRORS)
@request_kinds
def test_a_fault_of_a_store_passes(kind, kind_of_error, remote, waits, monkeypatch):
    request, expected = REQUESTS[kind]
    faults = fail_store(monkeypatch, kind_of_error(None, None, "try later"), 2)
    assert request(remote) == expected
    assert calls(faults) == 3
    assert waits == [0.5, 1.5]


def test_the_last_try_counts(local, waits, monkeypatch):
    fail_disk(monkeypatch, "EIO", 5)
    assert storage.read_file(local) == CONTENT
    assert waits == [0.5, 1.5, 4.5, 13.5, 40.5]


@request_kinds
def test_a_disk_is_given_up(kind, local, waits, monkeypatch):
    faults = fail_disk(monkeypatch, "ESTALE", 100)
    with pytest.raises(StoreFailed) as caught:
        REQUESTS[kind][0](local)
    cause = os.strerror(errno.ESTALE)
    assert str(caught.value) == (
        f"file {local}: could not be read in 6 tries ({cause})"
    )
    assert isinstance(caught.value, DataError)
    assert caught.value.__cause__.errno == errno.ESTALE
    assert calls(faults) == 6
    assert len(waits) == 5, "nothing is waited for after the last try"


@request_kinds
def test_a_store_is_given_up(kind, remote, waits, monkeypatch):
    error = tf.errors.UnavailableError(None, None, "503 busy\nand more")
    faults = fail_store(monkeypatch, error, 100)
    with pytest.raises(StoreFailed) as caught:
        REQUESTS[kind][0](remote)
    assert str(caught.value) == (
        f"file {remote}: could not be read in 6 tries (503 busy)"
    )
    assert calls(faults) == 6
    assert len(waits) == 5


def test_each_failed_try_is_told(local, monkeypatch, caplog):
    fail_disk(monkeypatch, "EIO", 2)
    with caplog.at_level("WARNING", "simclr_jax"):
        storage.read_range(local, 0, 5)
    first, second = caplog.records
    assert first.levelno == logging.WARNING
    cause = os.strerror(errno.EIO)
    assert first.getMessage() == (
        f"file {local}: try 1 of 6 failed ({cause}); the next in 0.5 seconds"
    )
    assert "try 2 of 6" in second.getMessage()
    assert "in 1.5 seconds" in second.getMessage()


def test_what_works_is_not_told(local, caplog):
    with caplog.at_level("DEBUG", "simclr_jax"):
        storage.read_file(local)
    assert not caplog.records


def test_waits_are_drawn(local, waits, monkeypatch):
    jitter = iter([0.5, 1.25])
    policy = storage.Retries(jitter=lambda: next(jitter), sleep=waits.append)
    monkeypatch.setattr(storage, "RETRIES", policy)
    fail_disk(monkeypatch, "EIO", 2)
    storage.read_file(local)
    assert waits == [0.25, 1.875]


def test_the_policy_takes_about_a_minute():
    policy = storage.Retries()
    drawn = [policy.jitter() for _ in range(1000)]
    assert 0.5 <= min(drawn) < 0.6
    assert 1.4 < max(drawn) <= 1.5
    waits = [policy.first_wait_secs * policy.growth**i for i in range(policy.tries - 1)]
    assert 50 < sum(waits) < 70


# Faults that do not -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ENOENT", "EACCES", "EPERM", "EISDIR", "ENOSPC"])
@pytest.mark.parametrize("kind", ["file", "range"])
def test_other_faults_of_a_disk_are_final(kind, name, local, waits, monkeypatch):
    faults = fail_disk(monkeypatch, name, 1)
    with pytest.raises(OSError, match="somewhere") as caught:
        REQUESTS[kind][0](local)
    assert caught.value.errno == getattr(errno, name)
    assert calls(faults) == 1
    assert not waits


@pytest.mark.parametrize(
    "kind_of_error",
    [
        tf.errors.NotFoundError,
        tf.errors.PermissionDeniedError,
        tf.errors.UnauthenticatedError,
        tf.errors.FailedPreconditionError,
        tf.errors.UnimplementedError,
    ],
)
@request_kinds
def test_other_faults_of_a_store_are_final(
    kind, kind_of_error, remote, waits, monkeypatch
):
    faults = fail_store(monkeypatch, kind_of_error(None, None, "no"), 1)
    with pytest.raises(kind_of_error):
        REQUESTS[kind][0](remote)
    assert calls(faults) == 1
    assert not waits


def test_what_is_not_there(tmp_path, local, remote, waits):
    with pytest.raises(FileNotFoundError):
        storage.read_file(str(tmp_path / "nothing"))
    with pytest.raises(tf.errors.NotFoundError):
        storage.read_range(f"{remote}2", 0, 1)
    assert storage.file_size(str(tmp_path / "nothing")) is None
    assert storage.file_size(f"{local}/below") is None
    assert storage.file_size(str(tmp_path)) is None
    assert storage.file_size(f"{remote}2") is None
    assert not waits


# Ranges -------------------------------------------------------------------------------


def test_a_disk_that_returns_less_than_asked_for(local, waits, monkeypatch):
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, n, place: pread(fd, min(n, 7), place))
    assert storage.read_range(local, 20, 60) == CONTENT[20:80]
    with pytest.raises(DataError, match="ends within bytes 150 to 201"):
        storage.read_range(local, 150, 51)
    assert not waits


@pytest.mark.parametrize("place", ["local", "remote"])
def test_a_file_that_ends_too_early_is_damaged(place, waits, request):
    path = request.getfixturevalue(place)
    assert storage.read_range(path, 190, 10) == CONTENT[190:]
    for offset, length in ((190, 11), (200, 1), (300, 5)):
        with pytest.raises(DataError) as caught:
            storage.read_range(path, offset, length)
        assert not isinstance(caught.value, StoreFailed)
        for part in (path, f"bytes {offset} to {offset + length}", "damaged"):
            assert part in str(caught.value)
    assert not waits


@pytest.fixture
def requests(monkeypatch):
    """What was asked of `storage.read_range`."""
    made = []
    read_range = storage.read_range
    monkeypatch.setattr(
        storage,
        "read_range",
        lambda *request: made.append(request) or read_range(*request),
    )
    return made


def _read_ranges(paths, *ranges):
    columns = np.array(ranges, np.int64).reshape(-1, 3).T
    return storage.read_ranges(paths, *columns).tolist()


def test_neighbours_are_one_request(local, requests):
    found = _read_ranges([local], (0, 60, 5), (0, 20, 24), (0, 50, 10))
    assert found == [CONTENT[60:65], CONTENT[20:44], CONTENT[50:60]]
    assert requests == [(local, 20, 45)]


def test_a_gap_of_no_more_than_a_records_frame_is_read_over(local, requests):
    assert _read_ranges([local], (0, 10, 10), (0, 36, 4), (0, 57, 3)) == [
        CONTENT[10:20],
        CONTENT[36:40],
        CONTENT[57:60],
    ]
    assert requests == [(local, 10, 30), (local, 57, 3)]


def test_files_are_asked_for_one_by_one(local, remote, requests):
    found = _read_ranges([local, remote], (1, 5, 5), (0, 10, 5), (1, 0, 5))
    assert found == [CONTENT[5:10], CONTENT[10:15], CONTENT[:5]]
    assert requests == [(local, 10, 5), (remote, 0, 10)]


def test_ranges_that_overlap_or_repeat(local, requests):
    ranges = [(0, 10, 50), (0, 10, 50), (0, 20, 5), (0, 20, 80), (0, 30, 1)]
    found = _read_ranges([local], *ranges)
    assert found == [CONTENT[start : start + n] for _, start, n in ranges]
    assert len(requests) <= 2


def test_no_ranges(local, requests):
    assert _read_ranges([local]) == []
    assert not requests


def test_any_ranges(local, remote):
    random = np.random.default_rng(0)
    for _ in range(20):
        files = random.integers(0, 2, 12)
        offsets = random.integers(0, 150, 12)
        lengths = random.integers(0, 50, 12)
        found = storage.read_ranges([local, remote], files, offsets, lengths)
        expected = [CONTENT[a : a + b] for a, b in zip(offsets, lengths, strict=True)]
        assert found.tolist() == expected


# Who reads ----------------------------------------------------------------------------


def _image(number):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (9, 8, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for number in range(12):
        (root / f"{number:02}.png").write_bytes(_image(number))
    return root


@pytest.fixture(scope="module")
def dataset(images, tmp_path_factory):
    output = tmp_path_factory.mktemp("dataset") / "prepared"
    options = build.Options(input=str(images))
    build.prepare(options, str(output), num_workers=1)
    return output


def test_folders_try_again(images, waits, monkeypatch):
    source = folder.FolderSource(str(images))
    fail_disk(monkeypatch, "ESTALE", 2, "03.png")
    contents, _ = source.read(np.array([2, 3]))
    assert contents.tolist() == [_image(2), _image(3)]
    assert waits == [0.5, 1.5]


def test_looking_through_a_folder_tries_again(images, waits, monkeypatch):
    faults = Faults(Image.open, OSError(errno.EIO, "lost"), 1, "03.png")
    monkeypatch.setattr(folder.Image, "open", faults)
    assert folder.FolderSource(str(images)).num_examples == 12
    assert waits == [0.5]


def _records(dataset):
    path = str(next(dataset.glob("*.tfrecord*")))
    return path, list(tf.data.TFRecordDataset(path).as_numpy_iterator())


def test_tfrecord_shards_read_neighbours_together(dataset, requests):
    path, records = _records(dataset)
    shard = tfds.TFRecordShard(path, skip=2, take=8)
    assert len(shard) == 8
    order = np.array([4, 0, 3, 1, 7])
    assert shard.read(order).tolist() == [records[2 + i] for i in order]
    sizes = [length for _, _, length in requests]
    expected = [(2, 3), (5, 6), (9, 9)]
    assert sizes == [
        sum(len(r) for r in records[a : b + 1]) + 16 * (b - a) for a, b in expected
    ]


def test_tfrecord_shards_try_again(dataset, waits, monkeypatch):
    path, records = _records(dataset)
    shard = tfds.TFRecordShard(path, skip=0, take=12)
    fail_disk(monkeypatch, "EIO", 1)
    assert shard.read(np.array([5])).tolist() == [records[5]]
    assert waits == [0.5]


def test_finding_the_records_of_a_shard_tries_again(dataset, waits, monkeypatch):
    path, records = _records(dataset)
    faults = Faults(open, OSError(errno.ESTALE, "lost"), 1)
    monkeypatch.setattr(tfds, "open", faults, raising=False)
    shard = tfds.TFRecordShard(path, skip=0, take=12)
    assert shard.read(np.array([11])).tolist() == [records[11]]
    assert waits == [0.5]


@pytest.mark.parametrize("path", ["gs://bucket/shard", "/gs/bucket/shard"])
def test_shards_without_an_index_are_not_read_from_a_store(path):
    instruction = types.SimpleNamespace(filename=path, skip=0, take=1)
    with pytest.raises(DataError) as caught:
        tfds._open_shards([instruction])
    for part in (path, "index", "python -m simclr_jax.prepare", "gcsfuse"):
        assert part in str(caught.value)


@pytest.fixture
def stored(dataset):
    """The dataset on a store."""
    folder = f"ram://stored{next(_numbers)}"
    for path in dataset.iterdir():
        tf.io.gfile.copy(str(path), f"{folder}/{path.name}")
    return folder


def test_a_prepared_dataset_on_a_store(dataset, stored, waits, requests, monkeypatch):
    there = prepared.ShardSource(str(dataset), split="train")
    error = tf.errors.UnavailableError(None, None, "503")
    opening, asking = fail_store(monkeypatch, error, 1)
    source = prepared.ShardSource(stored, split="train")
    assert asking.calls > 1
    assert len(waits) == 2, "one size and the manifest"
    indices = np.array([7, 2, 6, 5])
    expected, _ = there.read(indices)
    del requests[:]
    opening.calls = 0
    found, _ = source.read(indices)
    assert found.tolist() == expected.tolist()
    assert len(waits) == 3
    assert len(requests) == 2
    assert all(path.startswith(stored) for path, _, _ in requests)


def test_a_manifest_that_a_store_does_not_deliver(stored, monkeypatch):
    error = tf.errors.UnavailableError(None, None, "503")
    fail_store(monkeypatch, error, 1000, "index-train.npz")
    with pytest.raises(StoreFailed, match=r"index-train.npz: could not .*503"):
        prepared.ShardSource(stored, split="train")
    denied = tf.errors.PermissionDeniedError(None, None, "not yours")
    opening, _ = fail_store(monkeypatch, denied, 1000, "manifest.json")
    monkeypatch.setattr(storage, "file_size", lambda path: 1)
    with pytest.raises(DataError, match=r"manifest.json: cannot be read \(not yours"):
        prepared.ShardSource(stored, split="train")
    assert opening.calls == 1


def _training(source):
    composition = Composition(
        ("crop",), {"crop": {"sampler": "reference", **CROP}}, image_size=8
    )
    buffers = Buffers.choose(batch_bytes=1, threads=1, parallel_reads=1)
    return pipeline.train_batches(
        source, composition, seed=0, batch_size=6, stop_step=4, buffers=buffers
    )


PREPROCESSING = Preprocessing(image_size=8, crop_proportion=1.0)


@pytest.mark.parametrize("kind", ["train", "eval", "pixels"])
def test_batches_end_with_what_the_store_says(kind, images, monkeypatch):
    source = folder.FolderSource(str(images))
    source.image_shape = (9, 8)
    batches = {
        "train": lambda: _training(source),
        "eval": lambda: pipeline.eval_batches(source, PREPROCESSING, batch_size=6),
        "pixels": lambda: reading.pixel_batches(source, batch_size=6),
    }[kind]()
    fail_disk(monkeypatch, "ESTALE", 1000, "05.png")
    cause = os.strerror(errno.ESTALE)
    with pytest.raises(StoreFailed) as caught:
        list(batches)
    expected = f"file {images}/05.png: could not be read in 6 tries ({cause})"
    assert str(caught.value) == expected
    assert caught.value.__cause__.errno == errno.ESTALE


def test_batches_do_not_depend_on_faults(images, waits, monkeypatch):
    source = folder.FolderSource(str(images))
    expected = list(_training(source))
    fail_disk(monkeypatch, "ESTALE", 3, "05.png")
    for batch, correct in zip(_training(source), expected, strict=True):
        np.testing.assert_array_equal(batch["images"], correct["images"])
    assert len(waits) == 3


def test_prepare_leaves_no_image_out_because_of_a_store(images, tmp_path, monkeypatch):
    options = build.Options(input=str(images))
    with monkeypatch.context() as patch:
        fail_disk(patch, "ESTALE", 1000, "05.png")
        with pytest.raises(RunFailed, match=r"05.png: could not .*the same command"):
            build.prepare(options, str(tmp_path / "dataset"), num_workers=1)
    manifest = build.prepare(options, str(tmp_path / "dataset"), num_workers=1)
    assert manifest["num_images"] == 12
