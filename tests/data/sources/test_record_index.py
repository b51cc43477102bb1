"""Finding the records of shards once, and keeping what was found."""

import itertools
import os
import time
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from simclr_jax.data.sources import (
    array_records,
    kept,
    record_index,
    shards,
    storage,
)
from simclr_jax.data.tf_cpu import tf
from simclr_jax.errors import DataError


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Everything is kept, and the user's cache is another."""
    monkeypatch.setattr(record_index, "FEWEST_KEPT", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _write(path, records):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


def _records(count, seed, most=300):
    random = np.random.default_rng(seed)
    return [random.bytes(n) for n in random.integers(0, most, count)]


@pytest.fixture
def dataset(tmp_path):
    """(the parts of four shards, their records)."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    parts, records = [], []
    for number, count in enumerate((5, 1, 8, 3)):
        path = folder / f"noise-train.tfrecord-{number:05}-of-00004"
        records.append(_records(count, number))
        _write(path, records[-1])
        parts.append(_part(path, count))
    return parts, records


def _part(path, count, skip=0, take=None):
    return types.SimpleNamespace(
        filename=str(path),
        skip=skip,
        take=count if take is None else take,
        examples_in_shard=count,
    )


def _joined(records):
    return list(itertools.chain.from_iterable(records))


def _read_all(parts, **kwargs):
    records = shards.open_records(parts, what="noise/train", **kwargs)
    count = sum(part.take for part in parts)
    return records.read(np.arange(count)).tolist()


@pytest.fixture
def found(monkeypatch):
    """The names of the shards in which records were looked for."""
    names = []
    frames = record_index._frames
    monkeypatch.setattr(
        record_index, "_frames", lambda file: names.append(file.name) or frames(file)
    )
    return names


@pytest.mark.parametrize("piece", [12, 100, 1 << 20])
def test_every_record_is_found(piece, dataset, monkeypatch):
    monkeypatch.setattr(record_index, "_PIECE_BYTES", piece)
    parts, records = dataset
    assert _read_all(parts) == _joined(records)


def test_large_records_are_found_by_their_headers(tmp_path, monkeypatch):
    records = _records(20, 0, most=200_000)
    path = tmp_path / "large.tfrecord-00000-of-00001"
    _write(path, records)
    read = []
    pread = os.pread
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", lambda fd, n, at: read.append(n) or pread(fd, n, at))
        record_index.find(
            [record_index.Shard(str(path), 20)], what="it", sharing=kept.ALONE
        )
    assert sum(read) == 20 * record_index.TFRECORD_HEADER
    assert _read_all([_part(path, 20)]) == records


def test_the_second_start_looks_for_none(dataset, found):
    parts, records = dataset
    _read_all(parts)
    assert len(found) == 4
    assert _read_all(parts) == _joined(records)
    assert len(found) == 4
    # And the start after the parts of the work have gone.
    assert _read_all(parts) == _joined(records)
    folder = os.path.dirname(parts[0].filename)
    assert os.listdir(f"{folder}/{kept.FOLDER}") == ["records-noise-train.tfrecord.npz"]


def test_slices_and_other_shards_share_an_index(dataset, found):
    parts, records = dataset
    some = [_part(parts[0].filename, 5, skip=1, take=3)]
    assert _read_all(some) == records[0][1:4]
    assert len(found) == 1
    some += [_part(parts[2].filename, 8, skip=7, take=1)]
    assert _read_all(some) == [*records[0][1:4], records[2][7]]
    assert len(found) == 2
    assert _read_all(parts) == _joined(records)
    assert len(found) == 4


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_changed_shard_is_noticed(change, dataset, found):
    parts, records = dataset
    _read_all(parts)
    path = parts[2].filename
    status = os.stat(path)
    records[2] = _records(8, 99) if change == "size" else records[2][::-1]
    _write(path, records[2])
    if change == "time":
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        assert os.stat(path).st_size == status.st_size
    del found[:]
    assert _read_all(parts) == _joined(records)
    assert found == [os.path.basename(path)]


def test_where_the_dataset_cannot_be_written_the_cache_is(dataset, found, tmp_path):
    parts, records = dataset
    folder = os.path.dirname(parts[0].filename)
    # A file where the folder would be: for root no folder is read-only.
    open(f"{folder}/{kept.FOLDER}", "w").close()
    _read_all(parts)
    assert list((tmp_path / "cache").rglob("records-noise-train.tfrecord.npz"))
    assert _read_all(parts) == _joined(records)
    assert len(found) == 4


def test_where_nothing_can_be_written_a_warning_says_so(dataset, tmp_path, caplog):
    parts, records = dataset
    open(f"{os.path.dirname(parts[0].filename)}/{kept.FOLDER}", "w").close()
    (tmp_path / "cache").touch()
    assert _read_all(parts) == _joined(records)
    assert "cannot be kept" in caplog.text


def test_a_damaged_index_is_made_anew(dataset, found, caplog):
    parts, records = dataset
    _read_all(parts)
    _read_all(parts)  # which removes the parts
    folder = os.path.dirname(parts[0].filename)
    with open(f"{folder}/{kept.FOLDER}/records-noise-train.tfrecord.npz", "r+b") as f:
        f.truncate(100)
    assert _read_all(parts) == _joined(records)
    assert len(found) == 8
    assert "cannot be used" in caplog.text


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_work(processes, dataset, found, monkeypatch):
    parts, records = dataset
    monkeypatch.setattr(kept, "_POLL_SECS", 0.01)
    slow = record_index._frames

    def frames(file):
        time.sleep(0.2)
        return slow(file)

    monkeypatch.setattr(record_index, "_frames", frames)
    with ThreadPoolExecutor(processes) as pool:
        results = pool.map(
            lambda index: _read_all(parts, sharing=kept.Sharing(index, processes)),
            range(processes),
        )
        assert list(results) == [_joined(records)] * processes
    assert sorted(found) == sorted(os.path.basename(p.filename) for p in parts)


def test_a_process_does_what_others_leave_undone(dataset, monkeypatch):
    parts, records = dataset
    monkeypatch.setattr(kept, "_PATIENCE_SECS", 0.1)
    monkeypatch.setattr(kept, "_POLL_SECS", 0.01)
    assert _read_all(parts, sharing=kept.Sharing(1, 3)) == _joined(records)


def test_a_start_after_a_kill_continues(dataset, found, monkeypatch):
    parts, records = dataset
    monkeypatch.setattr(record_index, "_MOST_SHARDS", 1)
    frames = record_index._frames

    def fail_at_third(file):
        if "00002" in file.name:
            raise KeyboardInterrupt
        return frames(file)

    with monkeypatch.context() as patch:
        patch.setattr(record_index, "_frames", fail_at_third)
        with pytest.raises(KeyboardInterrupt):
            _read_all(parts)
    assert len(found) == 2
    assert _read_all(parts) == _joined(records)
    assert len(found) == 4


def test_small_datasets_keep_nothing(dataset, monkeypatch):
    parts, _ = dataset
    monkeypatch.setattr(record_index, "FEWEST_KEPT", 18)
    _read_all(parts)
    assert kept.FOLDER not in os.listdir(os.path.dirname(parts[0].filename))


def test_progress_is_told(dataset, caplog):
    with caplog.at_level("INFO", "simclr_jax"):
        _read_all(dataset[0])
    assert "Indexing noise/train: 4/4 shards | " in caplog.text
    assert "the index is kept in " in caplog.text


def test_damaged_shards_are_named(dataset):
    parts, _ = dataset
    path = parts[0].filename
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) - 1)
    with pytest.raises(DataError, match=r"00000-of.*ends within record 4 of 5, so it"):
        _read_all(parts)
    with pytest.raises(DataError, match=r"00001-of.*holds 1 records, must hold 2"):
        _read_all([_part(parts[1].filename, 2)])
    os.unlink(parts[2].filename)
    with pytest.raises(DataError, match=r"00002-of.*missing"):
        _read_all(parts)


# ArrayRecord --------------------------------------------------------------------------


def _write_array_record(path, records, options):
    module = pytest.importorskip("array_record.python.array_record_module")
    writer = module.ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()


def _find(path):
    return array_records.find(
        str(path),
        os.path.getsize(path),
        lambda start, stop: storage.read_range(str(path), start, stop - start),
    )


@pytest.mark.parametrize("compression", ["zstd", "uncompressed"])
def test_array_records_by_ranges(compression, tmp_path):
    if compression == "zstd":
        pytest.importorskip("zstandard")
    # From within a block of 64 KiB to over several of them.
    records = [*_records(300, 0), *_records(20, 1, most=300_000), b""]
    path = tmp_path / "noise.array_record"
    _write_array_record(path, records, f"group_size:1,{compression}")
    bounds = _find(path)
    assert len(bounds) == len(records) + 1
    content = path.read_bytes()
    for number, record in enumerate(records):
        begin, end = bounds[number : number + 2].tolist()
        assert array_records.chunk(content[begin:end], begin) == [record]


def test_array_records_with_a_large_footer(tmp_path, monkeypatch):
    monkeypatch.setattr(array_records, "_TAIL", array_records._BLOCK)
    path = tmp_path / "noise.array_record"
    _write_array_record(path, _records(50, 0), "group_size:1,uncompressed")
    assert len(_find(path)) == 51


def test_array_records_that_cannot_be_read_at_random(tmp_path):
    path = tmp_path / "noise.array_record"
    _write_array_record(path, _records(50, 0), "group_size:2,uncompressed")
    with pytest.raises(DataError, match=r"noise.array_record.*group_size:1"):
        _find(path)
    path.write_bytes(bytes(1 << 17))
    with pytest.raises(DataError, match=r"noise.array_record: is no whole ArrayRecord"):
        _find(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"noise.array_record: is no whole ArrayRecord"):
        _find(path)
