"""A checkpoint that cannot be written ends a run at once, and harms no other."""

import os
import shutil
import subprocess
import sys
import time

import commands
import pytest

from simclr_jax.runs import checkpoints, metrics_writer


def pretrain(workdir, steps, limit=None):
    """Runs `pretrain`; no file may be longer than `limit` kB, as on a full disk."""
    shell = f"ulimit -f {limit}; " if limit else ""
    flags = [
        *commands.TINY,
        f"--workdir={workdir}",
        f"--config.schedule.train_steps={steps}",
        "--config.checkpoint.every_steps=2",
        "--compilation_cache=",
        "--allow_config_change",
    ]
    start = time.monotonic()
    ended = subprocess.run(
        [
            *("bash", "-c", f'{shell}exec "$0" "$@"', sys.executable),
            *("-m", "simclr_jax.pretrain", *flags),
        ],
        cwd=commands.ROOT,
        env={**os.environ, "PYTHONPATH": str(commands.ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return ended.returncode, ended.stderr, time.monotonic() - start


def steps_in(workdir):
    folder = workdir / checkpoints.FOLDER
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_one_line_and_harms_no_checkpoint(tmp_path):
    workdir = tmp_path / "run"
    code, err, secs = pretrain(workdir, 2)
    assert code == 0, err
    assert steps_in(workdir) == [2]

    code, err, failed_secs = pretrain(workdir, 400, limit=64)
    assert code == 1, err
    *_, last = err.splitlines()
    assert last.startswith(f"error: checkpoints in {workdir / checkpoints.FOLDER}: ")
    assert "File too large" in last
    assert "Traceback" not in err
    assert failed_secs < secs + 60
    assert steps_in(workdir) == [2]
    # Noticed at the save that failed, not one later.
    lines = metrics_writer.read_metrics(workdir / metrics_writer.FILE_NAME)
    assert max(line["step"] for line in lines) < 200

    code, err, _ = pretrain(workdir, 4)
    assert code == 0, err
    assert "Resuming from the checkpoint of step 2" in err
    assert steps_in(workdir) == [2, 4]


@pytest.mark.slow
def test_a_deleted_directory_ends_the_run(tmp_path):
    workdir = tmp_path / "run"
    process = commands.start(
        "pretrain",
        *commands.TINY,
        f"--workdir={workdir}",
        "--config.schedule.train_steps=100000",
        "--config.checkpoint.every_steps=50",
    )
    while not (workdir / checkpoints.FOLDER / "50").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    shutil.rmtree(workdir, ignore_errors=True)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"error: --workdir={workdir}: was deleted while a training ran" in err
    assert "Traceback" not in err
