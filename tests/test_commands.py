"""The commands as a user meets them: help, errors in one line, kill and resume."""

import json
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable

import commands
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from pretraining import pretrain

from simclr_jax.configs import smoke
from simclr_jax.errors import InvalidInput
from simclr_jax.runs import metrics_writer


def tiny_config(workdir: pathlib.Path, *overrides: str) -> list[str]:
    return [*commands.TINY, f"--workdir={workdir}", *overrides]


def saved_arrays(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    folder = workdir / "checkpoints" / str(step) / "state"
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(folder)
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "optimized"),
    [
        ("host", False),
        # Compiled as users do, which takes most of the time.
        ("host", True),
        ("accelerator", False),
        ("host_crop", True),
    ],
)
def test_a_killed_run_resumes_to_the_same_weights_bit_for_bit(
    device, optimized, tmp_path
):
    settings = (
        f"--config.augment.placement={device}",
        "--config.schedule.train_steps=40",
        "--config.checkpoint.every_steps=5",
    )

    def start(workdir: pathlib.Path) -> subprocess.Popen:
        arguments = tiny_config(workdir, *settings)
        return commands.start("pretrain", *arguments, optimized=optimized)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    uninterrupted, process = start(whole), start(killed)
    metrics = killed / metrics_writer.FILE_NAME

    def past_a_checkpoint() -> bool:
        if not metrics.exists() or not (killed / "checkpoints" / "5").exists():
            return False
        return any(
            record["step"] > 7 for record in metrics_writer.read_metrics(metrics)
        )

    wait_for(past_a_checkpoint, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "checkpoints" / "40").exists(), "over before it was killed"

    process = start(killed)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert "Resuming from the checkpoint of step" in err
    uninterrupted.communicate(timeout=600)
    assert uninterrupted.returncode == 0

    expected, resumed = saved_arrays(whole, 40), saved_arrays(killed, 40)
    assert expected.keys() == resumed.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
    steps = [record["step"] for record in metrics_writer.read_metrics(metrics)]
    assert steps == list(range(1, 41)), "each step is in the metrics once"


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_saves_and_goes_on(tmp_path):
    arguments = tiny_config(
        tmp_path / "run",
        "--config.schedule.train_steps=400",
        "--config.checkpoint.every_steps=400",
    )
    process = commands.start("pretrain", *arguments)
    metrics = tmp_path / "run" / metrics_writer.FILE_NAME
    wait_for(
        lambda: metrics.exists() and len(metrics_writer.read_metrics(metrics)) > 2,
        process,
    )
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 143, err
    (saved,) = (int(path.name) for path in (tmp_path / "run/checkpoints").iterdir())
    assert 2 < saved < 400
    last = f"error: stopped after step {saved} of 400, which is saved"
    assert err.splitlines()[-1].startswith(last)

    process = commands.start("pretrain", *arguments)
    wait_for(lambda: metrics_writer.read_metrics(metrics)[-1]["step"] > saved, process)
    process.kill()
    process.communicate()
    steps = [record["step"] for record in metrics_writer.read_metrics(metrics)]
    assert steps == list(range(1, steps[-1] + 1))


@pytest.mark.slow
def test_evaluate_measures_a_run_and_leaves_receipts(tmp_path):
    generator = np.random.default_rng(0)
    for split, count in (("train", 130), ("test", 70)):
        images = generator.integers(0, 256, (count, 8, 8, 3), np.uint8)
        labels = np.arange(count) % 3
        np.savez(tmp_path / f"{split}.npz", images=images, labels=labels)
    run = tmp_path / "run"
    dataset = f"npz:{tmp_path}/{{split}}.npz"
    code, _, err = commands.run(
        "pretrain",
        *tiny_config(
            run,
            "--config.schedule.train_steps=2",
            f"--config.data.dataset={dataset}",
        ),
    )
    assert code == 0, err
    assert list(run.glob("events.out.tfevents.*"))
    code, out, err = commands.run(
        "evaluate",
        f"--workdir={run}",
        "--protocol=knn,linear,linear_sgd",
        "--baselines",
        "--set=evaluation.sgd_epochs=2",
        "--set=evaluation.sgd_batch_size=64",
        "--set=evaluation.lbfgs_steps=5",
        "--set=evaluation.knn_k=[20,7]",
    )
    assert code == 0, err
    assert "pretrained" in out
    receipt = json.loads((run / "eval" / "knn.json").read_text())
    assert list(receipt["values"]) == ["k=20", "k=7"]
    for protocol in ("knn", "linear", "linear_sgd"):
        receipt = json.loads((run / "eval" / f"{protocol}.json").read_text())
        assert receipt["protocol"] == protocol
        assert 0 <= receipt["value"] <= 1
        assert receipt["dataset"] == dataset
        assert receipt["test_split"] == "test"
        assert receipt["num_test"] == 70
        assert receipt["checkpoint_step"] == 2
        assert receipt["encoder_checksum_before"] == receipt["encoder_checksum_after"]
        assert set(receipt["baselines"]) == {"pixels", "untrained"}


