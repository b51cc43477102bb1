"""What the page shows of a run, and that names from data are text."""

import errno
import html
import json
import os
import pathlib
import re
import tempfile

import numpy as np
import pytest
import report_runs

from simclr_jax.errors import ConfigError
from simclr_jax.report import comparison, job, names, page, run_files, status
from simclr_jax.report.sections import Section
from simclr_jax.runs import ownership, quarantine


@pytest.fixture(autouse=True)
def _without_plotly(request, monkeypatch):
    """Its script is 5 MB, which takes a while to write."""
    if "long_run" not in request.node.name and "million" not in request.node.name:
        monkeypatch.setattr(page, "_plotly_js", lambda: "")


def body(run) -> str:
    """The page of a run without its scripts."""
    text = page.render(job.context([run_files.read(str(run))], [[]]))
    return re.sub(r"<script>.*?</script>", "", text, flags=re.S)


def plots(text: str) -> dict:
    found = re.search(
        r'<script type="application/json" id="plots">(.*?)</script>', text
    )
    return json.loads(found[1])


def test_a_finished_run_is_said_to_be(tmp_path):
    run = report_runs.write(tmp_path / "run", steps=100, total=100)
    (run / "checkpoints" / "100").mkdir(parents=True)
    text = body(run)
    assert "Finished: 100 of 100 steps" in text
    assert "Health: healthy" in text
    assert "91% of chance 5.50" in text
    assert "30.0 %" in text
    ids = {chart["id"] for chart in plots(text)["charts"]}
    wanted = "loss accuracy similarity rank learning-rate gradient-norm throughput"
    wanted += " input-wait held-out probe"
    assert {f"chart-{name}" for name in wanted.split()} <= ids
    # What was not logged has no chart, and every chart has a place.
    assert "chart-entropy" not in ids
    assert ids == {*re.findall(r'class="chart" id="([\w-]+)"', text)}


def test_a_run_without_labels_has_no_charts_of_labels(tmp_path):
    run = report_runs.write(tmp_path / "run", steps=60, total=100, labels=False)
    text = body(run)
    assert "Stopped: 60 of 100 steps" in text
    assert "resumes" in text
    ids = {chart["id"] for chart in plots(text)["charts"]}
    assert "chart-loss" in ids
    assert not ids & {"chart-held-out", "chart-probe"}
    assert "probe" not in text.partition('id="config"')[0].lower()


@pytest.mark.parametrize("metrics", [("accuracy",), ("accuracy", "teacher_agreement")])
def test_a_classifier_has_words_of_its_own(metrics, tmp_path):
    # What fine-tuning and distillation log.
    run = report_runs.write(tmp_path / "run", steps=1, total=9)
    lines = [{"step": step, "loss": 2 / step} for step in (1, 2)]
    lines = [line | dict.fromkeys(metrics, 0.5) for line in lines]
    report_runs.log(run).write_text("".join(f"{json.dumps(x)}\n" for x in lines))
    text = body(run)
    assert re.findall("<h3>(.*?)</h3>", text) == [
        *("Loss", "Classifier on training images"),
    ]
    assert "chance" not in text.partition('id="config"')[0].lower()
    assert "Contrastive" not in text.partition('id="config"')[0]
    charts = {chart["id"]: chart["series"] for chart in plots(text)["charts"]}
    names_of = [one["name"] for one in charts["chart-classifier"]]
    assert names_of == ["accuracy", "as the teacher"][: len(metrics)]


def test_a_run_of_three_steps_has_points(tmp_path):
    run = report_runs.write(tmp_path / "run", steps=3, total=3)
    loss = plots(body(run))["charts"][0]
    assert loss["series"][0]["x"] == [1, 2, 3]


def test_a_run_that_goes_on_and_one_that_crashed_differ(tmp_path):
    run = report_runs.write(tmp_path / "run", steps=7, total=100)
    owner = ownership.Ownership(str(run))
    owner.acquire()
    try:
        with report_runs.log(run).open("a") as log:
            log.write('{"step": 8, "lo')  # under way
        text = body(run)
        assert "Running: 7 of 100 steps" in text
        assert f"process {os.getpid()} on " in text
        assert "damaged" not in text
        lease = (run / ownership.FILE_NAME).read_text()
    finally:
        owner.release()
    gone = json.loads(lease) | {"started": "another one of that number"}
    (run / ownership.FILE_NAME).write_text(json.dumps(gone))
    assert "Ended without a word: 7 of 100 steps" in body(run)
    # On another machine only the file's age tells.
    (run / ownership.FILE_NAME).write_text(json.dumps(gone | {"machine": "other"}))
    assert "Running: 7" in body(run)
    os.utime(run / ownership.FILE_NAME, (0, 0))
    assert "Ended without a word: 7" in body(run)


