"""Classes and confusions, against scikit-learn and by hand; names that are hostile."""

import json

import numpy as np
import pytest
from report_samples import HOSTILE, Page, clusters, make_sample, render
from sklearn import metrics, neighbors

from simclr_jax.configs import smoke
from simclr_jax.errors import DataError
from simclr_jax.evaluation.class_figures import ClassFigures
from simclr_jax.report import class_receipts, classes, embedding_map, names
from simclr_jax.report import neighbours as neighbours_part
from simclr_jax.report.class_receipts import Judged


def draw(sizes, *, accuracy=0.6, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    other = rng.integers(0, len(sizes), len(labels))
    return np.where(rng.random(len(labels)) < accuracy, labels, other), labels


def judge(predicted, labels, names):
    pairs = classes.count_pairs(np.asarray(predicted), np.asarray(labels))
    return Judged(tuple(names), pairs, "a test")


@pytest.mark.parametrize("sizes", [(30, 5, 20), (4, 1), (0, 9, 3, 0), (7,) * 30])
def test_shares_and_matrix_are_scikit_learns(sizes):
    predicted, labels = draw(sizes)
    class_names = [f"class {i}" for i in range(len(sizes))]
    judged = judge(predicted, labels, class_names)
    expected = metrics.confusion_matrix(labels, predicted, labels=range(len(sizes)))
    cells = classes.matrix(judged, classes.in_matrix(judged))
    assert [[cell["images"] for cell in row] for row in cells] == expected.tolist()
    rows = classes.accuracies(judged)
    shares = {
        name: expected[i, i] / expected[i].sum() if expected[i].sum() else None
        for i, name in enumerate(class_names)
    }
    assert {row["name"]: row["share"] for row in rows} == shares
    known = [row["share"] for row in rows if row["share"] is not None]
    assert known == sorted(known)
    unknown = len(rows) - len(known)
    assert all(row["share"] is None for row in rows[len(known) :])
    assert classes.section(judged).data["without_images"] == unknown
    wrong = [
        (int(expected[a, b]), class_names[a], class_names[b])
        for a in range(len(sizes))
        for b in range(len(sizes))
        if a != b and expected[a, b]
    ]
    found = [
        (r["images"], r["label"], r["predicted"]) for r in classes.confusions(judged)
    ]
    assert sorted(found) == sorted(wrong)
    assert [f[0] for f in found] == sorted((w[0] for w in wrong), reverse=True)
    render(classes.section(judged))


def test_a_thousand_classes_show_those_that_are_confused_the_most():
    labels = np.repeat(np.arange(1000), 10)
    predicted = labels.copy()
    predicted[np.flatnonzero(labels == 17)[:6]] = 900
    predicted[np.flatnonzero(labels == 900)[:3]] = 17
    predicted[np.flatnonzero(labels == 5)[:7]] = 6
    predicted[::97] = (predicted[::97] + 1) % 1000
    judged = judge(predicted, labels, [f"class {i}" for i in range(1000)])
    chosen = classes.in_matrix(judged)
    assert len(chosen) <= 30
    assert {17, 900, 5, 6} <= {*chosen}
    assert classes.in_matrix(judged, most=2) == [17, 900]  # 9 images in both directions
    section = classes.section(judged)
    assert len(section.data["rows"]) == 1000
    assert len(section.data["confusions"]) == 20
    assert section.data["confusions"][0]["label"] == "class 5"
    page = render(section)
    assert len(page) < 1_000_000
    assert "of 1000 classes that are confused the most" in Page(page).text


def test_without_a_receipt_the_nearest_others_vote():
    h, labels = clusters((20, 20, 20), spread=0.6)
    sample = make_sample(h, labels, ("a", "b", "c"))
    config = smoke.get_config()
    judged = classes.of_sample(sample, config)
    x = h / np.linalg.norm(h, axis=1, keepdims=True)
    expected = []
    for i in range(60):
        others = np.delete(np.arange(60), i)
        near = neighbors.KNeighborsClassifier(
            20,
            weights=lambda d: np.exp(
                (1 - d**2 / 2) / config.evaluation.knn_temperature
            ),
        )
        expected += [*near.fit(x[others], labels[others]).predict(x[i : i + 1])]
    matrix = metrics.confusion_matrix(labels, expected, labels=range(3))
    cells = classes.matrix(judged, [0, 1, 2])
    assert [[cell["images"] for cell in row] for row in cells] == matrix.tolist()
    assert "less exact than an evaluation" in judged.origin


def test_images_without_a_class_do_not_vote():
    h, labels = clusters((10, 10))
    labels[:15] = -1
    judged = classes.of_sample(make_sample(h, labels, ("a", "b")), smoke.get_config())
    assert judged.pairs[:, 2].sum() == 5
    for few in (0, 1):
        labels[:] = -1
        labels[:few] = 1
        with pytest.raises(DataError, match="label"):
            classes.of_sample(make_sample(h, labels, ("a", "b")), smoke.get_config())
    with pytest.raises(DataError, match="no labels"):
        classes.of_sample(make_sample(h), smoke.get_config())


def test_one_class_has_no_confusions():
    h, labels = clusters((6,))
    judged = classes.of_sample(make_sample(h, labels, ("only",)), smoke.get_config())
    text = Page(render(classes.section(judged))).text
    assert "None." in text
    assert "100.0 %" in text


def write_receipt(folder, predicted, labels, class_names, protocol="linear"):
    figures = ClassFigures(predicted, labels, tuple(class_names))
    folder.mkdir(exist_ok=True)
    receipt = {
        "protocol": protocol,
        "by_class": figures.by_class(),
        "checkpoint_step": 12,
        "num_test": len(labels),
        "test_split": "test",
    }
    (folder / f"{protocol}.json").write_text(json.dumps(receipt))
    (folder / f"{protocol}.confusion.csv").write_text(figures.as_csv())


@pytest.mark.parametrize("sizes", [(9, 1, 4), (2,) * 1001])
def test_receipts_are_read_as_they_were_written(tmp_path, sizes):
    predicted, labels = draw(sizes)
    class_names = ['quo"ted, name', "é", "c"] + [f"n{i}" for i in range(3, len(sizes))]
    write_receipt(tmp_path / "eval", predicted, labels, class_names[: len(sizes)])
    write_receipt(tmp_path / "eval", labels, labels, class_names, protocol="knn")
    judged = class_receipts.read(str(tmp_path))
    assert judged is not None
    assert judged.names == tuple(class_names)
    expected = classes.count_pairs(predicted, labels)
    np.testing.assert_array_equal(judged.pairs, expected)
    assert "linear evaluation" in judged.origin
    assert "step 12" in judged.origin


def test_numbers_take_the_names_that_the_run_recorded(tmp_path):
    predicted, labels = draw((5, 5))
    write_receipt(tmp_path / "eval", predicted, labels, ["0", "1"])
    listing = {
        "num_examples": 4,
        "num_classes": 2,
        "class_names": ["cat", "dog"],
        "unit": "shard",
        "entries": {},
    }
    (tmp_path / "dataset.json").write_text(json.dumps(listing))
    judged = class_receipts.read(str(tmp_path))
    assert judged is not None
    assert judged.names == ("cat", "dog")


@pytest.mark.parametrize("damage", ["{", "[]", '{"by_class": 3}', '{"by_class": [1]}'])
def test_a_damaged_receipt_is_passed_over(tmp_path, damage):
    predicted, labels = draw((5, 5))
    write_receipt(tmp_path / "eval", predicted, labels, "ab", protocol="knn")
    (tmp_path / "eval" / "linear.json").write_text(damage)
    judged = class_receipts.read(str(tmp_path))
    assert judged is not None
    assert "knn" in judged.origin
    # The matrix of an evaluation that is being written over.
    (tmp_path / "eval" / "knn.confusion.csv").write_text("label / predicted,a,b\n")
    assert class_receipts.read(str(tmp_path)) is None
    assert class_receipts.read(str(tmp_path / "none")) is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "label / predicted,a,b\na,1,2\nb,1\n",
        f"label / predicted,a,b\na,{10**30},0\nb,0,5\n",
        f"label / predicted,a,b\n{'a' * 200_000},5,0\nb,0,5\n",
    ],
)
def test_a_damaged_matrix_is_passed_over(tmp_path, content, caplog):
    predicted, labels = draw((5, 5))
    write_receipt(tmp_path / "eval", predicted, labels, "ab")
    (tmp_path / "eval" / "linear.confusion.csv").write_text(content)
    assert class_receipts.read(str(tmp_path)) is None
    assert "linear.json: is passed over (" in caplog.text