@pytest.mark.slow
def test_from_pretraining_to_a_distilled_student(tmp_path):
    run, tuned, student = (tmp_path / name for name in ("run", "tuned", "student"))
    tiny = "--config.encoder.width=0.0625"
    steps = "--config.schedule.train_steps=3"
    small = ("--config.image_size=8", "--config.batch.batch_size=16", steps)
    code, _, err = commands.run("pretrain", *tiny_config(run, steps))
    assert code == 0, err
    finetune = (
        "--config=configs/finetune.py:smoke,0.1",
        f"--init_from={run}",
        f"--workdir={tuned}",
        *small,
    )
    code, out, err = commands.run("finetune", *finetune)
    assert code == 0, err
    assert "classifier" in out
    code, _, err = commands.run("finetune", *finetune)
    assert code == 0, err
    assert "Nothing to do" in err
    code, _, err = commands.run(
        "distill",
        "--config=configs/distill.py:smoke",
        f"--teacher={tuned}",
        f"--workdir={student}",
        tiny,
        *small,
    )
    assert code == 0, err
    for folder, dataset in ((tuned, "photographs"), (student, "photographs")):
        receipt = json.loads((folder / "eval" / "classifier.json").read_text())
        assert receipt["dataset"] == dataset
        assert 0 <= receipt["value"] <= 1
    code, out, err = commands.run(
        "evaluate",
        f"--workdir={run}",
        "--protocol=finetune_1pct,knn",
        "--baselines",
        "--set=schedule.train_steps=3",
        "--set=batch.batch_size=16",
    )
    assert code == 0, err
    receipt = json.loads((run / "eval" / "finetune_1pct.json").read_text())
    assert set(receipt["baselines"]) == {"untrained"}
    assert receipt["settings"]["train_images"].startswith("72 of ")
    assert receipt["encoder_checksum_before"] == receipt["encoder_checksum_after"]


@pytest.mark.slow
def test_a_flat_folder_without_labels_pretrains(tmp_path):
    generator = np.random.default_rng(0)
    for i in range(20):
        size = (int(generator.integers(20, 60)), int(generator.integers(20, 60)), 3)
        image = Image.fromarray(generator.integers(0, 256, size, np.uint8))
        image.save(tmp_path / f"{i}.jpg")
    run = tmp_path / "run"
    code, _, err = commands.run(
        "pretrain",
        f"--config=configs/folder.py:{tmp_path}",
        f"--workdir={run}",
        "--config.image_size=16",
        "--config.encoder.depth=10",
        "--config.encoder.width=0.0625",
        "--config.encoder.compute_dtype=float32",
        "--config.batch.batch_size=16",
        "--config.evaluation.batch_size=16",
        "--config.schedule.train_steps=2",
    )
    assert code == 0, err
    (_, last) = metrics_writer.read_metrics(run / metrics_writer.FILE_NAME)
    assert np.isfinite(last["loss"])
    assert "probe_loss" not in last
    code, _, err = commands.run("evaluate", f"--workdir={run}", "--protocol=knn")
    assert code == 2
    assert err.startswith("error: ")


@pytest.fixture
def odd_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "notes.jpg").write_text("no image at all")
    (tmp_path / "plain").mkdir()
    for i in range(2):
        Image.new("RGB", (8, 8 + i)).save(tmp_path / "plain" / f"{i}.png")
    return tmp_path


BAD_COMMANDS = {
    "unknown config key": (["--config.loss.temprature=0.1"], ["temprature"]),
    "wrong type": (["--config.batch.batch_size=many"], ["batch_size", "many"]),
    "unknown config file": (["--config=configs/nothing.py"], ["configs/nothing.py"]),
    "bad config argument": (
        ["--config=configs/imagenet.py:big"],
        ["big", "DEPTH[xWIDTH]"],
    ),
    "stray argument": (["--config.seed=1", "stray"], ["stray"]),
    "missing folder": (
        ["--config.data.dataset=folder:{}/none", "--config.data.split=all"],
        ["{}/none"],
    ),
}


