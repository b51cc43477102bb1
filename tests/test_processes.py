"""The real commands as several processes on this machine."""

import json
import os
import re
import shutil

import jobs
import numpy as np
import pytest
from commands import TINY
from PIL import Image

from simclr_jax.evaluation import loop
from simclr_jax.runs import metrics_writer, quarantine

RUN = [
    "-m",
    "simclr_jax.pretrain",
    *TINY,
    "--config.schedule.train_steps=4",
    "--config.checkpoint.every_steps=2",
    "--compilation_cache=",
]


@pytest.fixture(scope="module")
def run_of_two(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two") / "run"
    results = jobs.run([*RUN, f"--workdir={workdir}"], num_processes=2, devices_each=2)
    for code, text in results:
        assert code == 0, text[-3000:]
    return workdir, [text for _, text in results]


@pytest.mark.slow
def test_process_0_alone_writes_and_prints(run_of_two):
    workdir, (first, second) = run_of_two
    assert "4 devices (cpu) of 2 processes, photographs" in first
    assert "Done: 4 steps" in first
    # Gloo's threads can cut the lines of each other.
    gloo = ("[Gloo]", "peer ranks")
    said = [line for line in second.splitlines() if line]
    assert [line for line in said if not any(word in line for word in gloo)] == []
    records = metrics_writer.read_metrics(workdir / metrics_writer.FILE_NAME)
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    names = {path.name.split(".")[0] for path in workdir.iterdir()}
    assert names == {"config", "dataset", "metrics", "events", "checkpoints"}


@pytest.mark.slow
def test_bad_images_of_all_processes_are_listed(tmp_path):
    generator = np.random.default_rng(0)
    for number in range(64):
        path = tmp_path / "data" / f"{number:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        pixels = generator.integers(0, 256, (20, 20 + number % 2, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        if number % 16 == 5:
            path.write_bytes(path.read_bytes()[:-100])
    run = [*RUN, f"--config.data.dataset=folder:{tmp_path}/data"]
    run += ["--config.data.split=all", "--config.data.in_memory_mb=0"]
    run += ["--config.batch.batch_size=32", f"--workdir={tmp_path}/run"]
    for code, text in jobs.run(run, num_processes=2, devices_each=2):
        assert code == 0, text[-3000:]
        assert "Traceback" not in text
        assert "{{" not in text
    header, *lines = (tmp_path / "run" / quarantine.FILE_NAME).read_text().splitlines()
    assert header.split("\t") == ["record", "reason", "step", "index"]
    assert sorted(line.split("\t")[3] for line in lines) == ["21", "37", "5", "53"]
    records = metrics_writer.read_metrics(tmp_path / "run" / metrics_writer.FILE_NAME)
    assert records[-1]["bad_records"] == 4
    # With two more they are too many.
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    for name in ("00.jpg", "01.jpg"):
        shutil.copy(tmp_path / "data" / "05.jpg", tmp_path / "data" / name)
    run.append("--allow_data_change")
    ((code, text),) = jobs.run(run, num_processes=1, devices_each=4)
    assert code == 2
    assert "error: folder:" in text
    assert "6 of 64 images cannot be read" in text


def told_to_stop(folder, command, *required):
    """A program that runs a command; process 1 gets SIGTERM with its fourth batch."""
    script = folder / "job.py"
    script.write_text(
        "import os, signal, sys\n"
        f"from simclr_jax import cli, parallel, {command}\n"
        "seen, shard = 0, parallel.shard_batch\n"
        "def watched(mesh, local):\n"
        "    global seen\n"
        "    seen += 1\n"
        "    if seen == 4 and '--process_id=1' in sys.argv:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return shard(mesh, local)\n"
        "parallel.shard_batch = watched\n"
        f"cli.run({command}.main, required={required})\n"
    )
    return script


@pytest.mark.slow
def test_one_process_told_to_stop_stops_all_after_the_same_step(tmp_path):
    script = told_to_stop(tmp_path, "pretrain", "config", "workdir")
    settings = [*RUN[2:], "--config.schedule.train_steps=3000"]
    settings += ["--config.checkpoint.every_steps=3000", "--config.log.every_steps=100"]
    command = [str(script), *settings, f"--workdir={tmp_path / 'run'}"]
    for code, text in jobs.run(command, num_processes=2, devices_each=1):
        assert code == 143, text[-3000:]
        (step,) = re.findall(r"error: stopped after step (\d+) of 3000", text)
        assert (tmp_path / "run" / "checkpoints" / step).is_dir()


EVALUATE = [
    "-m",
    "simclr_jax.evaluate",
    "--set=evaluation.sgd_epochs=1",
    "--set=evaluation.l2_penalties=[1e-3, 1e-1]",
    "--set=evaluation.lbfgs_steps=30",
    "--set=schedule.train_steps=3",
    "--compilation_cache=",
]


def evaluate(run, copy, protocols, *flags, num_processes):
    """The receipts, by protocol, of a copy of a run."""
    shutil.copytree(run, copy, dirs_exist_ok=True)
    command = [*EVALUATE, f"--workdir={copy}", f"--protocol={','.join(protocols)}"]
    results = jobs.run([*command, *flags], num_processes=num_processes, devices_each=2)
    for code, text in results:
        assert code == 0, text[-3000:]
    tables = [text.count("representation") for _, text in results]
    assert tables == [1] + [0] * (num_processes - 1)
    receipts = {
        path.stem: json.loads(path.read_text())
        for path in (copy / "eval").glob("*.json")
    }
    for name, receipt in receipts.items():
        # No multiple of the 64 in a batch, and all of them were counted.
        assert receipt["num_test"] == 1080
        right = receipt["value"] * 1080
        assert right == pytest.approx(round(right), abs=1e-6), name
    return receipts


@pytest.mark.slow
def test_two_processes_fine_tune_to_evaluate(run_of_two, tmp_path):
    run, _ = run_of_two
    flags = ["--set=batch.batch_size=16"]
    receipts = evaluate(run, tmp_path, ["finetune_1pct"], *flags, num_processes=2)
    assert 0 <= receipts["finetune_1pct"]["value"] <= 1
    folder = tmp_path / "eval" / "finetune_1pct" / "pretrained"
    assert (folder / "checkpoints" / "3").is_dir()


@pytest.mark.slow
def test_two_processes_evaluate_as_one_does(run_of_two, tmp_path):
    """Every protocol, and the baselines, from features that were kept and not."""
    run, _ = run_of_two
    names = [name for name in loop.NAMES if name != "transfer"]
    flags = ["--baselines", "--keep_features", "--set=batch.batch_size=16"]
    two, one, kept = (
        evaluate(run, tmp_path / copy, names, *flags, num_processes=number)
        for copy, number in (("two", 2), ("one", 1), ("two", 1))
    )
    assert set(two) == set(names)
    for name in names:
        # Of 1080 test images; L-BFGS and training, cut short here, multiply rounding.
        assert two[name]["value"] == pytest.approx(one[name]["value"], abs=1e-2), name
        for baseline, value in one[name]["baselines"].items():
            assert two[name]["baselines"][baseline] == pytest.approx(value, abs=1e-2)
        for figure, value in one[name]["values"].items():
            assert two[name]["values"][figure] == pytest.approx(value, abs=1e-2)
    assert kept["knn"] == two["knn"]


@pytest.mark.slow
def test_an_evaluation_that_fine_tunes_stops_and_resumes(run_of_two, tmp_path):
    run, _ = run_of_two
    shutil.copytree(run, tmp_path / "run")
    script = told_to_stop(tmp_path, "evaluate", "workdir", "protocol")
    flags = [f"--workdir={tmp_path / 'run'}", "--protocol=finetune"]
    flags += ["--set=batch.batch_size=16", "--set=schedule.train_steps=300"]
    command = [str(script), *EVALUATE[2:], *flags]
    for code, text in jobs.run(command, num_processes=2, devices_each=1):
        assert code == 143, text[-3000:]
        (step,) = re.findall(r"error: stopped after step (\d+) of 300", text)
    folder = tmp_path / "run" / "eval" / "finetune" / "pretrained" / "checkpoints"
    assert (folder / step).is_dir()
    (_, text), *_ = results = jobs.run(
        [*EVALUATE, *flags], num_processes=2, devices_each=1
    )
    assert [code for code, _ in results] == [0, 0], text[-3000:]
    assert f"Resuming from the checkpoint of step {step}" in text
    assert (tmp_path / "run" / "eval" / "finetune.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["finetune", "distill"])
def test_two_processes_train_classifiers_as_one_does(run_of_two, tmp_path, command):
    run, _ = run_of_two
    small = [f"--config.{key}" for key in ("image_size=8", "batch.batch_size=16")]
    small += ["--config.schedule.train_steps=4", "--config.log.every_steps=1"]
    small += ["--config.checkpoint.every_steps=2", "--compilation_cache="]

    def train(command, workdir, *flags, num_processes):
        arguments = ["-m", f"simclr_jax.{command}", f"--workdir={workdir}"]
        arguments += [f"--config=configs/{command}.py:smoke", *flags, *small]
        results = jobs.run(arguments, num_processes=num_processes, devices_each=2)
        for code, text in results:
            assert code == 0, text[-3000:]
        printed = ["classifier " in text for _, text in results]
        assert printed == [True] + [False] * (num_processes - 1)
        records = metrics_writer.read_metrics(workdir / metrics_writer.FILE_NAME)
        receipt = json.loads((workdir / "eval" / "classifier.json").read_text())
        assert receipt["num_test"] == 1080
        return [record["loss"] for record in records], receipt["value"]

    flags = [f"--init_from={run}"]
    if command == "distill":
        teacher = tmp_path / "teacher"
        train("finetune", teacher, *flags, num_processes=1)
        flags = [f"--teacher={teacher}", "--config.encoder.width=0.0625"]
    losses, value = train(command, tmp_path / "two", *flags, num_processes=2)
    expected, expected_value = train(command, tmp_path / "one", *flags, num_processes=1)
    assert len(losses) == 4
    np.testing.assert_allclose(losses, expected, rtol=1e-3)
    assert value == pytest.approx(expected_value, abs=1e-2)


@pytest.mark.slow
def test_what_one_process_cannot_read_ends_all(tmp_path):
    """The second process has no such file; both say so, and nothing waits."""
    script = tmp_path / "job.py"
    script.write_text(
        "import os, sys\n"
        "from simclr_jax import cli, pretrain\n"
        "if '--process_id=1' in sys.argv:\n"
        "    sys.argv = [a.replace('photographs', 'npz:/missing') for a in sys.argv]\n"
        "cli.run(pretrain.main, required=('config', 'workdir'))\n"
    )
    arguments = [*RUN[2:], "--config.data.dataset=photographs"]
    command = [str(script), *arguments, f"--workdir={tmp_path / 'run'}"]
    (code0, text0), (code1, text1) = jobs.run(command, num_processes=2, devices_each=1)
    assert (code0, code1) == (2, 2)
    assert re.search(r"error: process 1 of 2 on \S+: .*npz:/missing", text0)
    assert re.search(r"error: .*npz:/missing", text1)
    assert not os.path.exists(tmp_path / "run" / "config.json")


@pytest.mark.slow
def test_different_configs_are_refused(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        "import sys\n"
        "from simclr_jax import cli, pretrain\n"
        "if '--process_id=1' in sys.argv:\n"
        "    sys.argv.append('--config.seed=7')\n"
        "cli.run(pretrain.main, required=('config', 'workdir'))\n"
    )
    command = [str(script), *RUN[2:], f"--workdir={tmp_path / 'run'}"]
    for code, text in jobs.run(command, num_processes=2, devices_each=1):
        assert code == 2, text[-2000:]
        assert "error: process 1 has the config fingerprint" in text


@pytest.mark.slow
def test_doctor_checks_two_processes(tmp_path):
    command = ["-m", "simclr_jax.doctor", f"--workdir={tmp_path / 'run'}"]
    command.append("--compilation_cache=")
    (code, text), (other_code, other) = jobs.run(
        command, num_processes=2, devices_each=2
    )
    assert (code, other_code) == (0, 0), text[-3000:] + other[-3000:]
    lines = [line for line in text.splitlines() if line.startswith(("ok", "BAD"))]
    assert len(lines) == 14
    assert not [line for line in lines if line.startswith("BAD")]
    assert "2 processes with 2 devices each" in text
    assert "All checks passed." in text
    assert "ok" not in [line.split(" ")[0] for line in other.splitlines()]
    assert not (tmp_path / "run").exists()
