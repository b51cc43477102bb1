"""Files on disks and stores that fail now and then, and what reads them."""

import errno
import io
import logging
import os
import time
import types

import numpy as np
import pytest
import stores
from PIL import Image
from stores_proxy import Proxy

from simclr_jax import paths
from simclr_jax.data import pipeline
from simclr_jax.data.buffers import Buffers
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.data.sources import (
    folder,
    object_store,
    prepared,
    ranges,
    reading,
    record_index,
    shards,
    storage,
)
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


@pytest.fixture
def remote(gcs):
    path = f"{gcs}/file"
    paths.as_path(path).write_bytes(CONTENT)
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
    faults = []
    for name in ("read", "read_start", "size"):
        fault = Faults(getattr(object_store, name), error, times, suffix)
        monkeypatch.setattr(object_store, name, fault)
        faults.append(fault)
    return faults


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


@pytest.mark.parametrize("fault", ["fail_every", "reset_every"])
@request_kinds
def test_a_fault_of_a_store_passes(
    kind, fault, remote, gcs_running, waits, monkeypatch
):
    request, expected = REQUESTS[kind]
    with Proxy(gcs_running.url, **{fault: 2}, only="file") as proxy:
        stores.use(monkeypatch, gcs_running.variables(proxy.url))
        for _ in range(3):
            assert request(remote) == expected
        counts = proxy.counts()
    assert counts["failed"] + counts["reset"] == len(waits) == 2
    assert counts["requests"] == 5
    assert set(waits) == {0.5}


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
def test_a_store_is_given_up(kind, remote, gcs_running, waits, monkeypatch):
    with Proxy(gcs_running.url, fail_every=1) as proxy:
        stores.use(monkeypatch, gcs_running.variables(proxy.url))
        with pytest.raises(StoreFailed) as caught:
            REQUESTS[kind][0](remote)
        assert proxy.counts()["failed"] == 6
    message = str(caught.value)
    assert message.startswith(f"file {remote}: could not be read in 6 tries (")
    assert "503 Service Unavailable" in message
    assert "\n" not in message
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


@request_kinds
def test_a_store_that_refuses_is_not_asked_again(kind, remote, waits, monkeypatch):
    error = PermissionError(errno.EACCES, "no credentials", remote)
    faults = fail_store(monkeypatch, error, 1)
    with pytest.raises(PermissionError):
        REQUESTS[kind][0](remote)
    assert calls(faults) == 1
    assert not waits


def test_what_is_not_there(tmp_path, local, remote, waits):
    with pytest.raises(FileNotFoundError):
        storage.read_file(str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError):
        storage.read_range(f"{remote}2", 0, 1)
    assert storage.file_size(str(tmp_path / "nothing")) is None
    assert storage.file_size(f"{local}/below") is None
    assert storage.file_size(str(tmp_path)) is None
    assert storage.file_size(f"{remote}2") is None
    assert not waits


def test_what_obstore_says_becomes_one_line():
    message = (
        "Generic GCS error: Error performing GET http://127.0.0.1:1/b/a in "
        "923.71\u00b5s - Server returned non-2xx status code: 503 Service "
        "Unavailable: busy\n\nDebug"
    )
    assert object_store._shortened(message) == (
        "Server returned non-2xx status code: 503 Service Unavailable: busy"
    )


def test_large_objects_are_read_in_pieces(gcs, monkeypatch):
    content = np.random.default_rng(0).bytes(10_000)
    paths.as_path(f"{gcs}/large").write_bytes(content)
    monkeypatch.setattr(storage, "_PIECE_BYTES", 999)
    assert storage.read_file(f"{gcs}/large") == content
    copied = io.BytesIO()
    storage.copy(f"{gcs}/large", copied)
    assert copied.getvalue() == content
    paths.as_path(f"{gcs}/empty").write_bytes(b"")
    assert storage.read_file(f"{gcs}/empty") == b""


# Ranges -------------------------------------------------------------------------------


def test_a_disk_that_returns_less_than_asked_for(local, waits, monkeypatch):
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, n, place: pread(fd, min(n, 7), place))
    assert storage.read_range(local, 20, 60) == CONTENT[20:80]
    with pytest.raises(DataError, match="ends within bytes 150 to 201"):
        storage.read_range(local, 150, 51)
    assert not waits


