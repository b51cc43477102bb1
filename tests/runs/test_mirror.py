"""Growing files reach stores and mounted buckets before a run ends."""

import json
import time

import pytest
from etils import epath

from simclr_jax import paths
from simclr_jax.errors import RunFailed
from simclr_jax.runs.metrics_writer import FILE_NAME, MetricsWriter, read_metrics
from simclr_jax.runs.mirror import Mirror


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def test_files_are_copied_every_so_often(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    mirror = Mirror(source, epath.Path(target), every_secs=0.05)
    (source / "a").write_text("1")
    wait_for(lambda: (target / "a").exists() and (target / "a").read_text() == "1")
    with (source / "a").open("a") as file:
        file.write("2")
    wait_for(lambda: (target / "a").read_text() == "12")
    mirror.close()


def test_a_copy_that_fails_is_tried_again(tmp_path, caplog):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "a").write_text("1")
    mirror = Mirror(source, epath.Path(target), every_secs=0.05)
    wait_for(lambda: "cannot be written" in caplog.text)
    target.mkdir()
    wait_for(lambda: (target / "a").exists() and (target / "a").read_text() == "1")
    mirror.close()


def test_the_last_copy_must_succeed(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_text("1")
    mirror = Mirror(source, epath.Path(tmp_path / "not there"), every_secs=1000)
    with pytest.raises(
        RunFailed, match=f"cannot be written .*the local copy is in {source}"
    ):
        mirror.close()


def test_metrics_on_a_store_grow_and_resume(gcs):
    run = f"{gcs}/run"
    folder = paths.as_path(run)
    writer = MetricsWriter(run, resume_step=0, writers=("tensorboard",))
    writer.write(1, {"loss": 1.0})
    writer.write(2, {"loss": 2.0})
    writer.copy_soon()
    path = folder / FILE_NAME
    wait_for(lambda: path.exists() and len(read_metrics(path)) == 2)
    writer.close()
    writer = MetricsWriter(run, resume_step=1)
    writer.write(2, {"loss": 3.0})
    writer.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 3.0},
    ]
    assert any("tfevents" in path.name for path in folder.iterdir())


def test_metrics_on_a_mounted_bucket_are_closed_files(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "is_mounted_bucket", lambda path: True)
    writer = MetricsWriter(str(tmp_path), resume_step=0, writers=("tensorboard",))
    writer.write(1, {"loss": 1.0})
    assert not list(tmp_path.iterdir())
    writer.close()
    assert len(read_metrics(tmp_path / FILE_NAME)) == 1
