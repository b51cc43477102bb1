"""Real studies at a few steps, by the command."""

import csv
import json
import signal
import time

import commands
import numpy as np
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Flags that make every cell a few steps of a tiny net."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "images.npz"
    arrays = {}
    for split in ("train", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 256, (128, 16, 16, 3), np.uint8)
        arrays[f"{split}_labels"] = np.arange(128) % 4
    np.savez(path, **arrays)
    keys = (
        *(f"data.dataset=npz:{path}", "data.split=train"),
        *("evaluation.train_split=train", "evaluation.batch_size=64"),
        *("encoder.width=0.0625", "image_size=8", "evaluation.knn_k=5"),
        *("schedule.train_steps=2", "schedule.warmup_steps=1", "log.every_steps=1"),
    )
    return [f"--set={key}" for key in keys]


def run(study, workdir, *flags):
    arguments = (f"--study={study}", f"--workdir={workdir}", *flags)
    code, _, err = commands.run("study", *arguments)
    return code, err


def rows_of(folder):
    with open(folder / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_two_cells_then_the_others_and_figures_elsewhere(tmp_path, settings):
    workdir, flags = tmp_path / "study", [*settings, "--seeds=1"]
    names = ("nt_xent-seed0", "margin_sh-seed0")
    code, err = run(
        "objectives", workdir, *flags, *(f"--cell={name}" for name in names)
    )
    assert code == 0, err
    assert {row["cell"] for row in rows_of(workdir) if row["state"] == "done"} == {
        *names
    }
    run_dir = workdir / "cells" / names[0]
    assert (
        json.loads((run_dir / "config.json").read_text())["loss"]["name"] == "nt_xent"
    )
    assert (run_dir / "eval" / "linear.json").exists()
    code, err = run("objectives", workdir, *flags)
    assert "5 of 5 cells" in err
    assert err.count("minutes left") == 3
    code, err = run(
        "objectives", workdir, *flags, "--only_figures", f"--output={tmp_path / 'out'}"
    )
    assert len(rows_of(tmp_path / "out")) == 5
    assert 0 < float(rows_of(tmp_path / "out")[0]["linear"]) < 1
    code, err = run("objectives", workdir, *flags, "--scale=gpu")
    assert code == 2
    assert "holds --study=objectives --scale=minutes" in err


@pytest.mark.parametrize(
    ("study", "cell"),
    [
        ("projection_head", "nonlinear-32-seed0"),
        ("projection_head", "none-32-seed0"),
        ("transformations", "simclr-seed0"),
        ("head_depth_labels", "3-seed0"),
        ("learning_rate", "sgd-sqrt-64-seed0"),
        ("color_strength", "1+blur-seed0"),
    ],
)
def test_each_measure_of_a_real_run(tmp_path, settings, study, cell):
    code, err = run(study, tmp_path / "s", *settings, "--seeds=1", f"--cell={cell}")
    assert code == 0, err
    (row,) = (row for row in rows_of(tmp_path / "s") if row["state"] == "done")
    text = (tmp_path / "s" / "cells" / cell / "result.json").read_text()
    metrics = json.loads(text)["metrics"]
    assert all(0 <= value <= 1 for value in metrics.values())
    assert all(f"{value:.6f}" == row[name] for name, value in metrics.items())
    if cell.startswith("none"):
        assert metrics["linear"] == metrics["linear_z"]


def test_two_processes_share_and_a_killed_one_is_replaced(tmp_path, settings):
    workdir = tmp_path / "study"
    arguments = ["--study=temperature", f"--workdir={workdir}", *settings, "--seeds=1"]
    first = commands.start("study", *arguments)
    deadline = time.monotonic() + 300
    while not list(workdir.glob("cells/*/result.json")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    done = len(list(workdir.glob("cells/*/result.json")))
    both = [commands.start("study", *arguments) for _ in range(2)]
    errors = [process.communicate(timeout=600)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    ran = sum(error.count("minutes left") for error in errors)
    assert ran == 6 - done
    assert {row["state"] for row in rows_of(workdir)} == {"done"}