@pytest.mark.usefixtures("waits")
def test_a_file_that_ends_too_early_is_damaged(anywhere, caplog):
    path = anywhere
    assert storage.read_range(path, 190, 10) == CONTENT[190:]
    for offset, length in ((190, 11), (200, 1), (300, 5)):
        with pytest.raises(DataError) as caught:
            storage.read_range(path, offset, length)
        assert not isinstance(caught.value, StoreFailed)
        for part in (path, f"bytes {offset} to {offset + length}", "damaged"):
            assert part in str(caught.value)
    # No second try; one may follow a connection that was lost, as under load.
    assert not [said for said in caplog.messages if "error sending" not in said]


@pytest.fixture
def requests(monkeypatch):
    """What was asked of disks and stores: (path, first byte, one past the last)."""
    made = []
    request = ranges.Files._request

    def note(self, number, start, stop):
        made.append((self.path(number), start, stop))
        return request(self, number, start, stop)

    monkeypatch.setattr(ranges.Files, "_request", note)
    return made


@pytest.fixture(params=["local", "remote"])
def anywhere(request):
    return request.getfixturevalue(request.param)


def _read_ranges(files, *wanted):
    columns = np.array(wanted, np.int64).reshape(-1, 3).T
    return ranges.Files(files).read(*columns).tolist()


def test_neighbours_are_one_request(anywhere, requests):
    found = _read_ranges([anywhere], (0, 60, 5), (0, 20, 24), (0, 50, 10))
    assert found == [CONTENT[60:65], CONTENT[20:44], CONTENT[50:60]]
    assert requests == [(anywhere, 20, 65)]


def test_a_gap_is_read_over_if_that_costs_less(tmp_path, requests):
    content = bytes(10_000)
    (tmp_path / "file").write_bytes(content)
    path, gap = str(tmp_path / "file"), ranges._GAP_BYTES
    _read_ranges([path], (0, 10, 10), (0, 20 + gap, 4), (0, 25 + 2 * gap, 3))
    assert requests == [
        (path, 10, 24 + gap),
        (path, 25 + 2 * gap, 28 + 2 * gap),
    ]


def test_files_are_asked_for_one_by_one(anywhere, requests):
    found = _read_ranges([anywhere] * 2, (1, 5, 5), (0, 10, 5), (1, 0, 5))
    assert found == [CONTENT[5:10], CONTENT[10:15], CONTENT[:5]]
    assert sorted(requests) == [(anywhere, 0, 10), (anywhere, 10, 15)]


def test_ranges_that_overlap_or_repeat(anywhere, requests):
    wanted = [(0, 10, 50), (0, 10, 50), (0, 20, 5), (0, 20, 80), (0, 30, 1)]
    found = _read_ranges([anywhere], *wanted)
    assert found == [CONTENT[start : start + n] for _, start, n in wanted]
    assert len(requests) == 1


def test_no_ranges(local, requests):
    assert _read_ranges([local]) == []
    assert not requests


@pytest.mark.parametrize("most", [10, 1000])
def test_any_ranges(anywhere, most, monkeypatch):
    monkeypatch.setattr(ranges, "_DISTANT_BYTES", most)
    random = np.random.default_rng(0)
    for _ in range(10):
        files = random.integers(0, 2, 12)
        offsets = random.integers(0, 150, 12)
        lengths = random.integers(0, 50, 12)
        found = ranges.Files([anywhere] * 2).read(files, offsets, lengths)
        expected = [CONTENT[a : a + b] for a, b in zip(offsets, lengths, strict=True)]
        assert found.tolist() == expected


def test_requests_to_a_store_are_under_way_together(remote, gcs_running, monkeypatch):
    with Proxy(gcs_running.url, latency_secs=0.2) as proxy:
        stores.use(monkeypatch, gcs_running.variables(proxy.url))
        storage.file_size(remote)  # connects
        start = time.monotonic()
        _read_ranges([remote] * 32, *((n, n, 1) for n in range(32)))
        elapsed = time.monotonic() - start
    assert 0.2 <= elapsed < 2, "one after the other they take 6.4 seconds"


