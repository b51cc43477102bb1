"""Signals before the first step, while saving, and twice; checkpoints by the clock."""

import pathlib
import re
import shutil
import signal
import subprocess
import time
import types

import jax
import jobs
import numpy as np
import pytest
from commands import TINY
from pretraining import pretrain

from simclr_jax.configs import smoke
from simclr_jax.training import loop, preemption

# Hours in C, without the interpreter's lock, as in a compiler.
BUSY = "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"
# Ended at once, the machine's load aside.
SOON_SECS = 15.0


_started: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def none_left():
    yield
    while _started:
        process = _started.pop()
        process.kill()
        process.communicate()


def start(tmp_path: pathlib.Path, change: str, *flags: str, num_processes: int = 1):
    """Starts `pretrain` with a change made to the program."""
    script = tmp_path / "job.py"
    script.write_text(
        "import hashlib, os, signal, sys, time\n"
        "from simclr_jax import cli, pretrain\n"
        f"{change}\n"
        "cli.run(pretrain.main, required=('config', 'workdir'))\n"
    )
    settings = ["--config.schedule.train_steps=3000", "--compilation_cache=", *flags]
    command = [str(script), *TINY, *settings, f"--workdir={tmp_path / 'run'}"]
    processes = jobs.start(command, num_processes=num_processes, devices_each=1)
    _started.extend(processes)
    return processes


def read_until(process: subprocess.Popen, words: str) -> str:
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return line
    raise AssertionError("".join(lines)[-3000:])


def saved(tmp_path: pathlib.Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())


OPENING = f"""
from simclr_jax.training import input_pipeline
def open_source(config, split, **_):
    print('opening', flush=True)
    {BUSY}
input_pipeline.open_source = open_source
"""
COMPILING = f"""
import jax
from simclr_jax.training import compiling
def compile_step(*_, **__):
    def step(*arguments):
        print('compiling', flush=True)
        {BUSY}
    return step
compiling.compile_step = compile_step
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words", "number", "code", "line"),
    [
        (OPENING, "opening", signal.SIGTERM, 143, "error: ended by SIGTERM\n"),
        pytest.param(
            *(COMPILING, "compiling", signal.SIGINT, 130, "error: interrupted\n"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_before_the_first_step_a_signal_ends_at_once(
    tmp_path, change, words, number, code, line
):
    (process,) = start(tmp_path, change)
    read_until(process, words)
    sent = time.monotonic()
    process.send_signal(number)
    out, _ = process.communicate(timeout=300)
    assert time.monotonic() - sent < SOON_SECS
    assert (process.returncode, out) == (code, line)


@pytest.mark.slow
def test_a_real_compilation_does_not_keep_it(tmp_path):
    large = ("--config.encoder.depth=50", "--config.encoder.width=1")
    (process,) = start(tmp_path, "", *large, "--config.image_size=64")
    read_until(process, "Compiling the train step")
    time.sleep(3)
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=300)
    assert time.monotonic() - sent < SOON_SECS
    assert (process.returncode, out) == (143, "error: ended by SIGTERM\n")


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 0])
def test_before_the_first_step_one_process_ends_the_others(tmp_path, first):
    """The others are in a collective that would wait until JAX misses the process."""
    processes = start(tmp_path, _only_in(first, COMPILING), num_processes=2)
    read_until(processes[first], "compiling")
    time.sleep(2)  # so that the other one is in the step
    sent = time.monotonic()
    processes[first].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert time.monotonic() - sent < SOON_SECS
    assert [process.returncode for process in processes] == [143, 143], outputs
    assert outputs[first].splitlines()[-1] == "error: ended by SIGTERM"
    told = rf"error: process {first} of 2 on \S+ was ended by SIGTERM, so this process "
    assert re.search(told + "ends too\n", outputs[1 - first]), outputs


def _only_in(number: int, change: str) -> str:
    indented = "\n".join(f"    {line}" for line in change.strip().splitlines())
    return f"if '--process_id={number}' in sys.argv:\n{indented}"


SLOW_TO_SAVE = f"""
from simclr_jax.runs import checkpoints
wait = checkpoints.Checkpoints.wait
def wait_long(self):
    wait(self)
    print('written', flush=True)
    {BUSY}