def status_of(run, *, health="healthy", saved=(), **owner):
    """(kind, headline) of a run of 4 steps that has logged them all."""
    last = report_runs.line(4, health=health)
    log = report_runs.log(run)
    log.write_text("\n".join([*log.read_text().splitlines()[:3], json.dumps(last)]))
    for step in saved:
        (run / "checkpoints" / f"{step}").mkdir(parents=True, exist_ok=True)
    if owner:
        lease = {**ownership._me(), "token": "theirs", "renewals": 0, **owner}
        (run / ownership.FILE_NAME).write_text(json.dumps(lease))
    found = status.of_run(run_files.read(str(run)))
    return found.kind, found.headline


def test_a_run_is_finished_once_its_last_step_is_saved(tmp_path):
    run = report_runs.write(tmp_path / "run", steps=4, total=4)
    missing = ("warning", "No checkpoint of the last step: 4 of 4 steps")
    assert status_of(run) == missing  # deleted, or never saved
    assert status_of(run, saved=[2]) == missing
    text = body(run)
    assert "Unless it was deleted since, it was not saved." in text
    assert "The same command resumes" in text
    running = ("running", "Running: 4 of 4 steps")
    assert status_of(run, renewals=1) == running  # of this process
    ended = ("bad", "Ended without a word: 4 of 4 steps")
    assert status_of(run, started="another one") == ended
    finished = ("good", "Finished: 4 of 4 steps")
    assert status_of(run, saved=[4]) == finished


@pytest.mark.parametrize(
    ("health", "kinds"),
    [
        ("too early to tell", ("bad", "good")),
        ("collapsed since step 3: all", ("bad", "warning")),
        ("at chance since step 1: the views", ("bad", "warning")),
        ("flat since step 2: the loss", ("bad", "warning")),
    ],
)
def test_only_problems_make_a_good_run_worse(health, kinds, tmp_path):
    run = report_runs.write(tmp_path / "run", steps=4, total=4)
    crashed, _ = status_of(run, health=health, started="another one")
    finished, _ = status_of(run, health=health, saved=[4])
    assert (crashed, finished) == kinds


def test_imported_weights_have_no_log(tmp_path):
    run = report_runs.write(tmp_path / "run", steps=0, total=100)
    report_runs.log(run).unlink()
    text = body(run)
    assert "No step was logged" in text
    assert plots(text)["charts"] == []


def test_values_that_are_not_finite_are_gaps_and_are_said(tmp_path):
    run = report_runs.write(tmp_path / "run", steps=5, total=100)
    lines = [
        report_runs.line(6, loss=float("nan"), gradient_norm=float("inf")),
        report_runs.line(7, health="collapsed since step 3: all <images> are one"),
    ]
    with report_runs.log(run).open("a") as log:
        log.writelines(f"{json.dumps(line)}\n" for line in lines)
    text = body(run)
    assert plots(text)["charts"][0]["series"][0]["y"][5] is None
    assert "loss is not finite, first at step 6." in text
    assert "collapsed since step 3: all &lt;images&gt; are one" in text
    assert status.of_run(run_files.read(str(run))).kind == "warning"


def test_checkpoints_and_restarts_are_marked(tmp_path):
    run = report_runs.write(tmp_path / "run", steps=20, total=100)
    with report_runs.log(run).open("a") as log:
        log.write(json.dumps(report_runs.line(21, first=True)) + "\n")
    for name in ("10", "20", "15.damaged", "30.orbax-checkpoint-tmp"):
        (run / "checkpoints" / name).mkdir(parents=True)
    text = body(run)
    (marks,) = plots(text)["runs"]
    assert marks["checkpoints"] == [10, 20]
    assert marks["restarts"] == [20]
    script = (page._FOLDER / "report.js").read_text()
    assert all(f"run.{key}" in script for key in marks)  # nothing is sent unread
    assert "2 checkpoints in" in text
    assert "Resumed after step 20." in text
    assert "15.damaged" in text
    (run / "checkpoints_2" / "4").mkdir(parents=True)
    assert "plan_1/" in body(run)


