"""A batch that does not come is said, with what is being read; then the run goes on."""

import errno
import os
import socket
import threading
import time

import numpy as np
import pytest
from PIL import Image
from simclr_settings import CROP

from simclr_jax.data import pipeline, stalls
from simclr_jax.data.sources import folder, object_store, storage
from simclr_jax.data.views.composition import Composition


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(stalls, "FIRST_SECS", 0.05)


def _messages(caplog):
    return [record.getMessage() for record in caplog.records]


def _wait_for(condition):
    for _ in range(400):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("did not happen")


def test_a_read_that_does_not_return_is_named(quick, caplog):
    answer = threading.Event()

    def batches():
        yield 1
        yield storage.retried("/mnt/a.jpg", lambda: answer.wait(10) and 2)
        yield 3

    found = []
    consumer = threading.Thread(
        target=lambda: found.extend(stalls.watched(batches(), "folder:/mnt"))
    )
    consumer.start()
    _wait_for(lambda: len(caplog.records) == 3)
    answer.set()
    consumer.join(10)
    assert found == [1, 2, 3]
    *waits, last = _messages(caplog)
    for text in waits:
        assert text.startswith("No batch of folder:/mnt for ")
        assert "; 1 reads are under way, such as of /mnt/a.jpg. The run goes" in text
    assert last.startswith("The batch of folder:/mnt came after ")
    assert len(waits) == 3, "each wait is twice as long"
    assert not storage.under_way()
    _wait_for(lambda: "stalls" not in {t.name for t in threading.enumerate()})


def test_reads_that_are_tried_again_are_named(quick, caplog, monkeypatch):
    waiting = threading.Event()
    policy = storage.Retries(sleep=lambda secs: waiting.wait(10), jitter=lambda: 1)
    monkeypatch.setattr(storage, "RETRIES", policy)
    answers = [OSError(errno.ESTALE, "stale"), OSError(errno.ESTALE, "stale")]

    def request():
        if answers:
            raise answers.pop()
        return "batch"

    def batches():
        yield storage.retried("/mnt/b.jpg", request)

    consumer = threading.Thread(target=lambda: [*stalls.watched(batches(), "x")])
    consumer.start()
    _wait_for(lambda: any("No batch" in text for text in _messages(caplog)))
    waiting.set()
    consumer.join(10)
    (said,) = {
        text.partition("; ")[2] for text in _messages(caplog) if "No batch" in text
    }
    assert said.startswith(
        "1 reads are under way (1 are tried again after failures), such as of "
        "/mnt/b.jpg. The run"
    )


def test_batches_that_come_are_not_mentioned(quick, caplog):
    assert [*stalls.watched(iter(range(100)), "x")] == [*range(100)]
    assert not caplog.records


def test_errors_and_the_end_close_the_watch(quick):
    def failing():
        yield 1
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        [*stalls.watched(failing(), "x")]
    watched = stalls.watched(iter([1, 2]), "x")
    next(watched)
    watched.close()
    _wait_for(lambda: "stalls" not in {t.name for t in threading.enumerate()})


def test_a_store_that_never_answers_is_given_up(monkeypatch):
    pytest.importorskip("obstore")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        assert object_store._TIMEOUT == "60s"
        monkeypatch.setattr(object_store, "_TIMEOUT", "300ms")
        object_store._connect.cache_clear()
        start = time.monotonic()
        with pytest.raises(object_store.Unavailable):
            object_store.read("s3://bucket/a.jpg", 0, 10)
        assert time.monotonic() - start < 5
    object_store._connect.cache_clear()


def test_a_file_that_hangs_in_the_pipeline_is_named(tmp_path, quick, caplog):
    generator = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for path in paths:
        pixels = generator.integers(0, 256, (9, 9, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    source = folder.FolderSource(str(tmp_path))
    settings = {"seed": 0, "batch_size": 4, "stop_step": 1, "compiled": False}
    view = Composition(("crop",), {"crop": CROP}, image_size=8)
    content = paths[2].read_bytes()
    paths[2].unlink()
    os.mkfifo(paths[2])  # to read it waits for a writer
    batches = stalls.watched(
        pipeline.train_batches(source, view, **settings), source.name
    )
    found = []
    consumer = threading.Thread(target=lambda: found.extend(batches))
    consumer.start()
    _wait_for(
        lambda: any(f"such as of {paths[2]}" in text for text in _messages(caplog))
    )
    paths[2].write_bytes(content)
    consumer.join(10)
    (batch,) = found
    assert batch["images"].shape == (4, 2, 8, 8, 3)
