"""One owner of a run directory: who is refused, who takes over, who notices."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from simclr_jax.errors import RunFailed, RunOwned
from simclr_jax.runs import directory, ownership


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / directory.CONFIG).write_text("{}")
    return tmp_path


def owner_of(workdir, **changes):
    """Writes the file of another process, alive by default: this one's parent."""
    parent = os.getppid()
    owner = {
        **ownership._me(),
        "process": parent,
        "started": ownership._started(parent),
        "renewals": 3,
        **changes,
    }
    (workdir / ownership.FILE_NAME).write_text(json.dumps(owner))
    return owner


def test_a_second_one_is_refused_and_the_first_keeps_the_directory(workdir):
    with ownership.owned(str(workdir)) as first:
        with (
            pytest.raises(
                RunOwned, match=r"a training runs in it, process \d+ on .* s"
            ),
            ownership.owned(str(workdir)),
        ):
            pass
        first.check(now=True)
    assert not (workdir / ownership.FILE_NAME).exists()
    with ownership.owned(str(workdir)):
        pass


def test_the_directory_of_a_dead_process_is_taken_over_at_once(workdir, caplog):
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    owner_of(workdir, process=process.pid, started="1")
    with ownership.owned(str(workdir)) as owner:
        assert f"from process {process.pid} on" in caplog.text
        owner.check(now=True)


def test_a_process_of_the_same_number_is_another_one(workdir):
    owner_of(workdir, started="1")
    with ownership.owned(str(workdir)):
        pass


@pytest.mark.parametrize("content", [None, "", "[1]", "\0\0"])
def test_another_host_is_watched(workdir, monkeypatch, content):
    monkeypatch.setattr(ownership, "EXPIRY_SECS", 0.5)
    owner_of(workdir, machine="another", host="far")
    if content is not None:
        (workdir / ownership.FILE_NAME).write_text(content)
    start = time.monotonic()
    with ownership.owned(str(workdir)):
        assert time.monotonic() - start >= 0.5


def test_another_host_that_renews_its_lease_keeps_it(workdir, monkeypatch):
    monkeypatch.setattr(ownership, "EXPIRY_SECS", 30.0)
    owner_of(workdir, machine="another", host="far")
    renewal = threading.Timer(
        0.2, owner_of, [workdir], {"machine": "another", "host": "far", "renewals": 4}
    )
    renewal.start()
    with pytest.raises(RunOwned, match="on far since"), ownership.owned(str(workdir)):
        pass
    renewal.join()


def test_an_owner_that_wakes_up_too_late_ends(workdir, monkeypatch):
    with ownership.owned(str(workdir)) as owner:
        other = owner_of(workdir, host="successor")
        owner.check()  # not yet
        monkeypatch.setattr(ownership, "RENEWAL_SECS", -1.0)
        with pytest.raises(RunFailed, match=r"is now that of process .* on successor"):
            owner.check()
    assert json.loads((workdir / ownership.FILE_NAME).read_text()) == other


def test_a_deleted_directory_ends_the_run(workdir):
    with ownership.owned(str(workdir)) as owner:
        for path in workdir.iterdir():
            path.unlink()
        workdir.rmdir()
        with pytest.raises(RunFailed, match="was deleted while a training ran in it"):
            owner.check(now=True)


def test_the_lease_is_renewed(workdir, monkeypatch):
    monkeypatch.setattr(ownership, "RENEWAL_SECS", 0.05)
    with ownership.owned(str(workdir)):
        deadline = time.monotonic() + 30
        while json.loads((workdir / ownership.FILE_NAME).read_text())["renewals"] < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
