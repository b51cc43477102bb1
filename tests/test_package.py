"""The package as it is installed, and configs found from any folder."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
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
WIDE = "--config.encoder.width=1.0"
USERS_MODULES = ("base", "cli", "config", "jobs", "runs", "smoke")
USERS_CONFIG = """
from simclr_jax.configs import smoke

def get_config():
    config = smoke.get_config()
    config.data.dataset = "npz:{split}.npz"
    return config
"""


def pip(*arguments):
    subprocess.run([sys.executable, "-m", "pip", *arguments], check=True)


def run_command(folder, module, *arguments, path=ROOT):
    """Runs `python -m simclr_jax.MODULE` in a folder, with the package in `path`."""
    return subprocess.run(
        [sys.executable, "-m", f"simclr_jax.{module}", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
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
    text = text.replace("augment.device", "log.tensorboard").replace(
        '"device"', '"tensorboard"'
    )
    expected = "config.log.tensorboard is now called config.log.writers"
    assert renamed.hint(text) == (expected if named else "")


def test_an_unknown_name_is_refused_in_one_line(tmp_path):
    done = run_command(tmp_path, "pretrain", "--config=cifar", "--workdir=run")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --config=cifar: must be ")
    assert ", ".join(shipped.names()) in done.stderr
    assert done.stderr.count("\n") == 1


def test_nothing_imports_a_top_level_module_configs():
    importing = re.compile(
        r"from configs\b.* import |^\s*import configs\b|[\"']configs\.(?!py)"
    )
    package = ROOT / "simclr_jax"
    for path in (*package.rglob("*.py"), *shipped.FOLDER.glob("*.py")):
        lines = path.read_text().splitlines()
        assert not [line for line in lines if importing.search(line)], path


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the checkout's files: building leaves files in the source folder."""
    folder = tmp_path_factory.mktemp("source")
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", ":!tests"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    for name in files:
        if not (ROOT / name).exists():
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target, follow_symlinks=False)
    (folder / "tests").mkdir()
    (folder / "tests/test_nothing.py").touch()
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    pip(*build, folder, source)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_and_source_archive_have_the_configs_and_no_tests(
    source, wheel, tmp_path
):
    package = source / "simclr_jax"
    modules = {
        f"simclr_jax/{path.relative_to(package)}"
        for path in (
            *package.rglob("*.py"),
            *package.glob("configs/*.py"),
            *package.glob("report/templates/*"),
        )
    }
    assert {
        "simclr_jax/configs/base.py",
        "simclr_jax/pretrain.py",
        "simclr_jax/report/templates/page.html",
    } < modules
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = {name for name in names if ".dist-info/" in name}
    assert names - metadata == modules
    assert any(name.endswith("licenses/LICENSE") for name in metadata)

    build = "from setuptools import build_meta; import sys; "
    build += "build_meta.build_sdist(sys.argv[1])"
    command = [sys.executable, "-c", build, tmp_path]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (archive,) = tmp_path.iterdir()
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
        assert not file.getmember(f"{archive.name[:-7]}/simclr_jax/configs").issym()
    assert modules | {"LICENSE", "CHANGELOG.md", "pyproject.toml"} < names
    assert not any(name.startswith(("tests", "launch")) for name in names)


@pytest.mark.slow
def test_a_wheel_works_next_to_other_modules_of_the_same_names(wheel, tmp_path):
    packages = tmp_path / "packages"
    pip("install", "--quiet", "--no-deps", "--target", packages, wheel)
    project = tmp_path / "project"
    for name in ("configs/__init__", "configs/base", "configs/cifar10", *USERS_MODULES):
        path = project / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise ImportError('this is a module of the user')\n")
    (project / "mine.py").write_text(USERS_CONFIG)
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        images = generator.integers(0, 256, (96, 8, 8, 3), np.uint8)
        np.savez(project / split, images=images, labels=np.arange(96) % 3)

    def run(module, *arguments):
        done = run_command(project, module, *arguments, path=packages)
        assert done.returncode == 0, done.stderr
        return done.stdout

    code = f"import simclr_jax; assert simclr_jax.__file__.startswith('{packages}')"
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=environment, check=True
    )
    # Of full width, as torchvision's.
    run("pretrain", "--config=mine.py", *TINY, WIDE, "--workdir=a")
    run("evaluate", "--workdir=a", "--protocol=knn", "--set=evaluation.knn_k=5")
    run("export", "--workdir=a", "--format=torchvision", "--output=out")
    run("convert", "--input=out", "--workdir=b")
    (weights,) = (project / "out").glob("*.safetensors")
    shutil.copy(weights, project / "weights.safetensors")
    # Without a config, convert takes a shipped one.
    convert = ("--input=weights.safetensors", "--normalization=imagenet")
    run("convert", *convert, "--workdir=c")
    data = "--config.data.dataset=npz:{split}.npz"
    tuned = ("--config=finetune:smoke,1.0", data, *TINY, WIDE)
    run("finetune", *tuned, "--init_from=a", "--workdir=d")
    for module, flag in (("plan", "--topology"), ("prepare", "--input")):
        assert flag in run_command(project, module, "--help", path=packages).stdout
