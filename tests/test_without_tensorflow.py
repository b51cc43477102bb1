"""The commands where neither TensorFlow, TFDS nor, for some, Numba is installed."""

import json
import os
import subprocess
import sys

import cases
import commands
import numpy as np
import pytest
from PIL import Image

BLOCK = (
    "import runpy, sys\n"
    "for name in sys.argv[1].split(','):\n"
    "    sys.modules[name] = None\n"
    "del sys.argv[:2]\n"
    "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)\n"
)
TENSORFLOW = "tensorflow,tensorflow_datasets"
EVERYTHING = f"{TENSORFLOW},numba"
SETTINGS = (*commands.TINY, "--config.schedule.train_steps=3")


def _run(blocked, module, *arguments):
    """(exit code, stdout, stderr) of a command that cannot import some packages."""
    result = subprocess.run(
        [sys.executable, "-c", BLOCK, blocked, f"simclr_jax.{module}", *arguments],
        cwd=commands.ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "2"},
        capture_output=True,
        text=True,
    )
    return result.returncode, result.stdout, result.stderr


def _work(blocked, module, *arguments):
    code, out, err = _run(blocked, module, *arguments)
    assert code == 0, err
    return out


def _metrics(workdir):
    """The metrics of all steps without those that are times."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    timed = ("images_per_sec", "input_wait_share", "bottleneck")
    return [{k: v for k, v in json.loads(x).items() if k not in timed} for x in lines]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """An npz file for each split, and a folder of files of two sizes."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for split, count in (("train", 80), ("test", 40)):
        images = generator.integers(0, 256, (count, 12, 12, 3), np.uint8)
        labels = np.arange(count) % 4
        images[..., 0] = 60 * labels[:, None, None]
        np.savez(root / f"{split}.npz", images=images, labels=labels)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = root / "files" / split / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[: 12 - number % 2]).save(path)
    return root


@pytest.mark.parametrize(
    ("dataset", "placement", "blocked"),
    [
        pytest.param("npz", "host", TENSORFLOW, marks=pytest.mark.slow),
        pytest.param("npz", "accelerator", EVERYTHING, marks=pytest.mark.slow),
        pytest.param("files", "host_crop", TENSORFLOW, marks=pytest.mark.slow),
    ],
)
def test_pretraining_is_that_with_tensorflow(
    dataset, placement, blocked, data, tmp_path
):
    name = f"npz:{data}/{{split}}.npz" if dataset == "npz" else f"folder:{data}/files"
    arguments = (
        *SETTINGS,
        f"--config.data.dataset={name}",
        f"--config.augment.placement={placement}",
        "--config.evaluation.test_split=test",
        "--config.evaluation.knn_k=(5,)",
        "--config.evaluation.sgd_epochs=2",
        "--config.evaluation.sgd_batch_size=16",
    )
    without, complete = tmp_path / "without", tmp_path / "complete"
    _work(blocked, "pretrain", *arguments, f"--workdir={without}")
    _work("nothing", "pretrain", *arguments, f"--workdir={complete}")
    assert _metrics(without) == _metrics(complete)
    if placement == "host":
        return
    if dataset == "files":
        _work(EVERYTHING, "evaluate", f"--workdir={without}", "--protocol=knn")
        return
    # The same weights and images in memory, so the same figures.
    protocols = "--protocol=knn,linear_sgd"
    table = _work(EVERYTHING, "evaluate", f"--workdir={without}", protocols)
    assert table == _work("nothing", "evaluate", f"--workdir={complete}", protocols)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("blocked", "placement"), [(TENSORFLOW, "host"), (EVERYTHING, "accelerator")]
)
def test_the_life_of_an_encoder(blocked, placement, data, tmp_path):
    common = (
        f"--config.augment.placement={placement}",
        f"--config.data.dataset=npz:{data}/{{split}}.npz",
        "--config.data.split=train",
        "--config.evaluation.test_split=test",
        "--config.batch.batch_size=16",
        "--config.schedule.train_steps=2",
        "--config.log.every_steps=1",
        "--config.image_size=8",
        "--config.evaluation.batch_size=64",
    )
    pretrained, tuned = tmp_path / "pretrained", tmp_path / "tuned"
    _work(blocked, "pretrain", *SETTINGS, *common, f"--workdir={pretrained}")
    _work(
        blocked,
        "evaluate",
        f"--workdir={pretrained}",
        "--protocol=linear,linear_sgd,finetune",
        "--set=evaluation.sgd_epochs=2",
        "--set=evaluation.sgd_batch_size=16",
        "--set=schedule.train_steps=2",
    )
    assert (pretrained / "eval" / "linear_sgd.json").exists()
    finetune = ("--config=configs/finetune.py:smoke", *common)
    _work(
        blocked,
        "finetune",
        *finetune,
        f"--init_from={pretrained}",
        f"--workdir={tuned}",
    )
    assert (tuned / "eval" / "classifier.json").exists()
    student = tmp_path / "student"
    _work(
        blocked,
        "distill",
        "--config=configs/distill.py:smoke",
        *common,
        "--config.encoder.depth=10",
        "--config.encoder.width=0.0625",
        f"--teacher={tuned}",
        f"--workdir={student}",
    )
    assert (student / "eval" / "classifier.json").exists()


@pytest.mark.parametrize(
    ("blocked", "settings", "parts"),
    cases.first(
        1,
        [
            (
                TENSORFLOW,
                ["data.dataset=cifar10"],
                ["dataset cifar10 needs tensorflow", "simclr_jax[input]", "npz:"],
            ),
            (
                EVERYTHING,
                [],
                ["host_views='auto': cannot be had", "numba", "TensorFlow is not inst"],
            ),
            (
                TENSORFLOW,
                ["augment.host_views=graph"],
                ["host_views='graph': cannot be had (TensorFlow is not installed)"],
            ),
            (
                TENSORFLOW,
                ["augment.operations=('crop','rotation')"],
                ["'rotation'", "needs TensorFlow", "placement='host_crop'"],
            ),
        ],
    ),
)
def test_what_needs_a_package_says_so(blocked, settings, parts, tmp_path):
    code, _, err = _run(
        blocked,
        "pretrain",
        *SETTINGS,
        *(f"--config.{setting}" for setting in settings),
        f"--workdir={tmp_path}",
    )
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in err
    for part in parts:
        assert part in line, line
    assert not list(tmp_path.iterdir()), "nothing was done"
