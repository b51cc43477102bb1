"""`prepare` by Apache Beam: the dataset of one machine, byte for byte."""

import os
import pathlib
import subprocess

import environments
import numpy as np
import pytest
from PIL import Image

import simclr_jax
from simclr_jax import paths
from simclr_jax.data import optional
from simclr_jax.data.sources import storage
from simclr_jax.errors import ConfigError
from simclr_jax.prepare import build, on_beam, parts, workers

ROOT = pathlib.Path(simclr_jax.__file__).parents[1]
_PARTS_OF_FIVE = (
    "import sys; from simclr_jax.prepare import parts, __main__ as command; "
    "from simclr_jax import cli; parts._PART_IMAGES = 5; "
    "cli.run(command.main, required=('input', 'output'))"
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree") / "images"
    for i in range(23):
        path = root / f"class{i % 3}" / f"{i:02}.{('png', 'jpg')[i % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (9 + i, 12, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    (root / "class0" / "broken.jpg").write_bytes(b"text")
    return root


def _files(folder):
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}


OPTIONS = {"shard_size_mb": 0.005, "resize_short_side": 11, "val_fraction": 0.2}


@pytest.fixture
def expected(tree, tmp_path):
    options = build.Options(input=str(tree), **OPTIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "_PART_IMAGES", 5)
        build.prepare(options, str(tmp_path / "expected"), num_workers=1)
    return _files(tmp_path / "expected")


# Without Beam: a loop calls what its workers would. -----------------------------------


class _Loop(on_beam.Beam):
    def _run(self, places, job):
        for place in reversed(places):
            on_beam._work(place, job=job)


@pytest.fixture
def loop(monkeypatch):
    monkeypatch.setattr(on_beam, "check", lambda flags: None)
    monkeypatch.setattr(on_beam, "Beam", _Loop)
    monkeypatch.setattr(parts, "_PART_IMAGES", 5)

    def refuse(*args, **kwargs):
        raise AssertionError("this machine must not do it")

    monkeypatch.setattr(workers, "run_all", refuse)


def _on_loop(given, output, **more):
    options = build.Options(input=str(given), **OPTIONS)
    return build.prepare(options, str(output), num_workers=1, beam=["x"], **more)


def test_a_local_output_is_that_of_one_machine(tree, expected, loop, tmp_path):
    _on_loop(tree, tmp_path / "out")
    assert len([name for name in expected if "tfrecord" in name]) > 4
    assert _files(tmp_path / "out") == expected


def test_from_a_store_to_a_store(tree, expected, loop, gcs, tmp_path, monkeypatch):
    paths.upload(tree, paths.as_path(f"{gcs}/images"))
    output, scratch = f"{gcs}/out", str(tmp_path / "scratch")
    work, done = on_beam._work, []

    def fail(place, *, job):
        if len(done) == 3:
            raise OSError("a worker is gone")
        done.append(place)
        work(place, job=job)

    with monkeypatch.context() as patch:
        patch.setattr(on_beam, "_work", fail)
        with pytest.raises(Exception, match="a worker is gone"):
            _on_loop(f"{gcs}/images", output, scratch=scratch)
    written = []
    write_part = on_beam.write_part
    monkeypatch.setattr(
        on_beam, "write_part", lambda part: written.append(part) or write_part(part)
    )
    # What was finished on other machines is taken over.
    (folder,) = (tmp_path / "scratch" / "prepare").iterdir()
    for path in (folder / "parts").iterdir():
        path.unlink()
    _on_loop(f"{gcs}/images", output, scratch=scratch)
    assert len(written) == 5 - 3
    names = set(storage.files_in(output))
    assert names == set(expected), "nothing of the work is left"
    for name in names - {"manifest.json"}:
        assert storage.read_file(f"{output}/{name}") == expected[name], name
    assert not storage.is_folder(f"{output}/.prepare-shared")
    assert not list((tmp_path / "scratch" / "prepare").iterdir())


def test_a_disk_that_workers_do_not_share_is_said(tree, loop, tmp_path, monkeypatch):
    monkeypatch.setattr(on_beam, "_work", lambda place, *, job: None)
    with pytest.raises(Exception, match="a disk that all workers share"):
        _on_loop(tree, tmp_path / "out")


@pytest.mark.skipif(optional.is_installed("apache_beam"), reason="it is installed")
def test_beam_that_is_not_installed(tree, tmp_path):
    options = build.Options(input=str(tree))
    with pytest.raises(ConfigError, match=r"--beam needs apache_beam.*\[beam\]"):
        build.prepare(options, str(tmp_path / "a"), num_workers=1, beam=["--x"])
    assert not (tmp_path / "a").exists()


# With it ------------------------------------------------------------------------------


def _install(install):
    subprocess.run([*install, "apache-beam>=2.77,<3"], check=True)
    environments.load(install[0], "apache_beam")


def _run(*arguments):
    python = environments.make("beam", _install)
    flags = [f"--{name}={value}" for name, value in OPTIONS.items()]
    return subprocess.run(
        [str(python), "-c", _PARTS_OF_FIVE, *flags, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
    )


@pytest.fixture(scope="module")
def expected_there(tree, tmp_path_factory):
    """As `expected`, with the Pillow of Beam's environment, which shrinks images."""
    output = tmp_path_factory.mktemp("expected") / "dataset"
    done = _run(f"--input={tree}", f"--output={output}", "--num_workers=1")
    assert done.returncode == 0, done.stderr
    return _files(output)


RUNNERS = {
    "here": ["--runner=DirectRunner"],
    "in processes": [
        "--runner=DirectRunner",
        "--direct_num_workers=2",
        "--direct_running_mode=multi_processing",
    ],
    "in threads": [
        "--runner=DirectRunner",
        "--direct_num_workers=2",
        "--direct_running_mode=multi_threading",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("runner", RUNNERS)
def test_runners_of_one_machine(runner, tree, expected_there, tmp_path):
    beam = [f"--beam={flag}" for flag in RUNNERS[runner]]
    done = _run(f"--input={tree}", f"--output={tmp_path}/out", *beam)
    assert done.returncode == 0, done.stderr
    assert "--runner=DirectRunner" in done.stderr
    assert _files(tmp_path / "out") == expected_there


@pytest.mark.slow
def test_beam_from_a_store_to_a_store(tree, expected_there, gcs, tmp_path):
    paths.upload(tree, paths.as_path(f"{gcs}/images"))
    done = _run(
        f"--input={gcs}/images",
        f"--output={gcs}/out",
        f"--scratch={tmp_path}/scratch",
        "--beam=--runner=DirectRunner",
    )
    assert done.returncode == 0, done.stderr
    names = set(storage.files_in(f"{gcs}/out"))
    assert names == set(expected_there)
    for name in names - {"manifest.json"}:
        assert storage.read_file(f"{gcs}/out/{name}") == expected_there[name], name


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [["--runner=NoSuchRunner"], ["--runner=no.such.Runner"]]
)
def test_a_runner_that_is_not_there_ends_with_two(flags, tree, tmp_path):
    beam = [f"--beam={flag}" for flag in flags]
    done = _run(f"--input={tree}", f"--output={tmp_path}/out", *beam)
    assert done.returncode == 2, done.stderr
    # Beam's own warnings come before.
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"error: --beam={flags[0]}: must be flags of an Apache Beam")
    assert not (tmp_path / "out").exists()
