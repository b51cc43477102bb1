"""The life of an encoder on object stores ends with the same bits as on a disk."""

import json
import time

import commands
import jobs
import pytest
import sample_images
from stores_proxy import Proxy

from simclr_jax import paths

NUM_STEPS = 60
SETTINGS = (
    *sample_images.SMALL_TRAINING,
    f"--config.schedule.train_steps={NUM_STEPS}",
    "--config.log.every_steps=5",
    "--config.checkpoint.every_steps=20",
)
TUNED = ("schedule.train_steps=4", "schedule.warmup_steps=1", "batch.batch_size=8")
# Prints a checksum of what `simclr_jax.load` finds.
LOADED = """
import sys, jobs, jax, simclr_jax
leaves = jax.tree.leaves(simclr_jax.load(sys.argv[1]).variables)
print(jobs.checksum({str(i): leaf for i, leaf in enumerate(leaves)}))
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Labelled images of three colours, in two splits."""
    folder = tmp_path_factory.mktemp("images")
    sample_images.write_colours(folder, {"train": 40, "val": 10})
    return folder


def run(*command, num_processes=1):
    """Runs a command to its end; returns the output of process 0."""
    results = jobs.run(
        ["-m", *command], num_processes=num_processes, devices_each=2 // num_processes
    )
    for code, text in results:
        assert code == 0, text[-3000:]
    return results[0][1]


def checksum(path):
    """Of the weights that `simclr_jax.load` finds."""
    ((code, text),) = jobs.run(["-c", LOADED, path], num_processes=1, devices_each=1)
    assert code == 0, text[-2000:]
    return text.split()[-1]


def live(root, images, *, killed=False):
    """Everything from images to an export below `root`; what came out of it.

    `killed` ends a process of the training without notice, and resumes.
    """
    run("simclr_jax.prepare", f"--input={images}", f"--output={root}/data")
    workdir = f"--workdir={root}/run"
    command = ["simclr_jax.pretrain", *SETTINGS, workdir]
    command.append(f"--config.data.dataset=prepared:{root}/data")
    if killed:
        kill_after_checkpoint(["-m", *command], f"{root}/run", step=20)
    log = run(*command, num_processes=2)
    assert ("Resuming from the checkpoint of step" in log) == killed
    overrides = [f"--set={setting}" for setting in TUNED]
    protocols = "--protocol=knn,linear,finetune_10pct"
    run("simclr_jax.evaluate", workdir, protocols, *overrides, num_processes=2)
    run(
        "simclr_jax.finetune",
        f"--init_from={root}/run",
        "--config=finetune:folder,1",
        "--config.image_size=8",
        f"--config.data.dataset=prepared:{root}/data",
        "--config.data.split=train",
        f"--workdir={root}/tuned",
        *[f"--config.{setting}" for setting in TUNED],
    )
    export = f"{root}/export"
    run("simclr_jax.export", workdir, "--format=safetensors", f"--output={export}")
    found = {}
    for name in ("run", "tuned", "export"):
        found[name] = checksum(f"{root}/{name}")
    for receipt in (paths.as_path(root) / "run" / "eval").glob("*.json"):
        found[receipt.name] = json.loads(receipt.read_text())["value"]
    metrics = (paths.as_path(root) / "run" / "metrics.jsonl").read_text()
    losses = {r["step"]: r["loss"] for r in map(json.loads, metrics.splitlines())}
    # The first step after a start is logged too.
    assert (21 in losses) == killed
    found["losses"] = {step: losses[step] for step in range(5, NUM_STEPS + 1, 5)}
    return found


def kill_after_checkpoint(command, workdir, *, step):
    """Starts two processes and kills one once a checkpoint is complete."""
    complete = paths.as_path(workdir) / "checkpoints" / str(step) / "commit_success.txt"
    started = jobs.start(command, num_processes=2, devices_each=1)
    deadline = time.monotonic() + 200
    while not complete.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert complete.exists()
    assert started[1].poll() is None, "the training ended before it was killed"
    started[1].kill()
    time.sleep(1)
    started[0].kill()
    jobs.finish(started)


@pytest.fixture(scope="module")
def on_a_disk(images, tmp_path_factory):
    root = tmp_path_factory.mktemp("disk")
    found = live(root, images)
    assert {"knn.json", "linear.json", "finetune_10pct.json"} < set(found)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("store", ["gcs", "s3"])
def test_a_life_on_a_store_is_the_same_to_the_bit(store, request, images, on_a_disk):
    root = f"{request.getfixturevalue(store)}/jobs"

    assert live(root, images, killed=True) == on_a_disk


@pytest.mark.slow
def test_a_run_survives_failing_and_slow_requests(
    gcs,
    gcs_running,
    tmp_path,
    monkeypatch,
):
    command = ["pretrain", *commands.TINY, "--config.schedule.train_steps=20"]
    command += ["--config.checkpoint.every_steps=5"]
    with (
        Proxy(
            gcs_running.url, latency_secs=0.01, fail_every=7, reset_every=11
        ) as proxy,
        monkeypatch.context() as patch,
    ):
        for name, value in gcs_running.variables(proxy.url).items():
            patch.setenv(name, value)
        code, _, log = commands.run(*command, f"--workdir={gcs}/run")
    assert code == 0, log[-3000:]
    code, _, log = commands.run(*command, f"--workdir={tmp_path}/run")
    assert code == 0, log[-3000:]
    assert checksum(f"{gcs}/run") == checksum(f"{tmp_path}/run")


@pytest.mark.slow
def test_a_store_that_goes_away_ends_a_run_with_one_line(gcs, gcs_running, monkeypatch):
    command = ["pretrain", *commands.TINY, "--config.schedule.train_steps=100000"]
    command += ["--config.checkpoint.every_steps=50", f"--workdir={gcs}/run"]
    complete = paths.as_path(gcs) / "run" / "checkpoints" / "50" / "commit_success.txt"
    with monkeypatch.context() as patch, Proxy(gcs_running.url) as proxy:
        for name, value in gcs_running.variables(proxy.url).items():
            patch.setenv(name, value)
        process = commands.start(*command)
        deadline = time.monotonic() + 200
        while not complete.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert complete.exists()
    _, log = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "Traceback" not in log
    assert log.splitlines()[-1].startswith("error: ")
    assert str(gcs) in log.splitlines()[-1]


@pytest.mark.slow
def test_a_run_on_a_store_resumes(gcs):
    command = ["pretrain", *commands.TINY, "--config.schedule.train_steps=4"]
    command += ["--config.checkpoint.every_steps=2", f"--workdir={gcs}/run"]
    code, _, log = commands.run(*command)
    assert code == 0, log[-3000:]
    folder = paths.as_path(gcs) / "run"
    metrics = folder / "metrics.jsonl"
    losses = [json.loads(line)["loss"] for line in metrics.read_text().splitlines()]
    assert len(losses) == 4
    assert any("events" in path.name for path in folder.iterdir())
    # Without it the checkpoint is as unfinished as one that was being written.
    (folder / "checkpoints" / "4" / "commit_success.txt").unlink()

    code, _, log = commands.run(*command)

    assert code == 0, log[-3000:]
    assert "Resuming from the checkpoint of step 2" in log
    again = [json.loads(line)["loss"] for line in metrics.read_text().splitlines()]
    assert again == losses
