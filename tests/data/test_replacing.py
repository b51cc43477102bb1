"""Images that go bad in mid-run: which ones take their place, and when a run stops."""

import collections
import errno
import os
import pathlib
import types

import numpy as np
import pytest
from PIL import Image
from simclr_settings import CROP
from tfds_files import prepare

from simclr_jax.data import optional, pipeline, replacing
from simclr_jax.data.buffers import Buffers
from simclr_jax.data.sampling import draws, order
from simclr_jax.data.sources import (
    bad_records,
    folder,
    in_memory,
    prepared,
    registry,
    storage,
    subsets,
)
from simclr_jax.data.sources.arrays import HeldFiles
from simclr_jax.data.step_sampler import StepSampler, slice_of_host
from simclr_jax.data.views.composition import Composition
from simclr_jax.errors import BadRecord, DataError, StoreFailed
from simclr_jax.prepare import build

COUNT, BATCH, STEPS, SEED = 24, 6, 6, 3
# Small crops, many of which do not reach to the end of an image.
SETTINGS = {
    "crop": {**CROP, "sampler": "torchvision", "area_min": 0.01, "area_max": 0.1},
    "flip": {"probability": 0.5},
}
VIEW = Composition(("crop",), SETTINGS, image_size=8)
BUFFERS = Buffers.choose(batch_bytes=1, threads=2, parallel_reads=2)
CUT, GONE, NO_IMAGE, EMPTY = 3, 4, 10, 23
BAD = (CUT, GONE, NO_IMAGE, EMPTY)


def write_images(root, count=COUNT):
    """Images of many sizes, each in a class of its own; the fourth is a large JPEG."""
    generator = np.random.default_rng(0)
    for number in range(count):
        height, width = generator.integers(20, 60, 2) if number != CUT else (200, 120)
        pixels = generator.integers(0, 256, (height, width, 3), np.uint8)
        (root / f"{number:02}").mkdir(parents=True)
        suffix = "png" if number % 5 == 0 else "jpg"
        Image.fromarray(pixels).save(root / f"{number:02}" / f"image.{suffix}")


def path_of(root, number) -> pathlib.Path:
    (path,) = (root / f"{number:02}").iterdir()
    return path


