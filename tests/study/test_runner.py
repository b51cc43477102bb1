"""Cells are run once, by whoever is there, and go on after an end."""

import json
import os
import threading
import time

import pytest

from simclr_jax.errors import ConfigError, RunStopped
from simclr_jax.runs import atomic, ownership
from simclr_jax.study import cells, runner


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(runner, "_WAIT_SECS", 0.02)


@pytest.fixture(scope="module")
def some_cells():
    return cells.expand(cells.open_study("temperature", "minutes"), 1)


def folder_in(tmp_path):
    folder = cells.Folder(str(tmp_path / "study"))
    folder.claim("temperature", "minutes")
    return folder


class Stub:
    """Counts what it runs, instead of training."""

    def __init__(self, *, stop_at=None, secs=0.0):
        self.ran, self.stop_at, self.secs = [], stop_at, secs

    def __call__(self, cell, workdir):
        if len(self.ran) == self.stop_at:
            raise RunStopped("stopped after step 3 of 9, which is saved")
        time.sleep(self.secs)
        self.ran.append(cell.name)
        return {
            "config_hash": cell.config_hash,
            "metrics": {"linear": 0.5, "knn": 0.4},
            "diverged": None,
        }


@pytest.mark.parametrize("stop_at", [0, 1, 4])
def test_a_stopped_study_goes_on_with_what_is_missing(tmp_path, some_cells, stop_at):
    folder, first, second = folder_in(tmp_path), Stub(stop_at=stop_at), Stub()
    with pytest.raises(RunStopped):
        runner.run(some_cells, folder, first)
    # The lock of the cell that was stopped is free.
    assert not any(map(folder.is_locked, some_cells))
    count = runner.run(some_cells, cells.Folder(folder.workdir), second)
    assert count == len(some_cells) - stop_at
    assert sorted(first.ran + second.ran) == sorted(c.name for c in some_cells)
    assert runner.run(some_cells, folder, Stub(stop_at=0)) == 0
    assert {folder.state(cell) for cell in some_cells} == {"done"}


def test_two_owners_share_the_cells(tmp_path, some_cells):
    folder = folder_in(tmp_path)
    stubs = [Stub(secs=0.05), Stub(secs=0.05)]
    threads = [
        threading.Thread(target=runner.run, args=(some_cells, folder, stub))
        for stub in stubs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ran = stubs[0].ran + stubs[1].ran
    assert sorted(ran) == sorted(c.name for c in some_cells)  # none twice
    assert all(stub.ran for stub in stubs)


def lock(folder, cell, **changes):
    """A lock of somebody else."""
    owner = {**ownership._me(), "token": "theirs", "renewals": 0, **changes}
    path = f"{folder.lock(cell)}/owner.json"
    os.makedirs(folder.lock(cell), exist_ok=True)
    with open(path, "w") as file:
        json.dump(owner, file)
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"process": 2**22 + 5, "started": "1"},  # no such process
        {"started": "a process before it with this number"},
        {"machine": "another", "host": "another"},  # silent for EXPIRY_SECS
    ],
)
def test_a_lock_whose_owner_is_gone_is_taken_over(
    tmp_path, some_cells, changes, monkeypatch
):
    monkeypatch.setattr(ownership, "EXPIRY_SECS", 0.3)
    folder, stub = folder_in(tmp_path), Stub()
    lock(folder, some_cells[2], **changes)
    assert folder.state(some_cells[2]) == "running"
    assert runner.run(some_cells, folder, stub) == len(some_cells)
    assert stub.ran[-1] == some_cells[2].name  # free ones come first


def test_waits_for_a_cell_of_a_living_owner(tmp_path, some_cells):
    folder, stub = folder_in(tmp_path), Stub()
    theirs = some_cells[1]
    path = lock(folder, theirs)  # of this process, which lives

    def finish():
        time.sleep(0.3)
        folder.write_result(theirs, Stub()(theirs, ""))
        os.unlink(path)

    thread = threading.Thread(target=finish)
    thread.start()
    assert runner.run(some_cells, folder, stub) == len(some_cells) - 1
    thread.join()
    assert theirs.name not in stub.ran


def test_only_chosen_cells_are_run(tmp_path, some_cells):
    folder, stub = folder_in(tmp_path), Stub()
    runner.run(some_cells[3:5], folder, stub)
    states = [folder.state(cell) for cell in some_cells]
    assert states == ["missing"] * 3 + ["done"] * 2 + ["missing"]


def test_a_workdir_of_another_study_or_scale_is_refused(tmp_path, some_cells):
    folder = folder_in(tmp_path)
    folder.claim("temperature", "minutes")  # again
    for other in (("temperature", "gpu"), ("objectives", "minutes")):
        with pytest.raises(ConfigError, match="holds --study=temperature --scale=min"):
            folder.claim(*other)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="must be new or empty"):
        cells.Folder(str(tmp_path / "run")).claim("temperature", "gpu")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        cells.Folder(str(tmp_path / "file")).claim("temperature", "gpu")


@pytest.mark.parametrize("finished", [True, False])
def test_two_hosts_start_a_study_at_once(tmp_path, monkeypatch, finished):
    # The other one writes between this one's look at study.json and at the folder.
    other, check_free = cells.Folder(str(tmp_path / "s")), atomic.check_free

    def check_later(path, *, flag):
        monkeypatch.undo()
        if not finished:
            monkeypatch.setattr(os, "replace", lambda source, target: None)
        other.claim("temperature", "minutes")
        monkeypatch.undo()
        check_free(path, flag=flag)

    monkeypatch.setattr(atomic, "check_free", check_later)
    folder = cells.Folder(str(tmp_path / "s"))
    folder.claim("temperature", "minutes")
    assert folder.holds("temperature", "minutes")


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(ConfigError, match="taken: cannot be written"):
        atomic.write_file(tmp_path / "taken", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    atomic.write_file(tmp_path / ("n" * 250), "text")  # names have at most 255 bytes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"config_hash": "0123456789abcdef"}', "of a cell with other settings"),
        ("{", "is no valid JSON"),
        ("[]", "must hold a JSON object"),
    ],
)
def test_results_of_other_settings_or_damaged_are_refused(
    tmp_path, some_cells, text, message
):
    folder = folder_in(tmp_path)
    os.makedirs(folder.run(some_cells[0]))
    with open(f"{folder.run(some_cells[0])}/result.json", "w") as file:
        file.write(text)
    with pytest.raises(ConfigError, match=message) as error:
        runner.run(some_cells, folder, Stub(stop_at=0))
    assert some_cells[0].name in str(error.value)
