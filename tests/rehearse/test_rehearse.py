"""The rehearsal of a job passes, or names the part that would fail."""

import contextlib
import re

import jax
import jobs
import pytest
from commands import TINY
from stores import gcs, gcs_running  # noqa: F401

from simclr_jax.configs import smoke
from simclr_jax.errors import ConfigError, RunFailed
from simclr_jax.parallel import processes
from simclr_jax.parallel.agreement import Agreement
from simclr_jax.rehearse import checking, life
from simclr_jax.runs.checkpoints import Checkpoints
from simclr_jax.training import compiling

PARTS = (
    *("environment", "devices", "hosts", "versions", "clocks", "run directory"),
    *("data", "input", "compile", "steps", "save", "stop", "resume", "evaluate"),
    *("export", "rate", "clean up"),
)


def tiny():
    config = smoke.get_config()
    config.image_size, config.encoder.width = 8, 0.0625
    config.encoder.depth = 10
    config.batch.batch_size, config.evaluation.batch_size = 16, 64
    config.schedule.warmup_steps = 0
    return config


def rehearse(config, workdir):
    return {v.name: v for v in life.rehearse(config, str(workdir))}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(life, "_INPUT_SECS", 0.1)


def bad(verdicts):
    return [name for name, verdict in verdicts.items() if verdict.ok is False]


def skipped(verdicts):
    return [name for name, verdict in verdicts.items() if verdict.ok is None]


