"""However many processes and devices: the same batches, and the same training.

Real images through tf.data. After one step, loss, gradient, BatchNorm statistics and
parameters differ by the rounding of float32 sums; over twenty steps of LARS at a high
rate, by no more than the same training does when its pixels change by 1e-7 of
themselves.
"""

import json
import pathlib

import jobs
import numpy as np
import pytest

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
    "optimizer.learning_rate": 2.0,
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


@pytest.mark.parametrize(
    ("num_processes", "devices_each"),
    [
        (2, 2),
        pytest.param(1, 8, marks=pytest.mark.slow),
        pytest.param(2, 4, marks=pytest.mark.slow),
        (4, 2),
    ],
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


@pytest.mark.slow
def test_twenty_steps_stay_within_the_noise_floor(folder):
    settings = {"keep": [1, 20]}
    one = train(folder, "l1x1", LARS, num_processes=1, devices_each=1, **settings)
    nudged = [
        train(
            folder, f"n{i}", LARS, num_processes=1, devices_each=1, noise=x, **settings
        )
        for i, x in enumerate((1e-7, -1e-7))
    ]
    floor = {
        kind: max(errors(other, one, kind) for other in nudged)
        for kind in ("params20", "stats20")
    }
    floor_of_loss = max(np.abs(n["loss"] - one["loss"]).max() for n in nudged)
    for num_processes, devices_each in ((1, 8), (2, 4), (4, 2)):
        other = train(
            folder,
            f"l{num_processes}x{devices_each}",
            LARS,
            num_processes=num_processes,
            devices_each=devices_each,
            **settings,
        )
        np.testing.assert_array_equal(other["batches"], one["batches"])
        # A floor is a sample of noise; so is each of these.
        for kind, value in floor.items():
            assert errors(other, one, kind) < 3 * value, kind
        assert np.abs(other["loss"] - one["loss"]).max() < 3 * floor_of_loss
