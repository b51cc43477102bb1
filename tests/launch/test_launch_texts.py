"""The bash texts for workers, and the YAML writer."""

import math
import os
import re
import shutil
import subprocess
import sys

import gke
import hosts
import pytest
import tpu
import worker
import yaml
from conftest import FAKES, ROOT
from stores import gcs, gcs_running  # noqa: F401

ODD = 'it\'s "$HOME" `id` \\ *\n#; &'
TAME = 'it\'s a "b" #;&'
SETTINGS: dict[str, dict] = {
    "PUSH": {"archive": "a.tar.gz"},
    "PREPARE": {"prepare": TAME},
    "INSTALL": {"python": "python3", "requirement": "jax[tpu]"},
    "INSPECT": {"versions": worker.VERSIONS},
    "SHARED_WRITE": {"workdir": TAME, "nonce": "n"},
    "SHARED_SEE": {"workdir": TAME, "nonce": "n", "tries": 3},
    "SHARED_REMOVE": {"workdir": TAME, "nonce": "n"},
    "START": {"arguments": [TAME, "--x"], "start_id": "1"},
    "STATUS": {},
    "STOP": {"grace": 3},
    "LOGS": {"lines": 3, "follow": "yes"},
    "ATTACHED": {"module": "simclr_jax.doctor", "arguments": []},
    "STORE": {"workdir": TAME, "nonce": "n", "act": "see", "program": "pass"},
}
NOT_TEXTS = {"CHIPS", "LIBTPU_LOCK", "SHARED_WAIT_SECS", "STORE_PROGRAM", "VERSIONS"}


def test_no_text_is_left_out_here():
    texts = {name for name in vars(worker) if name.isupper() and name[0] != "_"}
    assert texts - NOT_TEXTS == set(SETTINGS)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_shellcheck_has_nothing_to_say(tmp_path):
    for name, settings in SETTINGS.items():
        text = worker.script(getattr(worker, name), worker.Place(), settings)
        (tmp_path / f"{name}.bash").write_text("#!/usr/bin/env bash\n" + text)
    files = [*sorted(tmp_path.iterdir())]
    files += [path for path in sorted(FAKES.rglob("*")) if path.is_file()]
    done = subprocess.run(
        ["shellcheck", *files], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_check_of_a_bucket_writes_and_reads_there(gcs):  # noqa: F811
    def act(workdir, what):
        command = [sys.executable, "-c", worker.STORE_PROGRAM, workdir, "mark", what]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout

    workdir = f"{gcs}/runs/a"
    seen = [act(workdir, what) for what in ("see", "write", "see", "remove", "see")]
    assert [code for code, _ in seen] == [0] * 5
    outs = [out for _, out in seen]
    assert outs == ["@seen no\n", "", "@seen yes\n", "", "@seen no\n"]
    code, out = act(f"{gcs}-missing/runs/a", "write")
    assert code == 1
    assert out.startswith(f"error: --workdir={gcs}-missing/runs/a: bucket")


def test_texts_need_no_program_that_minimal_images_lack():
    for name in SETTINGS:
        text = getattr(worker, name) + "".join(worker._FUNCTIONS.values())
        assert not re.search(r"\b(ps|pgrep|pkill)\b|xargs[^|]* kill\b", text), name


def test_settings_reach_bash_as_they_are():
    text = worker.script(
        'printf "%s\\0" "$one" "${many[@]}"',
        worker.Place(),
        {"one": ODD, "many": [ODD, "", "-n"]},
    )
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True)
    assert done.stdout == "@reached yes\n" + "\0".join([ODD, ODD, "", "-n", ""])


def test_both_kinds_of_chips_are_looked_for():
    for device in ("/dev/accel", "/dev/vfio/"):
        assert f"-lname '{device}*'" in worker.INSPECT


@pytest.mark.parametrize(
    "name", ["docs/launching.md", "launch/skypilot.yaml", "launch/slurm.py"]
)
def test_jax_is_installed_within_the_limits_of_the_package(name):
    lines = (ROOT / name).read_text().splitlines()
    installs = [x for x in lines if "pip" in x and "jax[" in x and "install" in x]
    assert installs
    together = r'(-e|--editable) (\.|"\.\[[\w,]+\]") "jax\[\w+\]"'
    for line in installs:
        assert re.search(together, line), line


def test_the_skypilot_example_is_a_task():
    task = yaml.safe_load((ROOT / "launch/skypilot.yaml").read_text())
    assert task["resources"]["use_spot"] is True
    assert task["resources"]["accelerators"].startswith("tpu-")
    assert "--workdir=gs://YOUR-BUCKET/runs/" in task["run"]
    assert "simclr_jax.pretrain" in task["run"]
    assert "launch/setup.sh" in task["setup"]
    config = next(w for w in task["run"].split() if w.startswith("--config="))
    assert (ROOT / config.removeprefix("--config=").partition(":")[0]).exists()
    recovery = task["resources"]["job_recovery"]
    assert math.isfinite(recovery["max_restarts_on_errors"])
    assert recovery["recover_on_exit_codes"] == [143], "that of a run that saved"


SLICE_WORDS = ("create", "--name=n", "--zone=z", "--accelerator_type=a", "--version=v")
GKE_WORDS = ("status", "--name=n", "--namespace=s")


@pytest.mark.parametrize(
    ("main", "words", "flag"),
    [
        *((tpu.main, SLICE_WORDS, flag) for flag in ("name", "zone", "version")),
        (tpu.main, SLICE_WORDS, "accelerator_type"),
        (tpu.main, SLICE_WORDS, "project"),
        (gke.main, GKE_WORDS, "name"),
        (gke.main, GKE_WORDS, "context"),
        (hosts.main, ("status", "--hosts=h"), "user"),
    ],
)
def test_a_value_never_becomes_an_option_of_another_program(main, words, flag, capsys):
    values = ["--help", "-oProxyCommand=x", "a\nb"]
    if flag not in ("project", "context", "user"):
        values.append("")  # which for these means that they are not given
    for value in values:
        with pytest.raises(SystemExit) as ended:
            main([*words, "--dry_run", f"--{flag}={value}"])
        assert ended.value.code == 2
        assert f"argument --{flag}: {value!r} must not be " in capsys.readouterr().err