@pytest.mark.slow
def test_a_good_job_passes_and_nothing_is_left(tmp_path):
    verdicts = rehearse(tiny(), tmp_path / "run")
    assert tuple(verdicts) == PARTS
    assert (bad(verdicts), skipped(verdicts)) == ([], [])
    assert re.match(r"3 steps, loss \d", verdicts["steps"].detail)
    assert "equal bit for bit" in verdicts["save"].detail
    assert "stopped after step 1 of 120, which is saved" in verdicts["stop"].detail
    assert "equal to the uninterrupted run's bit for bit" in verdicts["resume"].detail
    assert "knn of 128 test images among 128" in verdicts["evaluate"].detail
    assert "safetensors; features in simclr_jax.load" in verdicts["export"].detail
    assert "images/s of a host, its input gives" in verdicts["rate"].detail
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_written_or_read_is_named_and_the_rest_not_tried(tmp_path):
    (tmp_path / "file").touch()
    config = tiny()
    config.data.dataset = f"npz:{tmp_path}/missing.npz"
    verdicts = rehearse(config, tmp_path / "file" / "run")
    assert bad(verdicts) == ["run directory", "data"]
    assert "file/run/rehearsal-" in verdicts["run directory"].detail
    assert "missing.npz" in verdicts["data"].detail
    assert skipped(verdicts) == [*PARTS[PARTS.index("input") :]]
    assert verdicts["steps"].detail == "not tried, for want of: run directory, compile"


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_explained(tmp_path, monkeypatch):
    def compile_step(*_, **__):
        def step(state, batch):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 80 GiB")

        step.lower = lambda *_: contextlib.nullcontext()
        return step

    monkeypatch.setattr(compiling, "compile_step", compile_step)
    monkeypatch.setattr("simclr_jax.training.out_of_memory._needs", lambda *_: ["x"])
    verdicts = rehearse(tiny(), tmp_path / "run")
    assert bad(verdicts) == ["compile"]
    assert "out of memory on cpu (RESOURCE_EXHAUSTED: 80 GiB)" in (
        verdicts["compile"].detail
    )
    assert skipped(verdicts) == [
        name for name in PARTS[PARTS.index("steps") :] if name not in ("clean up",)
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_resume_that_differs_is_told(tmp_path, monkeypatch):
    """One bit of one weight, after the state was read back well."""
    restore = Checkpoints.restore_newest

    def restore_but_one_bit(self, like, sharding, config_hash):
        state = restore(self, like, sharding, config_hash)
        if state is None or int(state.step) == life.NUM_STEPS:
            return state
        leaves, tree = jax.tree.flatten(state)
        leaves[0] = leaves[0] * (1 + 2**-23)
        return jax.tree.unflatten(tree, leaves)

    monkeypatch.setattr(Checkpoints, "restore_newest", restore_but_one_bit)
    verdicts = rehearse(tiny(), tmp_path / "run")
    assert bad(verdicts) == ["resume"]
    assert "the state of the resumed run differs" in verdicts["resume"].detail
    assert skipped(verdicts) == []


def test_a_config_that_breaks_a_rule_is_refused_before_any_check(tmp_path):
    config = tiny()
    config.checkpoint.every_secs = -1.0
    with pytest.raises(ConfigError, match=r"config\.checkpoint\.every_secs=-1"):
        rehearse(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_error_that_nobody_foresaw_is_a_verdict_too(tmp_path, monkeypatch):
    def broken(self):
        raise OSError("the sky fell\nhere")

    for name in ("compile", "measure_input"):
        monkeypatch.setattr(life._Life, name, broken)
    verdicts = rehearse(tiny(), tmp_path / "run")
    assert bad(verdicts) == ["input", "compile"]
    assert verdicts["compile"].detail == "OSError: the sky fell"


def test_a_check_that_the_other_processes_do_not_end_ends_the_rehearsal(monkeypatch):
    monkeypatch.setattr(Agreement, "meet", lambda *_, timeout_secs: False)

    def fail():
        raise ConfigError("no such thing")

    with pytest.raises(RunFailed, match=r"data: no such thing; other processes did"):
        list(checking.Checks().check("data", fail))


@pytest.mark.parametrize(
    ("own", "theirs", "said"),
    [
        ("", "no disk", "process 1: no disk"),
        # `all_or_none` tells the others.
        ("process 1 of 2 on b: no disk", "no disk", "process 1: no disk"),
        ("no disk", "process 0 of 2 on a: no disk", "process 0: no disk"),
    ],
)
def test_what_fails_on_another_process_is_named(monkeypatch, own, theirs, said):
    monkeypatch.setattr(processes, "gather_texts", lambda text: [text, theirs])

    def act():
        if own:
            raise ConfigError(own)
        return "saved"

    (verdict,) = checking.Checks().check("save", act)
    assert (verdict.ok, verdict.detail) == (False, said)


COMMAND = [
    *("-m", "simclr_jax.rehearse", *TINY),
    "--compilation_cache=",
]


@pytest.mark.slow
def test_two_processes_rehearse_on_a_store(gcs):  # noqa: F811
    command = [*COMMAND, f"--workdir={gcs}/runs/a"]
    (code, text), (other_code, other) = jobs.run(
        command, num_processes=2, devices_each=1
    )
    assert (code, other_code) == (0, 0), text[-3000:] + other[-3000:]
    lines = [line for line in text.splitlines() if re.match("ok |BAD|-  ", line)]
    assert tuple(line[5:20].strip() for line in lines) == PARTS
    assert all(line.startswith("ok") for line in lines), text[-3000:]
    assert "All checks passed." in text
    assert "ok " not in [line[:3] for line in other.splitlines()]


@pytest.mark.slow
def test_a_bucket_that_is_not_there_fails(gcs):  # noqa: F811
    command = [*COMMAND, f"--workdir={gcs}-missing/runs/a"]
    ((code, text),) = jobs.run(command, num_processes=1, devices_each=1)
    assert code == 1
    assert re.search(r"BAD  run directory .*bucket gs://\S+-missing cannot be", text)
    assert "error: 1 check failed" in text


@pytest.mark.slow
def test_a_host_with_other_code_is_told_before_anything_else(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        "import sys\n"
        "from simclr_jax import cli\n"
        "from simclr_jax.parallel import roll_call\n"
        "from simclr_jax.rehearse import __main__ as rehearse\n"
        "if '--process_id=1' in sys.argv:\n"
        "    roll_call.code_digest = lambda: '0123456789ab'\n"
        "cli.run(rehearse.main, required=('config', 'workdir'))\n"
    )
    command = [str(script), *COMMAND[2:], f"--workdir={tmp_path / 'run'}"]
    for code, text in jobs.run(command, num_processes=2, devices_each=1):
        assert code == 1
        assert re.search(
            r"error: process 1 on \S+ has simclr_jax's code 0123456789ab, process 0 on "
            r"\S+ simclr_jax's code [0-9a-f]{12}: all must have the same",
            text,
        )
