"""However many processes and devices: the same batches, and the same training.

Real images through tf.data. After one step, loss, gradient, BatchNorm statistics and
parameters differ by the rounding of float32 sums; over twenty steps of LARS at a high
rate, by no more than the same training does when its pixels change by 1e-7 of
themselves.
"""

import json
import pathlib
import shutil

import jax
import jobs
import numpy as np
import pytest

import simclr_jax
from simclr_jax.runs import metrics_writer

JOB = str(pathlib.Path(__file__).with_name("mesh_job.py"))
TINY = {
    "image_size": 16,
    "encoder.width": 0.125,
    "batch.batch_size": 32,
    "evaluation.batch_size": 64,
    "schedule.warmup_steps": 0,
    "probe.enabled": False,
}
# The first update is then minus the gradient.
PLAIN = {
    **TINY,
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 1.0,
    "optimizer.weight_decay": 0.0,
    "schedule.train_steps": 1,
}
LARS = {
    **TINY,
    "optimizer.name": "lars",
    "optimizer.learning_rate": 0.2,
    "schedule.train_steps": 20,
}


def train(folder, name, overrides, *, num_processes, devices_each, keep, noise=0.0):
    output = folder / f"{name}.npz"
    command = [
        JOB,
        f"--output={output}",
        f"--overrides={json.dumps(overrides)}",
        f"--keep={','.join(map(str, keep))}",
        f"--noise={noise}",
    ]
    for code, text in jobs.run(
        command, num_processes=num_processes, devices_each=devices_each
    ):
        assert code == 0, text[-3000:]
    return dict(np.load(output))


def errors(one, other, prefix):
    """|a - b| / |b| over all arrays of one kind."""
    names = [name for name in other if name.startswith(prefix + "[")]
    assert names
    assert one.keys() == other.keys()
    difference = sum(np.sum((one[n] - other[n]) ** 2.0) for n in names)
    return float(np.sqrt(difference / sum(np.sum(other[n] ** 2.0) for n in names)))


def gradient(run):
    return {
        name: run[name.replace("params1", "params0")] - run[name]
        for name in run
        if name.startswith("params1[")
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("meshes")


@pytest.fixture(scope="module")
def one_step(folder):
    return train(folder, "one", PLAIN, num_processes=1, devices_each=1, keep=[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_processes", "devices_each"), [(2, 2), (1, 8), (2, 4), (4, 2)]
)
def test_one_step_is_that_of_one_device(folder, one_step, num_processes, devices_each):
    other = train(
        folder,
        f"{num_processes}x{devices_each}",
        PLAIN,
        num_processes=num_processes,
        devices_each=devices_each,
        keep=[1],
    )
    np.testing.assert_array_equal(other["batches"], one_step["batches"])
    np.testing.assert_allclose(other["loss"], one_step["loss"], rtol=1e-6)
    assert errors(other, one_step, "stats1") < 1e-6
    assert errors(other, one_step, "params1") < 1e-5
    assert errors(gradient(other), gradient(one_step), "params1") < 1e-5


@pytest.fixture(scope="module")
def twenty_steps(folder):
    """A run on one device, and how far runs with other roundings are from it."""
    settings = {"num_processes": 1, "devices_each": 1, "keep": [20]}
    one = train(folder, "l1x1", LARS, **settings)
    nudged = [
        train(folder, f"nudged{i}", LARS, noise=noise, **settings)
        for i, noise in enumerate((1e-7, -1e-7))
    ]
    floor = {
        kind: max(errors(other, one, kind) for other in nudged)
        for kind in ("params20", "stats20")
    }
    floor["loss"] = max(np.abs(n["loss"] - one["loss"]).max() for n in nudged)
    return one, floor


# A floor is a sample of noise, and so is what is held against it.
SAMPLES = 3


@pytest.mark.slow
@pytest.mark.parametrize(("num_processes", "devices_each"), [(1, 8), (2, 4), (4, 2)])
def test_twenty_steps_stay_within_the_noise(
    folder, twenty_steps, num_processes, devices_each
):
    one, floor = twenty_steps
    other = train(
        folder,
        f"l{num_processes}x{devices_each}",
        LARS,
        num_processes=num_processes,
        devices_each=devices_each,
        keep=[20],
    )
    np.testing.assert_array_equal(other["batches"], one["batches"])
    found = {kind: errors(other, one, kind) for kind in ("params20", "stats20")}
    found["loss"] = np.abs(other["loss"] - one["loss"]).max()
    print(f"{num_processes} x {devices_each}: off by {found}, floor {floor}")
    for kind, value in floor.items():
        assert found[kind] < SAMPLES * value, kind


def go_on(workdir, batches, *, num_processes, devices_each, die_at=None):
    changes = {
        **LARS,
        "checkpoint.every_steps": 10,
        "log.every_steps": 1,
        "log.writers": (),
    }
    command = [
        str(pathlib.Path(JOB).with_name("resume_job.py")),
        f"--workdir={workdir}",
        f"--batches={batches}",
        f"--changes={json.dumps(changes)}",
        *([] if die_at is None else [f"--die_at={die_at}"]),
    ]
    for code, text in jobs.run(
        command, num_processes=num_processes, devices_each=devices_each
    ):
        assert code == (0 if die_at is None else 9), text[-3000:]


@pytest.fixture(scope="module")
def killed_on_four(folder):
    """A run of four processes that died behind its checkpoint of step 10."""
    workdir = folder / "killed"
    go_on(workdir, folder / "b4", num_processes=4, devices_each=2, die_at=14)
    return workdir, (folder / "b4").read_text().split()


@pytest.mark.slow
@pytest.mark.parametrize(("num_processes", "devices_each"), [(2, 4), (1, 1)])
def test_a_run_of_four_processes_goes_on_with_fewer(
    folder, twenty_steps, killed_on_four, num_processes, devices_each
):
    one, floor = twenty_steps
    killed, first_batches = killed_on_four
    name = f"resumed{num_processes}"
    workdir, batches = folder / name, folder / f"{name}.batches"
    shutil.copytree(killed, workdir)
    go_on(workdir, batches, num_processes=num_processes, devices_each=devices_each)
    assert first_batches == list(one["batches"][:13])
    assert batches.read_text().split() == list(one["batches"][10:])
    records = metrics_writer.read_metrics(workdir / metrics_writer.FILE_NAME)
    assert [record["step"] for record in records] == list(range(1, 21))
    off = np.abs([record["loss"] for record in records] - one["loss"]).max()
    assert off < SAMPLES * floor["loss"]
    # The head is not in what `load` calls variables.
    params = {"encoder": simclr_jax.load(str(workdir)).variables["params"]}
    expected = {k: v for k, v in one.items() if k.startswith("params20['encoder']")}
    found = {
        f"params20{jax.tree_util.keystr(path)}": np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    off_params = errors(found, expected, "params20")
    print(f"{num_processes} x {devices_each}: off by {off}, {off_params}, {floor}")
    assert off_params < SAMPLES * floor["params20"]
