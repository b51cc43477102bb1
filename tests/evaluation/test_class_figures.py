"""What a figure is worth, against SciPy and definitions in float64."""

import csv
import io
import json
import types

import numpy as np
import pytest
import scipy.stats

from simclr_jax.errors import printable
from simclr_jax.evaluation import class_figures, loop, receipts
from simclr_jax.evaluation.class_figures import wilson_interval

# Names that a terminal would obey, that CSV has to quote, and that are no UTF-8.
NAMES = ["a\x1b[2Jb", 'c,"d"', "\udce9", "é"]


@pytest.mark.parametrize("count", [1, 2, 7, 150, 100_000])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_intervals_are_scipys(count, confidence):
    for hits in {0, 1, count // 3, count - 1, count}:
        expected = scipy.stats.binomtest(hits, count).proportion_ci(
            confidence, method="wilson"
        )
        low, high = wilson_interval(hits, count, confidence=confidence)
        np.testing.assert_allclose((low, high), expected, rtol=1e-12, atol=1e-15)
        assert 0 <= low <= hits / count <= high <= 1


def draw(sizes, *, seed=0, accuracy=0.6):
    """(predicted, labels) of classes of these sizes."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    other = rng.integers(0, len(sizes), len(labels))
    return np.where(rng.random(len(labels)) < accuracy, labels, other), labels


@pytest.mark.parametrize("sizes", [(95, 5), (3, 0, 8, 1), (40, 40, 0), (1,)])
def test_figures_equal_their_definitions(sizes):
    predicted, labels = draw(sizes)
    found = class_figures.count(predicted, labels, num_classes=len(sizes), names=None)
    matrix = class_figures.confusion_matrix(predicted, labels, len(sizes))
    assert matrix.sum() == found.num_test == sum(sizes)
    shares = []
    for number, size in enumerate(sizes):
        own = labels == number
        for other in range(len(sizes)):
            assert matrix[number, other] == np.sum(own & (predicted == other))
        row = found.by_class()[number]
        assert row["num_test"] == size
        if size == 0:
            assert row["accuracy"] is None
            assert row["interval"] is None
            continue
        shares.append(np.mean((predicted == labels)[own], dtype=np.float64))
        assert row["accuracy"] == pytest.approx(shares[-1], rel=1e-12)
        assert row["interval"] == [*wilson_interval(matrix[number, number], size)]
    assert found.balanced_accuracy == pytest.approx(np.mean(shares), rel=1e-12)
    assert found.accuracy == pytest.approx(np.mean(predicted == labels), rel=1e-12)
    largest = int(np.argmax(sizes))
    assert found.majority == (str(largest), max(sizes) / sum(sizes))
    assert found.without_images == [str(n) for n, size in enumerate(sizes) if not size]


def test_one_answer_for_all_is_seen_through():
    labels = np.repeat([0, 1], [95, 5])
    found = class_figures.count(
        np.zeros(100, int), labels, num_classes=2, names=["healthy", "ill"]
    )
    summary = found.summary()
    assert summary["accuracy"] == summary["majority_accuracy"] == 0.95
    assert summary["majority_class"] == "healthy"
    assert summary["balanced_accuracy"] == 0.5
    low, high = summary["balanced_interval"]
    assert low < 0.5 < high


@pytest.mark.parametrize("sizes", [(200, 20), (60, 60, 60), (500, 8, 30)])
def test_intervals_of_balanced_accuracy_cover_it(sizes):
    rng = np.random.default_rng(1)
    rates = np.linspace(0.9, 0.6, len(sizes))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    covered = 0
    for _ in range(400):
        right = rng.random(len(labels)) < rates[labels]
        predicted = np.where(right, labels, (labels + 1) % len(sizes))
        found = class_figures.count(
            predicted, labels, num_classes=len(sizes), names=None
        )
        low, high = found.balanced_interval
        covered += low <= np.mean(rates) <= high
    assert 0.91 < covered / 400 < 0.99


def test_one_class_has_the_interval_of_its_accuracy():
    predicted = np.array([0, 0, 1, 0])
    found = class_figures.count(predicted, np.zeros(4, int), num_classes=2, names=None)
    np.testing.assert_allclose(found.balanced_interval, found.interval, rtol=1e-12)


def test_names_are_escaped_in_the_matrix_and_the_receipt():
    predicted, labels = draw((4, 3, 2, 0))
    found = class_figures.count(predicted, labels, num_classes=4, names=NAMES)
    rows = list(csv.reader(io.StringIO(found.as_csv())))
    escaped = [printable(name) for name in NAMES]
    assert rows[0] == ["label / predicted", *escaped]
    assert [row[0] for row in rows[1:]] == escaped
    assert all(text.isprintable() for row in rows for text in row)
    matrix = class_figures.confusion_matrix(predicted, labels, 4)
    np.testing.assert_array_equal(np.array(rows)[1:, 1:].astype(int), matrix)
    assert [row["class"] for row in found.by_class()] == escaped
    json.dumps([found.summary(), found.by_class()]).encode("ascii")


def test_many_classes_have_a_row_for_each_pair(monkeypatch):
    monkeypatch.setattr(class_figures, "MOST_COLUMNS", 3)
    predicted, labels = draw((4, 3, 2, 0))
    found = class_figures.count(predicted, labels, num_classes=4, names=None)
    header, *rows = csv.reader(io.StringIO(found.as_csv()))
    assert header == ["label", "predicted", "images"]
    matrix = np.zeros((4, 4), int)
    for label, answer, images in np.array(rows).astype(int):
        matrix[label, answer] = images
    np.testing.assert_array_equal(
        matrix, class_figures.confusion_matrix(predicted, labels, 4)
    )


@pytest.mark.parametrize(
    ("num_classes", "names", "expected"),
    [
        (None, None, ("0", "1", "2")),
        (2, ["a", "b"], ("a", "b", "2")),
        (4, ["a", "b", "c", "d"], ("a", "b", "c", "d")),
    ],
)
def test_every_class_has_a_name(num_classes, names, expected):
    found = class_figures.count(
        np.array([0, 2]), np.array([1, 1]), num_classes=num_classes, names=names
    )
    assert found.names == expected


def test_images_of_several_classes_have_no_matrix():
    scores, labels = np.zeros((3, 2)), np.ones((3, 2), np.int32)
    assert class_figures.count(scores, labels, num_classes=2, names=["a", "b"]) is None


def result(sizes, **settings):
    predicted, labels = draw(sizes, **settings)
    classes = class_figures.count(predicted, labels, num_classes=len(sizes), names=None)
    return receipts.Result(classes.accuracy, {}, classes=classes)


def test_the_table_shows_the_majority_and_balanced_accuracy():
    pretrained, pixels = result((95, 5)), result((95, 5), accuracy=0.1)
    by_name = {"pixels": pixels, "pretrained": pretrained}
    blank = {"pretrained": receipts.Result(0.5, {})}
    text = loop.table({"knn": by_name, "transfer": blank})
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["representation", "knn", "transfer"]
    assert lines[1] == ["majority", "95.0%"]
    assert lines[3] == ["pretrained", f"{100 * pretrained.value:.1f}%", "50.0%"]
    balanced = pretrained.classes.balanced_accuracy
    assert lines[5] == ["balanced", "knn"]
    assert lines[7] == ["pretrained", f"{100 * balanced:.1f}%"]
    assert abs(balanced - pretrained.value) > 0.01


def test_the_log_names_classes_without_test_images(caplog):
    with caplog.at_level("INFO", logger="simclr_jax"):
        loop._log("knn of pretrained", result((5, 0, 3, 0)))
    assert "knn of pretrained: 2 of 4 classes have no test images, such as 1, 3" in (
        caplog.text
    )
    assert "95 % interval" in caplog.text


@pytest.mark.parametrize("name", ["knn", "transfer/pets"])
def test_the_receipt_has_them_and_the_matrix_lies_beside_it(
    tmp_path, monkeypatch, name
):
    monkeypatch.setattr(receipts, "check_unchanged", lambda *_: None)
    monkeypatch.setattr(receipts, "folder", lambda _: receipts.paths.as_path(tmp_path))
    monkeypatch.setattr(receipts, "_describe_data", lambda _: {})
    monkeypatch.setattr(receipts.dataclasses, "asdict", lambda _: {})
    network = types.SimpleNamespace(step=3, config_hash="0")
    config = types.SimpleNamespace(evaluation=types.SimpleNamespace(layer=0))
    context = types.SimpleNamespace(
        network=network, config=config, preprocessing=None, workdir=str(tmp_path)
    )
    pretrained, untrained = result((9, 4, 0)), result((9, 4, 0), accuracy=0.2)
    receipts.write(
        name, {"untrained": untrained, "pretrained": pretrained}, context, "checksum"
    )
    root = tmp_path / ("eval" if "/" in name else "")
    receipt = json.loads((root / f"{name}.json").read_text())
    classes = pretrained.classes
    assert receipt["confidence"] == 0.95
    assert receipt["interval"] == [*classes.interval]
    assert receipt["balanced_accuracy"] == classes.balanced_accuracy
    assert receipt["classes_without_test_images"] == ["2"]
    assert receipt["by_class"] == classes.by_class()
    other = receipt["baseline_figures"]["untrained"]
    assert other == json.loads(json.dumps(untrained.classes.summary()))
    matrix = (root / name).parent / receipt["confusion_matrix"]
    assert matrix.read_text() == classes.as_csv()
