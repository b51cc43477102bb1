"""Which checkpoints are complete, on each kind of path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import first

from simclr_jax import parallel, paths
from simclr_jax.errors import CheckpointNotFound
from simclr_jax.runs import checkpoints, orbax_paths
from simclr_jax.runs.checkpoints import Checkpoints

COMMITTED = "commit_success.txt"


def save(workdir, *steps):
    saved = Checkpoints(workdir, keep_last=9, keep_every_steps=None)
    for step in steps:
        weights = {"encoder": {"w": jnp.full(5, float(step))}}
        saved.save_weights(step, weights, {"encoder": {}}, {"name": "test"})
    saved.close()


def newest(workdir):
    """(step of the newest checkpoint, its weights)."""
    folder, step = checkpoints.open_for_reading(workdir, None)
    description = checkpoints.read_description(folder)
    assert description["step"] == step
    like = {"params": {"w": jnp.zeros(5)}, "batch_stats": {}}
    read = checkpoints.read_variables(
        folder, "encoder", like, jnp.zeros(1).sharding, description["checksums"]
    )
    return step, read["params"]["w"]


def resumes_at(workdir):
    opened = Checkpoints(workdir, keep_last=9, keep_every_steps=None)
    step = opened.latest_step()
    opened.close()
    return step


@pytest.fixture(params=first(2, ["disk", "gcs", "mount", "s3"]))
def workdir(request, tmp_path, monkeypatch):
    if request.param in ("gcs", "s3"):
        return f"{request.getfixturevalue(request.param)}/run"
    on_mount = request.param == "mount"
    monkeypatch.setattr(paths, "is_mounted_bucket", lambda path: on_mount)
    return str(tmp_path / "run")


def test_the_newest_complete_checkpoint_is_read(workdir):
    save(workdir, 1, 2)
    step, weights = newest(workdir)
    assert step == 2
    np.testing.assert_array_equal(weights, np.full(5, 2.0))
    assert resumes_at(workdir) == 2


def test_a_mount_gets_no_folder_under_another_name(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "is_mounted_bucket", lambda path: True)
    monkeypatch.setattr(
        "os.rename", lambda *args: pytest.fail("renames a folder of a bucket")
    )
    save(str(tmp_path), 1)
    assert newest(str(tmp_path))[0] == 1


@pytest.mark.parametrize("workdir", first(2, ["mount", "gcs", "s3"]), indirect=True)
def test_a_checkpoint_without_its_last_file_is_unfinished(workdir):
    save(workdir, 1, 2)
    (paths.as_path(workdir) / checkpoints.FOLDER / "2" / COMMITTED).unlink()
    assert newest(workdir)[0] == 1
    assert resumes_at(workdir) == 1


def test_an_unfinished_checkpoint_stays_so_when_it_is_copied(gcs, tmp_path):
    save(f"{gcs}/run", 1, 2)
    folder = paths.as_path(gcs) / "run"
    (folder / checkpoints.FOLDER / "2" / COMMITTED).unlink()
    paths.download(folder, tmp_path / "copy")
    assert newest(str(tmp_path / "copy"))[0] == 1
    assert resumes_at(str(tmp_path / "copy")) == 1


def test_a_run_copied_from_a_disk_to_a_store_resumes(gcs, tmp_path):
    save(str(tmp_path / "run"), 1, 2)
    paths.upload(tmp_path / "run", paths.as_path(gcs) / "run")
    assert newest(f"{gcs}/run")[0] == 2
    assert resumes_at(f"{gcs}/run") == 2
    assert newest(f"{gcs}/run")[0] == 2


def test_an_older_run_on_a_mount_keeps_its_form(tmp_path, monkeypatch):
    save(str(tmp_path), 1)
    monkeypatch.setattr(paths, "is_mounted_bucket", lambda path: True)
    save(str(tmp_path), 2)
    assert newest(str(tmp_path))[0] == 2
    assert resumes_at(str(tmp_path)) == 2


def test_no_checkpoint(workdir):
    with pytest.raises(CheckpointNotFound, match=f"^{workdir}: holds no checkpoint"):
        checkpoints.open_for_reading(workdir, None)
    folder = paths.absolute(workdir) / checkpoints.FOLDER
    assert orbax_paths.complete_steps(folder) == []


@pytest.mark.parametrize(("size", "programs"), [(1 << 10, 0), (1 << 22, 8)])
def test_small_arrays_are_saved_without_compiling_anything(tmp_path, size, programs):
    """Large ones are divided among the devices, each of which cuts its part out."""
    mesh = parallel.create_mesh()
    weights = parallel.put(parallel.replicated(mesh), {"w": np.arange(size * 1.0)})
    compiled = []

    def count(event, _secs, **_):
        compiled.extend([event] if event.endswith("backend_compile_duration") else [])

    jax.monitoring.register_event_duration_secs_listener(count)
    saved = Checkpoints(str(tmp_path), keep_last=1, keep_every_steps=None)
    saved.save_weights(1, {"encoder": weights}, {"encoder": {}}, {})
    saved.close()
    assert len(compiled) == programs