def damage(root):
    for number in BAD:
        path = path_of(root, number)
        content = path.read_bytes()
        if number == CUT:
            path.write_bytes(content[: int(0.8 * len(content))])
        elif number == GONE:
            path.unlink()
            (path.parent / "note.txt").touch()
        else:
            path.write_bytes(b"" if number == EMPTY else b"no image" * 100)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Batches of a folder in which copies of the next good images replace bad ones."""
    root = tmp_path_factory.mktemp("whole")
    write_images(root)
    replaced = []
    for number in range(COUNT):
        other = number
        while other in BAD:
            other = (other + 1) % COUNT
        replaced.append(other)
    assert [replaced[number] for number in BAD] == [5, 5, 11, 0]
    contents = [path_of(root, number).read_bytes() for number in range(COUNT)]
    for number in range(COUNT):
        path_of(root, number).write_bytes(contents[replaced[number]])
    batches = list(_batches(folder.FolderSource(str(root))))
    for batch in batches:
        batch["labels"] = np.array([replaced[n] for n in batch["labels"]], np.int32)
    assert {*np.concatenate([b["labels"] for b in batches])} == {*replaced}
    return batches


@pytest.fixture
def damaged(tmp_path):
    """A folder that was opened before some of its files went bad."""
    write_images(tmp_path)
    source = folder.FolderSource(str(tmp_path))
    damage(tmp_path)
    return source


def _batches(source, view=VIEW, **settings):
    settings = {"seed": SEED, "batch_size": BATCH, "stop_step": STEPS} | settings
    return pipeline.train_batches(
        source, view, buffers=BUFFERS, compiled=False, **settings
    )


def _assert_equal(found, expected):
    for batch, other in zip(found, expected, strict=True):
        assert batch.keys() == other.keys()
        for key, value in batch.items():
            np.testing.assert_array_equal(value, other[key], err_msg=key)


def _needed_first():
    """For each bad record the first step, from 1, in which it or one before it is."""
    first = {}
    for step in reversed(range(STEPS)):
        plan = {"seed": SEED, "num_examples": COUNT, "batch_size": BATCH}
        for number in order.batch_indices(step, **plan)[0].tolist():
            while number in BAD:
                first[number] = step + 1
                number = (number + 1) % COUNT
    return first


def test_the_next_good_image_replaces_a_bad_one(damaged, expected):
    found = {}
    batches = _batches(damaged, on_bad_record=lambda e, step: found.update({e: step}))
    _assert_equal(batches, expected)
    assert {error.index: step for error, step in found.items()} == _needed_first()
    assert len(found) == len(BAD), "each is reported once"
    for error in found:
        assert error.name == damaged.describe(error.index)
        assert str(error).startswith(f"{error.name}: {error.reason}; `python -m")
    reasons = {error.index: error.reason for error in found}
    assert reasons[GONE] == "cannot be read (No such file or directory)"
    assert "is no image of a known kind (begins with b'no image" in reasons[NO_IMAGE]
    assert reasons[CUT].startswith("cannot be decoded (the file is cut short")


@pytest.mark.parametrize(
    ("start", "known"),
    [
        (3, BAD),
        *(
            pytest.param(*x, marks=pytest.mark.slow)
            for x in ((1, ()), (0, range(COUNT)))
        ),
    ],
)
def test_a_step_has_the_same_batch_from_any_start(start, known, damaged, expected):
    def ignore(error, step):
        assert error.index not in known

    settings = {"start_step": start, "stop_step": min(start + 3, STEPS)}
    found = _batches(damaged, on_bad_record=ignore, known_bad=known, **settings)
    _assert_equal(found, expected[start : start + 3])


class Pretended:
    """A source and a pipeline that samples some steps ahead; some records are bad.

    A batch is the numbers of its images.
    """

    def __init__(self, count, bad, ahead=3):
        self.bad, self.ahead, self.starts = {*bad}, ahead, 0
        self.source = types.SimpleNamespace(
            num_examples=count, name="pretended", encoded=True
        )

    def batches(self, start=0, stop=12, host=0, num_hosts=1, **settings):
        sampler = StepSampler(
            self.source, VIEW, SEED, 4, 1, 2, slice_of_host(4, host, num_hosts)
        )

        def begin(sampler, step):
            self.starts += 1
            ahead = collections.deque()
            for number in range(step, stop + self.ahead):
                ahead.append(sampler(number)[0].tolist())
                if len(ahead) > self.ahead:
                    batch = ahead.popleft()
                    if self.bad.intersection(batch):
                        raise bad_records.BatchFailed("pretended: failed")
                    yield batch

        def try_views(sampler, index, words):
            if index in self.bad:
                raise BadRecord(index, f"record {index}", "is bad")

        settings = {"on_bad_record": lambda *_: None, "known": ()} | settings
        return replacing.train_batches(
            sampler, begin, try_views, start_step=start, threads=2, **settings
        )

    def expected(self, step):
        numbers, _ = order.batch_indices(
            step, seed=SEED, num_examples=self.source.num_examples, batch_size=4
        )
        for place, number in enumerate(numbers):
            while number in self.bad:
                number = (number + 1) % self.source.num_examples
            numbers[place] = number
        return numbers.tolist()


@pytest.mark.parametrize("seed", range(20))
def test_any_records_may_be_bad(seed):
    generator = np.random.default_rng(seed)
    count = int(generator.integers(5, 30))
    bad = generator.choice(count, generator.integers(1, count), replace=False).tolist()
    pretended = Pretended(count, bad, ahead=int(generator.integers(0, 5)))
    expected = [pretended.expected(step) for step in range(12)]
    found = []
    all_batches = pretended.batches(on_bad_record=lambda e, _: found.append(e.index))
    assert [*all_batches] == expected
    assert len(found) == len({*found})
    assert {*found} <= {*bad}
    # Some are known, and some that are known are good.
    known = generator.choice(count, count // 2, replace=False).tolist()
    start = int(generator.integers(0, 12))
    assert [*pretended.batches(start, known=known)] == expected[start:]
    hosts = [pretended.batches(host=host, num_hosts=2) for host in range(2)]
    joined = [first + second for first, second in zip(*hosts, strict=True)]
    assert joined == expected


def test_nothing_is_tried_as_long_as_nothing_fails(monkeypatch):
    pretended = Pretended(20, ())
    tried = []
    monkeypatch.setattr(
        replacing.ReplacingSampler, "_error", lambda *a: tried.append(a)
    )
    assert len([*pretended.batches()]) == 12
    assert (tried, pretended.starts) == ([], 1)


def test_a_batch_that_fails_for_no_record_ends_the_run(monkeypatch):
    pretended = Pretended(20, (7,))
    monkeypatch.setattr(replacing.ReplacingSampler, "_error", lambda *_: None)
    with pytest.raises(bad_records.BatchFailed):
        [*pretended.batches()]
    assert pretended.starts == 2, "once more, since a file may be half written"


@pytest.mark.slow
def test_hosts_have_slices_of_the_same_batches(damaged, expected):
    hosts = [
        _batches(
            damaged,
            on_bad_record=lambda *_: None,
            known_bad=known,
            host_index=host,
            num_hosts=2,
            stop_step=3,
        )
        for host, known in enumerate([(), BAD])
    ]
    joined = [
        {key: np.concatenate([first[key], second[key]]) for key in first}
        for first, second in zip(*hosts, strict=True)
    ]
    _assert_equal(joined, expected[:3])


@pytest.mark.slow
def test_blocks_are_replaced_likewise(damaged, tmp_path_factory):
    settings = {"block_size": 3, "stop_step": 4, "known_bad": (CUT, NO_IMAGE)}
    found = list(_batches(damaged, on_bad_record=lambda *_: None, **settings))
    root = tmp_path_factory.mktemp("blocks")
    write_images(root)
    for batch, whole in zip(
        found, _batches(folder.FolderSource(str(root)), **settings), strict=True
    ):
        bad = np.isin(whole["labels"], BAD)
        good = {key: value[~bad] for key, value in whole.items()}
        _assert_equal([{key: value[~bad] for key, value in batch.items()}], [good])
        replaced = {CUT: 5, GONE: 5, NO_IMAGE: 11, EMPTY: 0}
        assert batch["labels"][bad].tolist() == [
            replaced[number] for number in whole["labels"][bad]
        ]


@pytest.mark.slow
def test_a_host_crop_is_replaced_with_its_draws(damaged):
    view = Composition(("crop", "flip"), SETTINGS, image_size=8)
    settings = {"host_crop": True, "stop_step": 4, "on_bad_record": lambda *_: None}
    for step, batch in enumerate(_batches(damaged, view, **settings)):
        plan = {"seed": SEED, "num_examples": COUNT, "batch_size": BATCH}
        indices, epochs = order.batch_indices(step, **plan)
        words = indices.astype(np.uint32), epochs.astype(np.uint32)
        key = order.view_keys(*words, seed=SEED, num_views=2)
        expected = draws.view_draws(key, view.operations)
        np.testing.assert_array_equal(batch["draws"], expected)


@pytest.mark.parametrize("held", [False, True])
def test_threads_and_memory_replace_likewise(held, damaged, expected, monkeypatch):
    monkeypatch.setattr(optional, "is_installed", lambda package: package == "numba")
    found = []
    source = damaged
    if held:
        source = in_memory.hold(
            damaged, limit_mb=1, on_bad_record=lambda *error: found.append(error)
        )
        assert isinstance(source, HeldFiles)
        assert {step for _, step in found} == {0}
    batches = pipeline.train_batches(
        source,
        VIEW,
        seed=SEED,
        batch_size=BATCH,
        start_step=1,
        stop_step=STEPS,
        buffers=BUFFERS,
        on_bad_record=lambda *error: found.append(error),
    )
    for batch, other in zip(batches, expected[1:], strict=True):
        np.testing.assert_array_equal(batch["labels"], other["labels"])
        difference = batch["images"].astype(int) - other["images"]
        assert abs(difference).max() <= 1, "compiled views round otherwise"
    assert sorted(error.index for error, _ in found) == sorted(BAD)
    assert [error.name for error, _ in found] == [
        damaged.describe(error.index) for error, _ in found
    ]


def test_memory_without_a_good_image(tmp_path):
    for name in ("1.png", "2.png"):
        Image.effect_noise((30, 30), 50).save(tmp_path / name)
    source = folder.FolderSource(str(tmp_path))
    for name in ("1.png", "2.png"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-40])
    with pytest.raises(DataError, match="none of its 2 images can be read"):
        in_memory.hold(source, limit_mb=1, on_bad_record=lambda *_: None)
    with pytest.raises(
        DataError, match=r"1\.png: .*it is needed before the first step"
    ):
        in_memory.hold(source, limit_mb=1)


def test_by_default_a_bad_record_stops_the_run(damaged):
    with pytest.raises(DataError) as caught:
        list(_batches(damaged))
    message = str(caught.value)
    step = min(_needed_first().values())
    plan = {"seed": SEED, "num_examples": COUNT, "batch_size": BATCH}
    numbers, _ = order.batch_indices(step - 1, **plan)
    number = next(number for number in numbers if number in BAD)
    assert message.startswith(f"{damaged.describe(number)}: cannot be ")
    assert f"; step {step} needs it. A training with " in message
    assert "config.data.on_bad_record='replace' takes the next image" in message
    assert "simclr_jax.prepare` leaves such files out" in message
    for internal in ("{{", "[[", "[Op", "node", "\n"):
        assert internal not in message


@pytest.mark.slow
def test_a_run_without_a_good_image_ends(tmp_path, capfd):
    write_images(tmp_path)
    source = folder.FolderSource(str(tmp_path))
    for number in range(COUNT):
        path_of(tmp_path, number).write_bytes(b"no image")
    found = []
    with pytest.raises(DataError, match="none of its 24 images can be read"):
        list(_batches(source, on_bad_record=lambda error, step: found.append(error)))
    assert sorted(error.index for error in found) == [*range(COUNT)]
    assert "Traceback" not in capfd.readouterr().err, "of TensorFlow's log"


@pytest.mark.slow
def test_what_the_callback_raises_ends_the_run(damaged):
    def refuse(error, step):
        raise DataError(f"enough of {error.index}")

    with pytest.raises(DataError, match="enough of "):
        list(_batches(damaged, on_bad_record=refuse))
    # Also where the record is met by a search for a good one, in the pipeline.
    with pytest.raises(DataError, match=f"enough of {GONE}"):
        list(_batches(damaged, on_bad_record=refuse, known_bad=(CUT, NO_IMAGE, EMPTY)))


@pytest.mark.parametrize(
    ("number", "said"),
    [
        ("ESTALE", "could not be read in 6 tries"),
        ("EACCES", "Permission denied"),
        pytest.param("EMFILE", "Too many open files", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("known", [(7,), pytest.param((), marks=pytest.mark.slow)])
def test_what_may_be_intact_is_not_replaced(number, said, known, tmp_path, monkeypatch):
    write_images(tmp_path)
    source = folder.FolderSource(str(tmp_path))
    read = storage._read_file

    def failing(path):
        if path == str(path_of(tmp_path, 7)):
            code = getattr(errno, number)
            raise OSError(code, os.strerror(code), path)
        return read(path)

    monkeypatch.setattr(storage, "_read_file", failing)
    monkeypatch.setattr(
        storage, "RETRIES", storage.Retries(sleep=lambda secs: None, jitter=lambda: 1)
    )
    replaced = []
    batches = _batches(
        source, on_bad_record=lambda *_: replaced.append(1), known_bad=known
    )
    with pytest.raises(DataError, match=said) as caught:
        list(batches)
    assert not replaced
    assert isinstance(caught.value, StoreFailed) == (number == "ESTALE")
    assert not isinstance(caught.value, BadRecord)


@pytest.mark.slow
def test_a_file_that_was_repaired_is_used_again(tmp_path):
    write_images(tmp_path)
    expected = list(_batches(folder.FolderSource(str(tmp_path))))
    source = folder.FolderSource(str(tmp_path))
    good = {number: path_of(tmp_path, number) for number in BAD}
    contents = {path: path.read_bytes() for path in good.values()}
    damage(tmp_path)
    batches = _batches(source, on_bad_record=lambda *_: None)
    next(batches)
    for path, content in contents.items():
        path.write_bytes(content)
    again = _batches(source, known_bad=BAD, start_step=4)
    _assert_equal(again, expected[4:])


@pytest.mark.slow
def test_many_bad_files_of_one_batch(tmp_path):
    write_images(tmp_path)
    source = folder.FolderSource(str(tmp_path))
    for number in range(2, COUNT):
        path_of(tmp_path, number).write_bytes(b"no image")
    batches = _batches(
        source, batch_size=COUNT, stop_step=2, on_bad_record=lambda *_: None
    )
    for batch in batches:
        labels, counts = np.unique(batch["labels"], return_counts=True)
        assert (labels.tolist(), counts.tolist()) == ([0, 1], [COUNT - 1, 1])


@pytest.mark.slow
def test_records_of_prepared_shards(tmp_path):
    write_images(tmp_path / "images", 8)
    build.prepare(
        build.Options(input=str(tmp_path / "images")),
        str(tmp_path / "shards"),
        num_workers=1,
    )
    source = prepared.ShardSource(str(tmp_path / "shards"), split="all")
    expected = list(_batches(source, stop_step=3))
    (shard,) = (tmp_path / "shards").glob("*tfrecord*")
    content = bytearray(shard.read_bytes())
    offset, length = (int(array[2]) for array in source._image)
    content[offset : offset + length] = bytes(length)
    shard.write_bytes(content)
    found = []
    batches = _batches(source, stop_step=3, on_bad_record=lambda *a: found.append(a))
    for batch, other in zip(batches, expected, strict=True):
        replaced = np.where(other["labels"] == 2, 3, other["labels"])
        np.testing.assert_array_equal(batch["labels"], replaced)
    ((error, _),) = found
    assert error.name == source.describe(2)


@pytest.mark.slow
def test_records_of_tfds(tmp_path):
    data, all_images = prepare(tmp_path, shards=(12,))
    source = registry.open_source("noise", split="train", data_dir=str(tmp_path))
    expected = list(_batches(source, stop_step=4))
    labels = subsets.labels(source)
    path = data / "noise-train.tfrecord-00000-of-00001"
    content = bytearray(path.read_bytes())
    offset = source._records._offset[5]
    content[offset : offset + 60] = bytes(60)
    path.write_bytes(content)
    found = []
    batches = _batches(source, stop_step=4, on_bad_record=lambda *a: found.append(a))
    for step, (batch, other) in enumerate(zip(batches, expected, strict=True)):
        indices, _ = order.batch_indices(
            step, seed=SEED, num_examples=12, batch_size=BATCH
        )
        replaced = np.where(indices == 5, labels[6], labels[indices])
        np.testing.assert_array_equal(batch["labels"], replaced)
        same = (batch["images"] == other["images"]).all(axis=(1, 2, 3, 4))
        np.testing.assert_array_equal(same, indices != 5)
    ((error, _),) = found
    assert (error.index, error.name) == (5, "record 5 of noise/train")
    # Decoded once, all have one size.
    held = in_memory.hold(source, limit_mb=1, on_bad_record=lambda *a: found.append(a))
    images = np.delete(all_images, 5, axis=0)
    np.testing.assert_array_equal(held.arrays()[0], np.insert(images, 5, images[5], 0))
    np.testing.assert_array_equal(held.labels, np.r_[labels[:5], labels[6], labels[6:]])
    assert (found[1][0].index, found[1][1]) == (5, 0)
    for error, _ in found:
        assert error.reason == "cannot be decoded (Could not parse example input)"


LABELS = np.arange(0, 60, 10, np.int32)


@pytest.mark.slow
def test_a_subset_takes_the_next_of_the_subset(damaged):
    chosen = np.array([0, CUT, 8, 12, 20, 22])
    part = subsets.Subset(damaged, chosen, name="part", new_labels=LABELS)
    batches = _batches(part, stop_step=2, on_bad_record=lambda *_: None)
    for batch in batches:
        assert sorted(batch["labels"]) == [0, 20, 20, 30, 40, 50]