checkpoints.Checkpoints.wait = wait_long
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_a_second_signal_ends_at_once_and_the_checkpoint_is_good(
    tmp_path, number, code
):
    (process,) = start(tmp_path, SLOW_TO_SAVE)
    read_until(process, "step 3/3000")
    process.send_signal(number)
    read_until(process, f"{number.name}: saving after this step, then stopping.")
    read_until(process, "written")
    sent = time.monotonic()
    process.send_signal(number)
    out, _ = process.communicate(timeout=300)
    assert time.monotonic() - sent < SOON_SECS
    assert process.returncode == code
    assert out.endswith("the second signal, without waiting\n")
    (step,) = saved(tmp_path)
    (process,) = start(tmp_path, "")
    read_until(process, f"Resuming from the checkpoint of step {step}.")
    read_until(process, f"step {int(step) + 1}/3000")
    process.send_signal(number)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == code
    assert "error: stopped after step" in out.splitlines()[-1]


@pytest.mark.slow
def test_one_interrupted_process_stops_all_after_the_same_step(tmp_path):
    """The one that was interrupted says so by its exit code."""
    processes = start(tmp_path, "", "--config.log.every_steps=1", num_processes=2)
    read_until(processes[0], "step 3/3000")
    processes[1].send_signal(signal.SIGINT)
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [143, 130], outputs
    steps = [re.findall(r"error: stopped after step (\d+)", text) for text in outputs]
    assert steps[0] == steps[1] == saved(tmp_path)


@pytest.mark.slow
def test_two_processes_save_by_the_clock_of_the_first(tmp_path):
    flags = ("--config.checkpoint.every_secs=2", "--config.checkpoint.keep_last=100")
    # So that it never waits for somebody to read its log.
    flags += ("--config.log.every_steps=1000",)
    processes = start(tmp_path, "", *flags, num_processes=2)
    read_until(processes[0], "step 1/3000")
    deadline = time.monotonic() + 300
    while len(list((tmp_path / "run").glob("checkpoints/*[0-9]"))) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    processes[0].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], outputs
    assert len(saved(tmp_path)) >= 4


def test_the_clock_asks_for_checkpoints(monkeypatch):
    """Ten seconds a step, checkpoints every 30 s and after every fifth step."""
    now = 0.0
    clock = types.SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr(preemption, "time", clock)
    saved = []
    checkpoints = types.SimpleNamespace(check=lambda: None)
    with preemption.Requests(checkpoints, save_every_secs=30.0) as requests:
        for step in range(1, 15):
            now += 10.0
            asked = requests.after_step()
            assert not asked.stop
            if asked.save or step % 5 == 0:
                saved.append(step)
                now += 5.0  # the clock starts after it
                requests.saved()
    # It starts at the first step, which is the end of the compilation.
    assert saved == [4, 5, 8, 10, 13]


@pytest.mark.slow
def test_a_run_resumes_from_a_checkpoint_by_the_clock(tmp_path, monkeypatch):
    """To the same bits as a run that was saved at its end alone."""
    config = smoke.get_config()
    config.image_size, config.encoder.width = 8, 0.0625
    config.encoder.depth = 10
    config.batch.batch_size = 16
    config.schedule.warmup_steps, config.schedule.train_steps = 0, 6
    whole = pretrain(config, str(tmp_path / "whole"))
    config.checkpoint.every_secs = 1e-9
    job = loop.pretraining_job(config)
    loop.run(job, str(tmp_path / "run"), last_step=4)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    assert saved(tmp_path) == ["2", "3"]
    resumed = loop.run(job, str(tmp_path / "run"))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
