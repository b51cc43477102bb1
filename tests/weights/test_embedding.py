"""The command as a user runs it: real runs, kills, stores, several processes."""

import pathlib
import signal
import time

import commands
import export_runs
import jobs
import numpy as np
import pytest
from PIL import Image

import simclr_jax
from simclr_jax.embed import extraction, job
from simclr_jax.prepare import build
from simclr_jax.weights import export, torch_peers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return export_runs.write(tmp_path_factory.mktemp("runs") / "run", steps=(3, 7))


def photographs(folder: pathlib.Path, count: int) -> list[pathlib.Path]:
    generator = np.random.default_rng(0)
    for number in range(count):
        small = generator.integers(0, 256, (4, 5, 3), np.uint8)
        path = folder / "ab"[number % 2] / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = 50 + number % 7, 40
        Image.fromarray(small).resize(size).save(path, quality=95)
    return sorted(folder.rglob("*.jpg"))


def read(path):
    with np.load(path) as file:
        return dict(file)


def test_a_killed_command_goes_on_to_the_same_bytes(run, tmp_path):
    files = photographs(tmp_path / "images", 3 * extraction.PART_IMAGES // 2)
    files[5000].write_bytes(files[5000].read_bytes()[:300])
    arguments = (
        f"--workdir={run}",
        f"--dataset=folder:{tmp_path}/images",
        "--batch_size=64",
        "--neighbours=2",
        "--duplicates_above=1",
    )
    code, out, err = commands.run("embed", *arguments, f"--output={tmp_path}/w.npz")
    assert code == 0, err
    assert "1 broken images are left out" in out
    killed = tmp_path / "killed.npz"
    process = commands.start("embed", *arguments, f"--output={killed}")
    first = pathlib.Path(f"{killed}.parts/part-000000.npz")
    deadline = time.monotonic() + 300
    while not first.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not killed.exists()
    written = first.stat().st_mtime_ns
    assert written
    code, out, err = commands.run("embed", *arguments, f"--output={killed}")
    assert code == 0, err
    assert "Continuing: 1 of 2 parts" in err
    for name in ("npz", "broken.tsv", "neighbours.tsv", "duplicates.tsv"):
        whole = (tmp_path / f"w.{name}").read_bytes()
        assert (tmp_path / f"killed.{name}").read_bytes() == whole, name
    assert not first.parent.exists()
    code, out, err = commands.run("embed", *arguments, f"--output={killed}")
    assert code == 2
    assert "killed.npz exists; --overwrite replaces it" in err.splitlines()[-1]


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_features_are_those_of_encode(run, tmp_path, layer):
    files = photographs(tmp_path / "images", 30)
    for step in (3, None):
        job.embed(
            job.Options(
                workdir=run,
                dataset=f"folder:{tmp_path}/images",
                output=f"{tmp_path}/{step}.npz",
                step=step,
                layer=layer,
                batch_size=16,
            )
        )
        pretrained = simclr_jax.load(run, step=step)
        expected = pretrained.encode(files, layer=layer)
        found = read(tmp_path / f"{step}.npz")
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found["features"], expected, atol=1e-4 * scale)


def test_checkpoints_and_exports_are_taken_too(run, tmp_path, monkeypatch):
    monkeypatch.setattr(torch_peers, "missing", lambda library: library)
    photographs(tmp_path / "images", 20)
    opened = [f"{run}/checkpoints/7"]
    for name in ("safetensors", "stablehlo"):
        opened.append(str(tmp_path / name))
        export.export(run, name, opened[-1])
    found = []
    for number, path in enumerate([run, *opened]):
        output = tmp_path / f"{number}.npz"
        dataset = f"folder:{tmp_path}/images"
        job.embed(job.Options(path, dataset, str(output), batch_size=16))
        found.append(read(output)["features"])
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-4 * np.abs(found[0]).max())


def test_a_prepared_dataset_keeps_the_names_of_its_files(run, tmp_path):
    files = photographs(tmp_path / "images", 40)
    odd = files[3].with_name("tab\t\udcff.jpg")
    files[3].rename(odd)
    output = str(tmp_path / "dataset")
    build.prepare(build.Options(input=f"{tmp_path}/images"), output, num_workers=1)
    for name, dataset in (
        ("of", f"prepared:{output}"),
        ("in", f"folder:{odd.parents[1]}"),
    ):
        options = job.Options(run, dataset, f"{tmp_path}/{name}.npz", batch_size=16)
        job.embed(options)
    prepared, folder = (read(tmp_path / f"{name}.npz") for name in ("of", "in"))
    names = {f"{tmp_path}/images/{name}": n for n, name in enumerate(prepared["paths"])}
    assert str(odd) in names
    order = [names[name] for name in folder["paths"]]
    for key in ("features", "labels"):
        np.testing.assert_array_equal(prepared[key][order], folder[key])


@pytest.mark.parametrize("store", ["gcs", "s3"])
def test_outputs_on_stores(run, tmp_path, store, request):
    bucket = request.getfixturevalue(store)
    photographs(tmp_path / "images", 30)
    local, distant = tmp_path / "here.npz", f"{bucket}/sub/there.npz"
    for output in (str(local), distant):
        options = job.Options(run, f"folder:{tmp_path}/images", output, batch_size=16)
        job.embed(options)
    folder = simclr_jax.paths.as_path(f"{bucket}/sub")
    assert [path.name for path in folder.iterdir()] == ["there.npz"]
    assert (folder / "there.npz").read_bytes() == local.read_bytes()


def test_two_processes_write_what_one_writes(run, tmp_path):
    files = photographs(tmp_path / "images", 90)
    for number in (3, 50, 51, 88):
        files[number].write_bytes(files[number].read_bytes()[:-400])
    command = [
        *("-m", "simclr_jax.embed", f"--workdir={run}", "--batch_size=16"),
        *(f"--dataset=folder:{tmp_path}/images", "--compilation_cache="),
        "--neighbours=3",
    ]
    for count in (1, 2):
        output = tmp_path / f"{count}.npz"
        results = jobs.run(
            [*command, f"--output={output}"],
            num_processes=count,
            devices_each=2 // count,
        )
        for code, text in results:
            assert code == 0, text[-3000:]
    one, two = (read(tmp_path / f"{count}.npz") for count in (1, 2))
    assert len(one["index"]) == 86
    for name in ("index", "labels", "paths", "class_names"):
        np.testing.assert_array_equal(one[name], two[name])
    np.testing.assert_allclose(one["features"], two["features"], rtol=1e-3, atol=1e-5)
    broken = [(tmp_path / f"{count}.broken.tsv").read_text() for count in (1, 2)]
    assert broken[0] == broken[1]
    assert broken[0].count("\n") == 5


def test_a_folder_needs_no_tensorflow(run, tmp_path):
    photographs(tmp_path / "images", 20)
    program = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "from simclr_jax.data import optional\n"
        "installed = optional.is_installed\n"
        "optional.is_installed = lambda p: p != 'tensorflow' and installed(p)\n"
        "from simclr_jax.embed import job\n"
        f"print(job.embed(job.Options({run!r}, 'folder:{tmp_path}/images', "
        f"'{tmp_path}/out.npz', batch_size=8)))\n"
    )
    ((code, text),) = jobs.run(["-c", program], num_processes=1, devices_each=2)
    assert code == 0, text[-3000:]
    assert len(read(tmp_path / "out.npz")["index"]) == 20
