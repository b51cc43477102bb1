"""`augment.host_views`: where views cannot be compiled, and agreement of processes."""

import logging
import os
import subprocess
import sys

import commands
import pytest

from simclr_jax.configs import base
from simclr_jax.data.views import host_form
from simclr_jax.errors import ConfigError
from simclr_jax.parallel import processes
from simclr_jax.training import input_pipeline


def _pretrain_without_numba(workdir, *arguments):
    """Runs two steps in a process that cannot import Numba."""
    script = (
        "import runpy, sys\n"
        "sys.modules['numba'] = None\n"
        "runpy.run_module('simclr_jax.pretrain', run_name='__main__', alter_sys=True)\n"
    )
    return subprocess.run(
        [
            *(sys.executable, "-c", script, *commands.TINY, f"--workdir={workdir}"),
            *("--config.schedule.train_steps=2", *arguments),
        ],
        cwd=commands.ROOT,
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_pretraining_without_numba_works_and_warns_once(tmp_path):
    result = _pretrain_without_numba(tmp_path)
    assert result.returncode == 0, result.stderr
    printed = result.stdout + result.stderr
    (line,) = [line for line in printed.splitlines() if "host_views" in line]
    assert "import of numba halted" in line
    assert f"up to {host_form.GRAPH_SLOWDOWN} times as long" in line
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") >= 2


@pytest.mark.slow
def test_compiled_without_numba_is_one_line(tmp_path):
    result = _pretrain_without_numba(tmp_path, "--config.augment.host_views=compiled")
    assert result.returncode == 2
    errors = [line for line in result.stderr.splitlines() if "error:" in line]
    (line,) = errors
    assert "config.augment.host_views='compiled': cannot be had" in line
    assert "import of numba halted" in line
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "config.json").exists()


@pytest.fixture
def processes_say(monkeypatch):
    """processes_say(reasons): what the processes of a job cannot compile for."""

    def patch(reasons):
        monkeypatch.setattr(host_form, "unavailable", lambda: reasons[0] or None)
        # The second answer: TensorFlow is everywhere.
        answers = iter([reasons, [""] * len(reasons)])
        monkeypatch.setattr(processes, "gather_texts", lambda text: next(answers))

    return patch


@pytest.mark.parametrize(
    ("form", "reasons", "expected"),
    [
        ("auto", ["", "", ""], True),
        ("auto", ["", "no numba", "no numba"], False),
        ("auto", ["no numba", ""], False),
        ("compiled", ["", ""], True),
        ("graph", ["", ""], False),
    ],
)
def test_all_processes_take_the_same_form(
    form, reasons, expected, processes_say, caplog
):
    processes_say(reasons)
    config = base.get_config()
    config.augment.host_views = form
    with caplog.at_level(logging.WARNING):
        assert input_pipeline.use_compiled_views(config) is expected
    warned = form == "auto" and not expected
    assert len(caplog.records) == warned


def test_a_process_that_cannot_compile_is_named(processes_say):
    processes_say(["", "no numba"])
    config = base.get_config()
    config.augment.host_views = "compiled"
    with pytest.raises(ConfigError, match=r"host_views='compiled'.*process 1: no numb"):
        input_pipeline.use_compiled_views(config)
