"""The checks of `doctor` on this machine and on faulty ones."""

import numpy as np
import pytest

from simclr_jax import parallel
from simclr_jax.doctor import checks, equivalence
from simclr_jax.doctor.equivalence import Difference


@pytest.fixture
def quick(monkeypatch):
    """Without the training steps."""
    differences = [Difference("loss", 1e-7), Difference("gradient", 3e-6)]
    monkeypatch.setattr(
        equivalence, "compare", lambda mesh, reference=None: differences
    )
    return differences


def verdicts(workdir=None):
    return {v.name: v for v in checks.run(workdir)}


def test_a_good_machine_is_called_good(quick, tmp_path):
    results = verdicts(str(tmp_path / "run"))
    assert [name for name, verdict in results.items() if not verdict.ok] == []
    assert results["devices"].detail.startswith("8 x cpu")
    assert "numpy" in results["environment"].detail
    assert "is the same folder on all hosts" in results["run directory"].detail
    assert "gradient: differs by 3e-06" in results["1 device = 8"].detail
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("off", [2e-4, np.nan])
def test_a_difference_beyond_rounding_is_bad(quick, off):
    quick.append(Difference("update", off))
    assert not verdicts()["1 device = 8"].ok


def test_a_file_for_a_run_directory_is_bad(quick, tmp_path):
    (tmp_path / "file").touch()
    verdict = verdicts(str(tmp_path / "file"))["run directory"]
    assert not verdict.ok
    assert "must be a folder" in verdict.detail


def test_a_full_disk_is_bad(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "_LEAST_FREE_GB", 1e9)
    verdict = verdicts(str(tmp_path))["run directory"]
    assert not verdict.ok
    assert "GB are free" in verdict.detail


def test_hosts_that_differ_are_bad(quick, monkeypatch):
    monkeypatch.setattr(
        parallel.processes, "gather_texts", lambda text: [text, "1 of 2 on b|3"]
    )
    with pytest.raises(checks._Failed, match="process 1 of 2 on b has 3: all must"):
        checks._hosts()


def test_clocks_apart_are_bad(monkeypatch):
    monkeypatch.setattr(
        parallel.processes, "gather_texts", lambda text: ["100.0", "107.5"]
    )
    with pytest.raises(checks._Failed, match=r"7\.5 s apart \(process 0 behind proc"):
        checks._clocks()


def test_a_missing_library_is_named(quick, monkeypatch):
    monkeypatch.setattr(checks, "_LIBRARIES", ("jax", "no-such-library"))
    verdict = verdicts()["environment"]
    assert not verdict.ok
    assert "no-such-library: not installed" in verdict.detail


def test_a_wrong_mesh_program_would_be_seen():
    """Differences are relative to the norm of the whole tree."""
    tree = {"a": np.array([3.0, 0.0]), "b": np.array([4.0])}
    off = {"a": np.array([3.0, 0.5]), "b": np.array([4.0])}
    assert equivalence._relative(off, tree) == pytest.approx(0.1)
