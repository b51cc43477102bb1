"""Figure, CSV and text of made-up results."""

import csv
import pathlib
import xml.etree.ElementTree
import zlib

import numpy as np
import pytest
from PIL import Image

from simclr_jax.errors import ConfigError
from simclr_jax.study import cells, command, figures, findings, tables
from simclr_jax.study.studies import STUDIES


def made_up(name, *, missing=()):
    """(study, results) with figures by the names of the cells."""
    study = cells.open_study(name, "minutes")
    results = []
    for number, cell in enumerate(cells.expand(study, 3)):
        noise = np.random.default_rng(zlib.crc32(cell.name.encode())).uniform(0, 0.1)
        metrics = {metric: 0.4 + noise for metric in study.metrics}
        found = {"metrics": metrics, "steps": 9, "secs": 2.5, "parameters": 1000}
        found |= {"diverged": None, "devices": "1 x cpu"}
        results.append((cell, None if number in missing else found))
    return study, results


def test_all_files_are_written(tmp_path):
    study, results = made_up("augmentation_pairs", missing=(4, 5))
    cell, _ = results[7]
    diverged = {"metrics": {}, "diverged": "loss is nan", "secs": 1.0, "steps": 3}
    results[7] = (cell, diverged | {"parameters": None, "devices": "1 x cpu"})
    verdicts = tables.write(study, results, str(tmp_path / "out"), "COMMAND")
    # Crop with cutout has seed 0 alone, crop with colour 0 and 2, and all others 3.
    assert [verdict.num_seeds for verdict in verdicts] == [1, 1, 2, 2]
    with Image.open(tmp_path / "out" / "figure.png") as picture:
        assert picture.size == (960, 630)
        assert picture.convert("RGB").getextrema() != ((255, 255),) * 3
    svg = xml.etree.ElementTree.parse(tmp_path / "out" / "figure.svg")
    assert svg.getroot().tag.endswith("svg")
    with open(tmp_path / "out" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(results) == 45
    assert [row["state"] for row in rows[4:8]] == [
        *("missing", "missing", "done", "diverged"),
    ]
    assert rows[4]["linear"] == rows[7]["linear"] == ""
    expected = results[0][1]["metrics"]["linear"]
    assert float(rows[0]["linear"]) == pytest.approx(expected, abs=1e-6)
    assert (rows[0]["first"], rows[0]["seed"], rows[0]["steps"]) == ("crop", "0", "9")
    text = (tmp_path / "out" / "findings.md").read_text()
    assert "```bash\nCOMMAND\n```" in text
    assert "43 of 45 trainings are complete, 1 of them diverged" in text
    for verdict in verdicts:
        assert verdict.finding.text in text
        assert f"**{verdict.word}**" in text
    assert all(sentence in text for sentence in study.cut)
    widths = {
        tuple(line.count("|") for line in block.splitlines())
        for block in text.split("\n\n")
        if block.startswith("|")
    }
    assert all(len(set(width)) == 1 for width in widths)


def test_summaries_have_means_and_halves_of_intervals():
    _, results = made_up("temperature")
    found = figures.summary(results, "knn", ["similarity"])
    values = [
        r["metrics"]["knn"] for c, r in results if c.point["similarity"] == "l2_1"
    ]
    mean, low, high = findings.interval([100 * value for value in values])
    assert found["l2_1",] == (mean, pytest.approx((high - low) / 2), 3)
    one = figures.summary(results[:1], "knn", ["similarity"])
    assert one["l2_0.05",][1:] == (0.0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("missing", [(), range(0, 200, 2), range(200)])
@pytest.mark.parametrize("name", STUDIES)
def test_every_figure_can_be_drawn(name, missing, tmp_path):
    study, results = made_up(name, missing=missing)
    verdicts = tables.write(study, results, str(tmp_path), "COMMAND")
    assert len(verdicts) == len(study.findings)


def requested(tmp_path, **fields):
    request = command.Request("temperature", "minutes", str(tmp_path / "s"), **fields)
    return list(command.run(request, start=lambda: pytest.fail("starts no process")))


def test_list_writes_nothing(tmp_path):
    lines = requested(tmp_path, only_list=True, num_seeds=2)
    assert len(lines) == 12
    assert lines[0].split() == ["l2_0.05-seed0", "missing"]
    assert not (tmp_path / "s").exists()


def test_only_figures_trains_nothing(tmp_path, monkeypatch):
    def draw(study, results, paths):
        for path in paths:
            pathlib.Path(path).write_text("picture")

    monkeypatch.setattr(figures, "draw", draw)
    folder = cells.Folder(str(tmp_path / "s"))
    folder.claim("temperature", "minutes")
    (cell, *_) = cells.expand(cells.open_study("temperature", "minutes"), 1)
    result = {"config_hash": cell.config_hash, "metrics": {}, "diverged": "loss is nan"}
    result |= {"secs": 1.0, "steps": 3, "parameters": None, "devices": "1 x cpu"}
    folder.write_result(cell, result)
    *_, last = requested(tmp_path, only_figures=True, num_seeds=1)
    assert last.endswith(f"figure.svg in {tmp_path / 's'}")
    text = (tmp_path / "s" / "findings.md").read_text()
    assert "1 of 6 trainings are complete" in text
    assert not (tmp_path / "s" / "locks").exists()


@pytest.mark.parametrize("made", ["nothing", "folder", "run"])
def test_only_figures_needs_a_study(made, tmp_path):
    if made != "nothing":
        (tmp_path / "s").mkdir()
    if made == "run":
        (tmp_path / "s" / "config.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="--only_figures: there is no study in --wor"):
        requested(tmp_path, only_figures=True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("file", "must be a folder, and is a file"),
        ("file/below", "cannot be created"),
        ("folder", "must be a file, and is a folder"),
    ],
)
def test_the_output_is_checked_before_the_cells_run(
    output, words, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / tables.CSV).mkdir(parents=True)
    monkeypatch.setattr(command.runner, "run", lambda *_: pytest.fail("runs cells"))
    output = str(tmp_path / output)
    workdir = str(tmp_path / "s")
    request = command.Request("temperature", "minutes", workdir, output=output)
    with pytest.raises(ConfigError, match=f"--output={output}.*: {words}"):
        list(command.run(request, start=lambda: None))
    assert not (tmp_path / "s").exists()


def test_unknown_cells_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"--cell=l2_0\.05: must be one of the 30"):
        requested(tmp_path, chosen=["l2_0.05"])


def test_matplotlib_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(figures.optional, "is_installed", lambda package: False)
    with pytest.raises(ConfigError, match=r"needs matplotlib.*simclr_jax\[report\]"):
        requested(tmp_path, only_figures=True)


def test_the_command_is_without_paths():
    request = command.Request("objectives", "gpu", "/a", ["data.data_dir=/b", "x=1"], 4)
    assert request.command() == (
        "python -m simclr_jax.study --study=objectives --scale=gpu --workdir=DIR "
        "--seeds=4 --set=data.data_dir=TFDS_DIR --set=x=1"
    )