@pytest.mark.slow
def test_bad_commands_end_with_one_line_that_names_them(tmp_path):
    def fill(texts: list[str]) -> list[str]:
        return [text.replace("{}", str(tmp_path)) for text in texts]

    pending = list(BAD_COMMANDS.items())
    problems = []
    while pending:
        # Two at a time: each start takes seconds, most of them imports.
        group, pending = pending[:2], pending[2:]
        started = [
            (
                name,
                fill(needles),
                commands.start(
                    "pretrain",
                    "--config=configs/smoke.py",
                    f"--workdir={tmp_path / 'run'}",
                    *fill(arguments),
                ),
            )
            for name, (arguments, needles) in group
        ]
        for name, needles, process in started:
            _, err = process.communicate(timeout=300)
            one_line = err.startswith("error: ") and err.count("\n") == 1
            named = all(needle in err for needle in needles)
            if process.returncode != 2 or not one_line or not named:
                problems.append((name, process.returncode, err[-500:]))
    assert not problems
    assert not (tmp_path / "run").exists(), "bad input left files behind"


# What is wrong in a config, and what the message must name.
BAD_RUNS = {
    "zero temperature": (
        {"loss.temperature": 0.0},
        ["config.loss.temperature", "0.0", "must be positive"],
    ),
    "indivisible batch": (
        {"batch.batch_size": 17},
        ["config.batch.batch_size", "17", "divisible by the 8 devices"],
    ),
    "batch above the dataset": (
        {"batch.batch_size": 8000},
        ["config.batch.batch_size", "8000", "7200"],
    ),
    "unknown operation": (
        {"augment.operations": ("crop", "swirl")},
        ["config.augment.operations", "swirl"],
    ),
    "a folder on the accelerator": (
        {"augment.placement": "accelerator", "data.dataset": "folder:{}/plain"},
        [
            "config.augment.placement='accelerator'",
            "folder:{}/plain",
            "different sizes",
        ],
    ),
    "too little memory": (
        {"data.memory_mb": 10},
        ["config.data.memory_mb=10", "must be at least"],
    ),
    "empty folder": ({"data.dataset": "folder:{}/empty"}, ["{}/empty", "no ima"]),
    "a file that is no image": (
        {"data.dataset": "folder:{}/broken"},
        ["{}/broken/notes.jpg", "is no readable image"],
    ),
    "missing dataset": (
        {"data.dataset": "cifar10", "data.data_dir": "{}/none"},
        ["cifar10", "{}/none", "tfds build"],
    ),
    "unknown split": ({"data.split": "trian"}, ["trian", "train, test"]),
    "objective without its labels": (
        {
            "loss.name": "sup_con",
            "data.dataset": "folder:{}/plain",
            "batch.batch_size": 2,
        },
        ["config.loss.name", "sup_con", "folder:{}/plain", "needs labels"],
    ),
}


@pytest.mark.parametrize("name", BAD_RUNS)
def test_bad_configs_are_refused_in_one_line_that_names_them(
    name, odd_folders, tmp_path
):
    def fill(value):
        is_text = isinstance(value, str)
        return value.replace("{}", str(odd_folders)) if is_text else value

    changes, needles = BAD_RUNS[name]
    config = smoke.get_config()
    if "folder:" in changes.get("data.dataset", ""):
        config.data.split = "all"
    config.update_from_flattened_dict({k: fill(v) for k, v in changes.items()})
    with pytest.raises(InvalidInput) as error:
        pretrain(config, str(tmp_path / "run"))
    message = str(error.value)
    assert "\n" not in message
    assert all(fill(needle) in message for needle in needles), message
    assert not (tmp_path / "run").exists(), "bad input left files behind"


@pytest.mark.parametrize(
    ("module", "flag"),
    [
        ("pretrain", "--workdir"),
        ("evaluate", "--workdir"),
        ("convert", "--workdir"),
        ("doctor", "--coordinator_address"),
        ("plan", "--topology"),
        ("rehearse", "--[no]keep"),
        ("finetune", "--init_from"),
        ("distill", "--teacher"),
    ],
)
def test_help_shows_the_flags(module, flag):
    _, out, err = commands.run(module, "--help")
    assert flag in out + err
    assert f"python -m simclr_jax.{module}" in out + err


@pytest.mark.parametrize("module", ["pretrain", "evaluate", "convert"])
def test_missing_flags_are_named(module):
    code, _, err = commands.run(module)
    assert code == 2
    assert "workdir" in err
    assert err.count("\n") == 1


def test_empty_flags_are_named():
    code, _, err = commands.run("evaluate", "--protocol=knn", "--workdir=")
    assert code == 2
    assert "--workdir=: must not be empty" in err
    assert err.count("\n") == 1