def test_hostile_names_show_as_text(monkeypatch):
    shown = names.named(HOSTILE, len(HOSTILE))
    assert shown is not None
    assert shown[-1] == "''"
    count = len(HOSTILE)
    h, labels = clusters((3,) * count)
    placed = np.zeros((len(h), 2)), "no method"
    monkeypatch.setattr(embedding_map, "place", lambda h, seed: placed)
    image_names = tuple(shown[i % count] for i in range(len(h)))
    sample = make_sample(h, labels, shown, image_names=image_names, note=shown[0])
    predicted, of = draw((9,) * count, accuracy=0.2)
    for section in (
        neighbours_part.section(sample),
        embedding_map.section(sample, seed=0),
        classes.section(judge(predicted, of, shown)),
    ):
        page = Page(render(section))
        assert not [name for name, _ in page.attributes if name.startswith("on")]
        scripts = 2 if section.name == "map" else 0
        assert page.tags.count("script") == scripts
        assert "b" not in page.tags
        assert "br" not in page.tags
        assert shown[0] in page.text
        assert not any(c in page.text for c in "\u202e\x1b\udce9")
    page = Page(render(classes.section(judge(predicted, of, shown))))
    assert all(name in page.text for name in shown)


def test_labels_of_plotly_have_no_tags():
    labels = [names.plot_label(name, 24) for name in HOSTILE]
    assert not any(c in label for label in labels for c in "<>")
    assert labels[3] == "&lt;b&gt;bold&lt;/b&gt;&lt;br&gt;&amp;amp;"
    assert names.plot_label("x" * 300, 24) == "x" * 23 + "…"