@pytest.mark.parametrize("number", range(len(report_runs.HOSTILE)))
def test_hostile_names_are_text(number, tmp_path):
    name = report_runs.HOSTILE[number]
    run = report_runs.write(
        tmp_path / "run", steps=3, total=3, evaluation__test_split=name
    )
    record = {"fingerprint": "", "num_examples": 9, "num_classes": 2, "unit": "file"}
    record |= {"class_names": [name, "b"], "entries": {}}
    (run / "dataset.json").write_text(json.dumps(record))
    (run / quarantine.FILE_NAME).write_text(
        "record\treason\tstep\tindex\n"
        f"{quarantine.escaped(name)}\t{quarantine.escaped(name)}\t1\t2\nshort\n"
    )
    (run / "eval" / "other").mkdir(parents=True)
    receipt = {"value": 0.25, "protocol": name, "dataset": name, "baselines": {name: 1}}
    (run / "eval" / "other" / "knn.json").write_text(json.dumps(receipt))
    with report_runs.log(run).open("a") as log:
        log.write(json.dumps({"step": 4, name: 1.5, "health": name}) + "\n")
    text = body(run)
    text.encode()
    for tag in re.findall(r"<(?:script|img|svg|b|a|i)\b[^>]*>", text):
        assert tag.startswith(('<script type="application/json"', '<a href="#'))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "49" not in re.findall(r"<bdi>(.*?)</bdi>", text)
    # It is there, as text.
    shown = html.escape(page._shown(name)).replace("&#x27;", "&#39;")
    assert shown.replace("&quot;", "&#34;") in text
    labels = [s["name"] for c in plots(text)["charts"] for s in c["series"]]
    assert names.plot_label(name) in labels
    assert not any("<" in label or len(label) > 500 for label in labels)


def test_json_for_a_script_cannot_end_it():
    value = {"</script>": ["<!--", "a & b", "\u2028", float("nan"), 1.5], "n": None}
    text = str(page.script_json(value))
    assert not set("<>&\u2028") & {*text}
    assert json.loads(text) == {
        "</script>": ["<!--", "a & b", "\u2028", None, 1.5],
        "n": None,
    }


def test_receipts_are_listed_and_damaged_files_are_said(tmp_path):
    run = report_runs.write(tmp_path / "run", steps=3, total=3)
    (run / "eval").mkdir()
    good = {"value": 0.5, "protocol": "knn", "interval": [0.4, 0.6], "num_test": 100}
    good |= {"encoder_checksum_before": "a", "encoder_checksum_after": "b"}
    files = {"knn": json.dumps(good), "bad": "{", "odd": "[1]", "no": '{"value": "x"}'}
    for name, content in files.items():
        (run / "eval" / f"{name}.json").write_text(content)
    (run / "dataset.json").write_text("{}")
    text = body(run)
    assert "50.00 %" in text
    assert "40.0 to 60.0 %" in text
    assert "checksum changed" in text
    notes = re.findall(r"Not read: <bdi>(.*?)</bdi>", text)
    assert len([note for note in notes if note.startswith("receipt ")]) == 3
    assert len([note for note in notes if "dataset.json: is damaged" in note]) == 1


def test_fine_tuned_runs_below_eval_are_no_receipts(tmp_path):
    run = report_runs.write(tmp_path / "run", steps=3, total=3)
    tuned = report_runs.write(
        run / "eval" / "finetune_10pct" / "pretrained", steps=3, total=3
    )
    receipt = json.dumps({"value": 0.5, "protocol": "knn"})
    for folder in (run, tuned):
        (folder / "eval" / "other").mkdir(parents=True)
        (folder / "eval" / "other" / "knn.json").write_text(receipt)
    (tuned / "checkpoints" / "3").mkdir(parents=True)
    (tuned / "checkpoints" / "3" / "metadata.json").write_text("{}")
    (run / "eval" / "finetune_10pct.json").write_text(receipt)
    read = run_files.read(str(run))
    assert [*read.receipts] == ["finetune_10pct.json", "other/knn.json"]
    assert not read.notes


