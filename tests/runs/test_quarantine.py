"""The list of bad images: each once, over restarts and processes, whatever the name."""

import logging

import pytest

from simclr_jax.errors import BadRecord, DataError
from simclr_jax.parallel import processes
from simclr_jax.parallel.postings import Postings
from simclr_jax.runs.quarantine import FILE_NAME, Quarantine, most_allowed

ODD = "file a\tb\nc\\d\r\x00\x85é \udcff.jpg"
HEADER = "record\treason\tstep\tindex"


def describe(index):
    return ODD if index == 7 else f"file {index:02}.jpg"


def bad(index, reason="cannot be decoded (cut short)"):
    return BadRecord(index, describe(index), reason)


def start(workdir, **changes):
    settings = {"dataset": "mine", "describe": describe, "num_examples": 100}
    workdir = workdir and str(workdir)
    return Quarantine(workdir, **settings | {"max_share": 1.0} | changes)


def lines(workdir):
    header, *rest, end = (workdir / FILE_NAME).read_bytes().decode().split("\n")
    assert (header, end) == (HEADER, "")
    return rest


def test_each_record_is_listed_once_over_restarts(tmp_path):
    with start(tmp_path) as quarantine:
        assert quarantine.known == frozenset()
        assert quarantine.collect() == 0
        assert not (tmp_path / FILE_NAME).exists()
        quarantine.add(bad(3), 5)
        quarantine.add(bad(7, "why\tand\nhow"), 6)
        quarantine.add(bad(3), 9)
        assert quarantine.collect() == 2
        expected = [
            "file 03.jpg\tcannot be decoded (cut short)\t5\t3",
            r"file a\tb\nc\\d\r\x00\x85é \udcff.jpg" + "\twhy\\tand\\nhow\t6\t7",
        ]
        assert lines(tmp_path) == expected
        quarantine.add(bad(4), 10)
    with start(tmp_path) as quarantine:
        assert quarantine.known == {3, 4, 7}
        quarantine.add(bad(7), 20)
        quarantine.add(bad(8), 20)
        assert quarantine.collect() == 4
    assert [line.split("\t")[2] for line in lines(tmp_path)] == ["5", "6", "10", "20"]


def test_lines_of_other_datasets_and_damaged_ones_are_kept(tmp_path):
    others = [
        "file 99.jpg\tx\t1\t3",
        "file 500.jpg\tx\t1\t500",
        "half a li",
        "a\tb\tc\td",
    ]
    mine = "file 05.jpg\tx\t1\t5"
    text = "\n".join([HEADER, *others, mine])
    (tmp_path / FILE_NAME).write_bytes(text.encode() + b"\xff\n\0\0\n")
    with start(tmp_path) as quarantine:
        assert quarantine.known == frozenset(), "the damaged line"
        quarantine.add(bad(5), 2)
        assert quarantine.collect() == 1
    kept = lines(tmp_path)
    assert kept[:4] == others
    assert kept[-1].split("\t")[-2:] == ["2", "5"]
    with start(tmp_path) as quarantine:
        assert (quarantine.known, quarantine.collect()) == ({5}, 1)


def test_a_list_that_cannot_be_read_or_written_stops_nothing(tmp_path, caplog):
    (tmp_path / FILE_NAME).mkdir()
    with start(tmp_path) as quarantine:
        assert "cannot be read" in caplog.text
        quarantine.add(bad(3), 1)
        assert quarantine.collect() == 1
        assert quarantine.collect() == 1
        assert caplog.text.count("cannot be written") == 1
        (tmp_path / FILE_NAME).rmdir()
    assert len(lines(tmp_path)) == 1


@pytest.mark.parametrize(
    ("num_examples", "share", "expected"),
    [
        (9, 0.001, 0),
        (10, 0.001, 1),
        (50, 0.001, 5),
        (5000, 0.001, 5),
        (1_281_167, 0.001, 1281),
        (50, 0.5, 25),
        (100, 0.29, 29),
        (50, 0.0, 0),
        (50, 1.0, 50),
    ],
)
def test_how_many_bad_images_a_dataset_may_have(num_examples, share, expected):
    assert most_allowed(num_examples, share) == expected


def test_too_many_end_the_run(tmp_path, caplog):
    quarantine = start(tmp_path, num_examples=20, max_share=0.15)
    for index in range(3):
        quarantine.add(bad(index), 1)
    with pytest.raises(DataError) as caught:
        quarantine.add(bad(3), 3)
    assert str(caught.value) == (
        "mine: 4 of 20 images cannot be read (file 00.jpg: cannot be decoded (cut "
        "short), file 01.jpg, file 02.jpg, ...); config.data.bad_records_max=0.15 "
        "allows 3. "
        f"{tmp_path / FILE_NAME} lists them; remove it after repairs"
    )
    assert len(lines(tmp_path)) == 4
    assert len(caplog.records) == 3, "the error stands for the last one"
    with pytest.raises(DataError, match="4 of 20"):
        start(tmp_path, num_examples=20, max_share=0.01).collect()
    with pytest.raises(DataError, match=r"allows 0\.$"):
        start(None, max_share=0.0).add(bad(1), 1)


def test_warnings_are_bounded(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    with start(tmp_path) as quarantine:
        for index in range(100):
            quarantine.add(bad(index), 1)
    assert len(caplog.records) == 21
    assert all("\n" not in record.getMessage() for record in caplog.records)
    assert "file 03.jpg: cannot be decoded (cut short); the next" in caplog.text
    assert len(lines(tmp_path)) == 100


class Service:
    """The key-value store of JAX's coordination service."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value):
        assert key not in self.values
        self.values[key] = value

    def key_value_dir_get(self, folder):
        return [item for item in self.values.items() if item[0].startswith(folder)]

    def key_value_delete(self, key):
        del self.values[key]


def test_process_0_lists_what_all_have_found(tmp_path, monkeypatch, caplog):
    service = Service()

    def of_process(number, **changes):
        postings = Postings(service, "topic", process_id=number)
        monkeypatch.setattr(processes, "is_main", lambda: number == 0)
        monkeypatch.setattr(processes, "postings", lambda topic: postings)
        return start(tmp_path, **changes)

    first, second, third = (of_process(n, max_share=0.06) for n in range(3))
    for quarantine in (first, second, third):
        quarantine.add(bad(90), 0)  # before the first step
    assert not service.values
    assert len(caplog.records) == 1
    first.add(bad(1), 4)
    second.add(bad(7), 5)
    third.add(bad(7), 5)
    third.add(bad(8), 6)
    assert (second.collect(), third.collect()) == (2, 3)
    assert not (tmp_path / FILE_NAME).exists()
    assert first.collect() == 4
    assert not service.values
    assert [line.split("\t")[-1] for line in lines(tmp_path)] == ["90", "1", "7", "8"]
    # Together they have too many, which process 0 notices.
    second.add(bad(10), 7)
    second.add(bad(11), 7)
    third.add(bad(12), 7)
    with pytest.raises(DataError, match="7 of 100"):
        first.collect()
    # Alone one has too many: its list has also what only the file knew.
    with pytest.raises(DataError, match="7 of 100"):
        any(third.add(bad(index), 8) for index in range(20, 27))
    found = [int(line.split("\t")[-1]) for line in lines(tmp_path)]
    assert sorted(found) == [1, 7, 8, 10, 11, 12, 20, 21, 22, 90]
