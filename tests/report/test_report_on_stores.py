"""Runs on stores."""

import pathlib

import pytest
import report_runs

from simclr_jax import paths
from simclr_jax.errors import ConfigError
from simclr_jax.report import job


@pytest.mark.slow
# Of aiohttp, for objects of more than 1 MB.
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_a_run_on_a_store(gcs, tmp_path):
    run = report_runs.write(tmp_path / "run", steps=30, total=30)
    (run / "checkpoints" / "30").mkdir(parents=True)
    (run / "checkpoints" / "30" / "description").write_text("{}")
    (run / "checkpoints" / "30" / "commit_success.txt").write_text("")
    (run / "checkpoints" / ".commit_by_file").write_text("")
    (run / "eval").mkdir()
    (run / "eval" / "knn.json").write_text('{"value": 0.125}')
    workdir = f"{gcs}/runs/<b>one"
    paths.upload(pathlib.Path(run), paths.as_path(workdir))
    assert job.write([workdir], None, images=False) == f"{workdir}/report.html"
    text = paths.as_path(f"{workdir}/report.html").read_text()
    assert "Finished: 30 of 30 steps" in text
    assert "1 checkpoint in" in text
    assert "12.50 %" in text
    with pytest.raises(ConfigError, match="is no run directory"):
        job.write([f"{gcs}/runs/none"], None)
    with pytest.raises(ConfigError, match="no such bucket"):
        job.write([workdir], "gs://no-such-bucket-here/page.html")
