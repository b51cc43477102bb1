"""The bash texts for workers, and the YAML writer."""

import math
import re
import shutil
import subprocess

import pytest
import worker
import yaml
from conftest import FAKES, ROOT

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
    "DOCTOR": {"arguments": []},
}
NOT_TEXTS = {"CHIPS", "LIBTPU_LOCK", "SHARED_WAIT_SECS", "VERSIONS"}


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
    mount = next(iter(task["file_mounts"]))
    assert f"--workdir={mount}/" in task["run"]
    assert "simclr_jax.pretrain" in task["run"]
    assert "launch/setup.sh" in task["setup"]
    config = next(w for w in task["run"].split() if w.startswith("--config="))
    assert (ROOT / config.removeprefix("--config=").partition(":")[0]).exists()
    recovery = task["resources"]["job_recovery"]
    assert math.isfinite(recovery["max_restarts_on_errors"])
    assert recovery["recover_on_exit_codes"] == [143], "that of a run that saved"
