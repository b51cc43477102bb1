"""Metrics files and the progress line."""

import json

import pytest

from simclr_jax.runs import metrics_writer


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path):
    path = tmp_path / metrics_writer.FILE_NAME
    writer = metrics_writer.MetricsWriter(str(tmp_path), resume_step=0)
    for step in (1, 2, 3, 4):
        writer.write(step, {"loss": float(step)})
    writer.close()
    with path.open("a") as file:
        file.write('{"step": 5, "lo')  # cut short by a kill

    writer = metrics_writer.MetricsWriter(str(tmp_path), resume_step=2)
    writer.write(3, {"loss": 30.0, "health": "healthy"})
    writer.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 2.0},
        {"step": 3, "loss": 30.0, "health": "healthy"},
    ]


GOOD = '{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.25}\n'


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x90\xff\x00garbage\n",
        b"\xe2\x82\n",
        b'{"loss": 1.0}\n',
        b"12\n",
        b"null\n",
        b'{"step": "2"}\n',
        b'{"step": [2]}\n',
        b"[" * 100_000 + b"\n",
    ],
    ids=range(8),
)
def test_damaged_lines_are_set_aside(tmp_path, caplog, garbage):
    path = tmp_path / metrics_writer.FILE_NAME
    first, second = GOOD.encode().splitlines(keepends=True)
    path.write_bytes(first + garbage + second)
    metrics_writer.MetricsWriter(str(tmp_path), resume_step=2).close()
    assert path.read_text() == GOOD
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == garbage
    assert "1 lines are damaged and now in" in caplog.text


def test_what_a_kill_leaves_is_no_damage(tmp_path, caplog):
    path = tmp_path / metrics_writer.FILE_NAME
    path.write_bytes(GOOD.encode() + b"\0\0\0\n" + b'{"step": 3, "lo')
    metrics_writer.MetricsWriter(str(tmp_path), resume_step=9).close()
    assert path.read_text() == GOOD
    assert not caplog.text


def test_a_step_that_is_there_twice_counts_once(tmp_path):
    path = tmp_path / metrics_writer.FILE_NAME
    path.write_text('{"step": 2, "loss": 9}\n' + GOOD)
    metrics_writer.MetricsWriter(str(tmp_path), resume_step=2).close()
    assert path.read_text() == GOOD


def test_a_folder_or_a_broken_link_in_its_place(tmp_path):
    path = tmp_path / metrics_writer.FILE_NAME
    path.mkdir()
    for _ in range(2):
        writer = metrics_writer.MetricsWriter(str(tmp_path), resume_step=0)
        writer.write(1, {"loss": 2.5})
        writer.close()
        assert path.read_text() == GOOD.splitlines(keepends=True)[0]
        path.unlink()
        path.symlink_to(tmp_path / "nowhere")


def test_lines_are_kept_while_the_disk_is_full(tmp_path, caplog, monkeypatch):
    writer = metrics_writer.MetricsWriter(str(tmp_path), resume_step=0)
    file = writer._file
    writer._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    writer.write(1, {"loss": 2.5})
    writer.write(2, {"loss": 2.25})
    writer._file.close()
    writer._file = file
    writer.close()
    assert (tmp_path / metrics_writer.FILE_NAME).read_text() == GOOD
    assert caplog.text.count("No space left on device") == 1


def test_trouble_of_tensorboard_ends_its_files_only(tmp_path, caplog, monkeypatch):
    import tensorboardX

    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(tensorboardX.SummaryWriter, "add_scalar", fail)
    writer = metrics_writer.MetricsWriter(
        str(tmp_path), resume_step=0, writers=("tensorboard",)
    )
    writer.write(1, {"loss": 2.5})
    writer.write(2, {"loss": 2.25})
    writer.close()
    assert (tmp_path / metrics_writer.FILE_NAME).read_text() == GOOD
    assert caplog.text.count("'tensorboard' cannot write (No space left on") == 1


def test_event_files_hold_the_numbers(tmp_path):
    writer = metrics_writer.MetricsWriter(
        str(tmp_path), resume_step=0, writers=("tensorboard",)
    )
    writer.write(1, {"loss": 2.5, "health": "healthy"})
    writer.close()
    (events,) = tmp_path.glob("events.out.tfevents.*")
    content = events.read_bytes()
    assert b"loss" in content
    assert b"health" not in content


def test_other_processes_write_nothing(tmp_path):
    writer = metrics_writer.MetricsWriter(
        str(tmp_path), resume_step=0, writers=("tensorboard",), active=False
    )
    writer.write(1, {"loss": 2.5})
    writer.close()
    assert not list(tmp_path.iterdir())


def test_progress_line_shows_chance_rate_wait_and_time_left():
    metrics = {
        "loss": 5.0,
        "chance": 6.25,
        "contrastive_accuracy": 0.125,
        "effective_rank_h": 12.34,
        "effective_rank_z": 5.6,
        "learning_rate": 0.3,
        "images_per_sec": 812.4,
        "input_wait_share": 0.07,
    }
    line = metrics_writer.progress_line(10, 40, metrics, secs_left=3661)
    for part in (
        "step 10/40",
        "loss 5.000 (80% of chance 6.25)",
        "accuracy 12.5%",
        "812 images/s",
        "input wait 7%",
        "1:01:01 left",
    ):
        assert part in line
    assert "probe" not in line
    del metrics["chance"]
    assert "loss 5.000 |" in metrics_writer.progress_line(10, 40, metrics, secs_left=1)
    assert "probe 50.0%" in metrics_writer.progress_line(
        10, 40, {**metrics, "probe_accuracy": 0.5}, secs_left=1
    )


@pytest.mark.parametrize(
    ("secs", "text"), [(0.2, "0:00:01"), (59, "0:00:59"), (86400, "24:00:00")]
)
def test_format_secs(secs, text):
    assert metrics_writer.format_secs(secs) == text