def test_files_stay_open_but_not_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(ranges, "_MAX_OPEN", 3)
    names = [str(tmp_path / str(n)) for n in range(5)]
    for name in names:
        (tmp_path / name).write_bytes(CONTENT)
    opened = []
    descriptor = ranges._Descriptor
    monkeypatch.setattr(
        ranges,
        "_Descriptor",
        lambda path: opened.append(path) or descriptor(path),
    )
    files = ranges.Files(names)

    def read(*numbers, files=files):
        zeros = np.zeros(len(numbers), np.int64)
        files.read(np.array(numbers), zeros, zeros + 7)

    before = len(os.listdir("/proc/self/fd"))
    read(0, 1, 2)
    read(0, 1, 2)
    assert opened == names[:3]
    read(0)
    read(3)
    read(0, 2)
    assert opened == names[:4]
    read(1)
    assert opened == [*names[:4], names[1]], "the one unused for longest was closed"
    assert len(os.listdir("/proc/self/fd")) == before + 3
    del files, read
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_a_server_has_forgotten_is_opened_again(local, waits, monkeypatch):
    files = ranges.Files([local])
    one = np.zeros(1, np.int64)
    assert files.read(one, one + 5, one + 2).tolist() == [CONTENT[5:7]]
    first = files._descriptors.get(local)
    stale = OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    faults = Faults(storage.read_descriptor, stale, 1)
    monkeypatch.setattr(storage, "read_descriptor", faults)
    assert files.read(one, one + 5, one + 2).tolist() == [CONTENT[5:7]]
    assert files._descriptors.get(local) is not first
    assert waits == [0.5]


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
    monkeypatch.setattr(Image, "open", faults)
    assert folder.FolderSource(str(images)).num_examples == 12
    assert waits == [0.5]


def _records(dataset):
    path = str(next(dataset.glob("*.tfrecord*")))
    return path, list(tf.data.TFRecordDataset(path).as_numpy_iterator())


def _part(path, **numbers):
    return types.SimpleNamespace(filename=path, examples_in_shard=12, **numbers)


def test_tfrecord_shards_read_neighbours_together(dataset, requests):
    path, records = _records(dataset)
    shard = shards.open_records([_part(path, skip=2, take=8)], what="it")
    order = np.array([4, 0, 3, 1, 7])
    assert shard.read(order).tolist() == [records[2 + i] for i in order]
    assert len(requests) == 1, "they lie closer than a request is worth"


def test_finding_the_records_of_a_shard_tries_again(dataset, waits, monkeypatch):
    path, records = _records(dataset)
    faults = Faults(open, OSError(errno.ESTALE, "lost"), 1)
    monkeypatch.setattr(record_index, "open", faults, raising=False)
    shard = shards.open_records([_part(path, skip=0, take=12)], what="it")
    assert shard.read(np.array([11])).tolist() == [records[11]]
    assert waits == [0.5]


@pytest.fixture
def stored(dataset, gcs):
    """The dataset on a store."""
    paths.upload(dataset, paths.as_path(f"{gcs}/dataset"))
    return f"{gcs}/dataset"


def test_a_prepared_dataset_on_a_store(dataset, stored, waits, requests, monkeypatch):
    there = prepared.ShardSource(str(dataset), split="train")
    error = object_store.Unavailable(errno.EIO, "503", "somewhere")
    read, start, size = fail_store(monkeypatch, error, 1)
    source = prepared.ShardSource(stored, split="train")
    assert (read.calls, start.calls, size.calls) == (0, 3, 2)
    assert len(waits) == 2, "the size of the manifest, and its content"
    indices = np.array([7, 2, 6, 5])
    expected, _ = there.read(indices)
    del requests[:]
    found, _ = source.read(indices)
    assert found.tolist() == expected.tolist()
    assert len(waits) == 3
    assert [path.startswith(stored) for path, _, _ in requests] == [True]


def test_a_manifest_that_a_store_does_not_deliver(stored, monkeypatch):
    error = object_store.Unavailable(errno.EIO, "503", "somewhere")
    with monkeypatch.context() as patch:
        fail_store(patch, error, 1000, "index-train.npz")
        with pytest.raises(StoreFailed, match=r"index-train.npz: could not .*503"):
            prepared.ShardSource(stored, split="train")
    denied = PermissionError(errno.EACCES, "not yours", stored)
    _, opening, asking = fail_store(monkeypatch, denied, 1000, "manifest.json")
    with pytest.raises(DataError, match=r"manifest.json: cannot be read \(not yours"):
        prepared.ShardSource(stored, split="train")
    assert (opening.calls, asking.calls) == (0, 1)


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
