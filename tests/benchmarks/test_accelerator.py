"""The accelerator benchmark at toy size: killed, continued, and with a failing part."""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import accelerator
import cifar_npz
import numpy as np
import pytest
from accelerator_parts.page import NOT_RUN, page

ROOT = pathlib.Path(__file__).parents[2]


def _start(workdir):
    command = [
        *(sys.executable, str(ROOT / "tests/benchmarks/accelerator.py")),
        *("--device=cpu", "--toy", f"--workdir={workdir}"),
    ]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _result(workdir, part):
    path = workdir / "results" / f"{part}.json"
    return json.loads(path.read_text()) if path.exists() else {"rows": {}}


@pytest.mark.slow
def test_a_killed_benchmark_continues(tmp_path):
    first = _start(tmp_path)
    while "resnet18" not in _result(tmp_path, "steps")["rows"]:
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    before = {part: _result(tmp_path, part) for part in ("machine", "steps")}
    assert before["machine"]["finished"]
    assert not before["steps"]["finished"]

    second = _start(tmp_path)
    said, _ = second.communicate(timeout=900)
    assert second.returncode == 0, said
    assert "machine: finished before" in said
    assert _result(tmp_path, "machine") == before["machine"]
    rows = _result(tmp_path, "steps")["rows"]
    assert rows["resnet18"] == before["steps"]["rows"]["resnet18"]
    for part in accelerator.LEAST_SECS:
        assert _result(tmp_path, part)["finished"], said
    same = _result(tmp_path, "resume")["rows"]["bit for bit"]
    assert same["weights_equal"]
    assert same["metrics_equal"]
    assert 0 < same["resumed_from_step"] < same["steps"]
    assert _result(tmp_path, "cifar10")["rows"]["training"]["epochs"] == 4
    forms = _result(tmp_path, "nt_xent")["rows"]
    assert forms["64, global"]["loss"] == pytest.approx(
        forms["64, streaming"]["loss"], abs=1e-5
    )
    written = (tmp_path / "accelerators.md").read_text()
    assert "no figure means anything" in written
    assert f"| {rows['resnet18']['ours']['images_per_sec']} |" in written


@pytest.mark.slow
def test_a_part_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capfd):
    # The first needs a file that it is not given.
    monkeypatch.setattr(accelerator, "LEAST_SECS", {"cifar10": 0, "machine": 0})
    arguments = argparse.Namespace(
        budget_secs=100,
        workdir=tmp_path,
        cifar=None,
        device="cpu",
        toy=False,
        page=None,
    )
    accelerator.run_all(arguments)
    failed = _result(tmp_path, "cifar10")
    assert not failed["finished"]
    assert (
        failed["error"] == "ValueError: needs --cifar=FILE, which cifar_npz.py writes"
    )
    assert _result(tmp_path, "machine")["finished"]
    assert (
        "Unfinished: ValueError: needs --cifar"
        in (tmp_path / "accelerators.md").read_text()
    )
    said = capfd.readouterr().out
    assert "cifar10: failed with exit code 1" in said
    accelerator.run_all(
        argparse.Namespace(**{**vars(arguments), "budget_secs": -1, "toy": False})
    )
    assert "cifar10: no time left" in capfd.readouterr().out


def test_the_committed_page_is_that_of_the_committed_results():
    results = json.loads((ROOT / "docs/accelerators.json").read_text())
    assert (ROOT / "docs/accelerators.md").read_text() == page(results)


def test_what_has_not_run_says_so():
    rows = [line for line in page({}).splitlines() if line.startswith("| ")]
    assert sum(NOT_RUN in row for row in rows) > 60
    titles = ("| machine |", "| the same", "| train step", "| images |", "| training w")
    titles += ("| runs of", "| CIFAR-10")
    for row in rows:
        assert NOT_RUN in row or row.startswith(titles), row


def test_images_survive_the_small_file(tmp_path):
    y, x = np.mgrid[:32, :32] / 9.0
    number = np.arange(2600)[:, None, None, None]
    waves = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], axis=-1)
    images = np.uint8(127 + 100 * waves * np.cos(number / 7.0))
    labels = np.arange(2600) % 10
    path = tmp_path / "small.npz"
    cifar_npz.write(
        path, {"train": (images, labels), "test": (images[:7], labels[:7])}, 95
    )
    assert cifar_npz.quality_of(path) == 95
    assert path.stat().st_size < images.nbytes / 4
    found, found_labels = cifar_npz.read(path)["train"]
    np.testing.assert_array_equal(found_labels, labels)
    assert np.abs(found.astype(int) - images).mean() < 1.5
    # No tile changes another.
    alone, _ = cifar_npz.read(path)["test"]
    np.testing.assert_array_equal(alone, found[:7])
