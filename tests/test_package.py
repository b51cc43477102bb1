"""The package as it is installed, and configs found from any folder."""

import os
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from simclr_jax.config import renamed, shipped
from simclr_jax.errors import ConfigError

ROOT = pathlib.Path(__file__).parents[1]
# A net and images small enough that a run takes seconds.
TINY = (
    "--config.image_size=8",
    "--config.encoder.width=0.0625",
    "--config.batch.batch_size=16",
    "--config.evaluation.batch_size=64",
    "--config.schedule.train_steps=2",
    "--config.schedule.warmup_steps=1",
)


def test_shipped_configs_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.locate("imagenet:50x2") == f"{shipped.FOLDER / 'imagenet.py'}:50x2"
    assert "presets" not in shipped.names()
    (tmp_path / "cifar10.py").touch()
    assert shipped.locate("cifar10.py:200epochs") == "cifar10.py:200epochs"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("cifar", "shipped configs base, cifar10,"),
        ("configs/cifar10.py", "no such file; the shipped config is --config=cifar10"),
        ("mine/other.py", "--config=mine/other.py: no such file"),
    ],
)
def test_other_configs_are_refused(value, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=words):
        shipped.locate(value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("--config.augment.device=split", True),
        ('Key "device" does not exist and cannot be added', True),
        ("--workdir=device", False),
        ("--config.augment.devices=split", False),
    ],
)
def test_old_keys_are_refused_with_the_new_one(text, named):
    expected = "config.augment.device is now called config.augment.placement"
    assert renamed.hint(text) == (expected if named else "")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # Of a copy: building leaves files in the source folder.
    source = folder / "source"
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    for name in files:
        if name.startswith("tests/golden") or not (ROOT / name).exists():
            continue
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            target.symlink_to((ROOT / name).readlink())
        else:
            target.write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", str(source)],
        cwd=folder,
        check=True,
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_a_wheel_works_beside_other_modules_of_the_same_names(wheel, tmp_path):
    names = zipfile.ZipFile(wheel).namelist()
    assert "simclr_jax/configs/base.py" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests", "configs", "launch")) for name in names)

    packages = tmp_path / "packages"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*install, "--target", packages, wheel], check=True)
    project = tmp_path / "project"
    for name in ("configs/__init__.py", "configs/base.py", "base.py", "config.py"):
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise ImportError('this is not the module you want')\n")
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        images = generator.integers(0, 256, (96, 8, 8, 3), np.uint8)
        np.savez(project / split, images=images, labels=np.arange(96) % 3)
    data = "--config.data.dataset=npz:{split}.npz"
    check = "import simclr_jax; assert simclr_jax.__file__.startswith('{}')"
    # Not in the checkout, and before the editable installation on the path.
    environment = {**os.environ, "PYTHONPATH": str(packages)}

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("-c", check.format(packages))
    command = "simclr_jax."
    run("-m", command + "pretrain", "--config=smoke", data, *TINY, "--workdir=a")
    protocols = "--protocol=knn,linear"
    run(
        "-m", command + "evaluate", "--workdir=a", protocols, "--set=evaluation.knn_k=5"
    )
    export = ("--workdir=a", "--format=torchvision", "--output=out")
    run("-m", command + "export", *export)
    run("-m", command + "convert", "--input=out", "--workdir=b")
    tuned = ("--config=finetune:smoke,1.0", data, *TINY, "--init_from=a", "--workdir=c")
    run("-m", command + "finetune", *tuned)
    synthetic = "--config.data.dataset=synthetic:8"
    run("-m", command + "pretrain", "--config=smoke", synthetic, *TINY, "--workdir=d")
    assert "--topology" in run("-m", command + "plan", "--help")
    assert "--input" in run("-m", command + "prepare", "--help")