def test_several_runs_are_beside_each_other(tmp_path):
    names = ["x/run", "y/run", "z/<b>other"]
    runs = [
        report_runs.write(
            tmp_path / name, steps=5, total=5, loss__temperature=0.1 * (1 + number // 2)
        )
        for number, name in enumerate(names)
    ]
    output = tmp_path / "page.html"
    job.write([*map(str, runs)], str(output))
    read = run_files.read_all([*map(str, runs)])
    assert [run.name for run in read] == names
    assert comparison.differences(read) == [
        ("loss.temperature", ["0.1", "0.1", "0.2"]),
    ]
    text = output.read_text()
    assert "3 runs" in text
    assert "z/&lt;b&gt;other" in text
    series = plots(text)["charts"][0]["series"]
    assert [one["run"] for one in series] == [0, 0, 1, 1, 2, 2]
    assert series[-1]["name"] == "z/&lt;b&gt;other: chance"


def test_only_what_differs_from_the_base_is_listed(tmp_path):
    run = report_runs.write(tmp_path / "run", steps=1, total=3)
    rows = comparison.from_base(run_files.read(str(run)))
    assert ("schedule.train_steps", "None", "3") in rows
    assert ("loss.temperature", "0.1", "0.5") in rows
    keys = [key for key, _, _ in rows]
    assert "encoder.sk_ratio" not in keys
    assert "format_version" not in keys
    assert "<code>None</code>: not set, or decided when the run begins." in body(run)


def test_a_part_that_fails_is_said_to_be_missing(tmp_path, monkeypatch):
    run = report_runs.write(tmp_path / "run", steps=3, total=3)

    def fails(workdir, config):
        raise ConfigError(f"{workdir}: the data is <gone>")

    def works(workdir, config):
        return [Section("own", "Own part", "missing.html", {"reason": "none"})]

    monkeypatch.setattr(job.representation, "sections", fails)
    job.write([str(run)], None)
    assert "the data is &lt;gone&gt;" in (run / "report.html").read_text()
    monkeypatch.setattr(job.representation, "sections", works)
    job.write([str(run)], None)
    assert "Own part" in (run / "report.html").read_text()
    job.write([str(run)], None, images=False)
    text = (run / "report.html").read_text()
    assert "Own part" not in text
    assert "&lt;gone&gt;" not in text


def test_bad_flags_are_refused_in_one_line(tmp_path):
    run = report_runs.write(tmp_path / "run", steps=3, total=3)
    other = report_runs.write(tmp_path / "other", steps=3, total=3)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    bad = {
        "is no run directory": ([tmp_path / "folder"], None),
        "must be a folder, and is a file": ([tmp_path / "file"], None),
        "must be named once": ([run, f"{run}/../run"], tmp_path / "a.html"),
        "--output: must be given": ([run, other], None),
        "there is no folder": ([run], tmp_path / "none" / "a.html"),
        "must be a file, and is a folder": ([run], tmp_path / "folder"),
    }
    for words, (workdirs, output) in bad.items():
        with pytest.raises(ConfigError, match=words) as error:
            job.write([*map(str, workdirs)], output and str(output))
        assert "\n" not in str(error.value)
    assert not (tmp_path / "a.html").exists()


@pytest.mark.parametrize("output", [None, "page.html"])
def test_a_folder_that_takes_no_files_is_said_before_the_work(
    output, tmp_path, monkeypatch
):
    run = report_runs.write(tmp_path / "run", steps=3, total=3)
    output = output and str(tmp_path / output)

    def is_read_only(**arguments):
        raise OSError(errno.EROFS, "Read-only file system", arguments["dir"])

    monkeypatch.setattr(tempfile, "TemporaryFile", is_read_only)
    monkeypatch.setattr(job, "_image_sections", lambda run: pytest.fail("encodes"))
    path = output or f"{run}/report.html"
    with pytest.raises(ConfigError, match=f"--output={path}: cannot be written .*Read"):
        job.write([str(run)], output)


def test_a_long_run_makes_a_small_page(tmp_path):
    _check_a_long_run(tmp_path, 8_000)


@pytest.mark.slow
def test_a_million_steps_make_a_small_page(tmp_path):
    _check_a_long_run(tmp_path, 1_000_000)


def _check_a_long_run(tmp_path: pathlib.Path, size: int) -> None:
    run = report_runs.write(tmp_path / "run", steps=1, total=size)
    values = np.random.default_rng(0).normal(size=size)
    values[size // 3] = 100.0
    rest = json.dumps(report_runs.line(2))[len('{"step": 2, ') :]
    template = re.sub(r'"loss": [\d.]+', '"loss": LOSS', rest)
    with report_runs.log(run).open("w") as log:
        for step, value in enumerate(values.tolist(), start=1):
            text = template.replace("LOSS", str(value))
            log.write(f'{{"step": {step}, {text}\n')
    job.write([str(run)], None)
    assert (run / "report.html").stat().st_size < 8e6
    loss = plots((run / "report.html").read_text())["charts"][0]["series"][0]
    assert len(loss["x"]) < 2050
    assert loss["y"][loss["x"].index(size // 3 + 1)] == 100
