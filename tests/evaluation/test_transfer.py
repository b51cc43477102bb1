"""The transfer suite, shares of labels and layers, on small prepared datasets."""

import json
import logging
from unittest import mock

import jax
import numpy as np
import pytest
from test_evaluation import make_pretrained
from tfds_files import prepare_labelled

from simclr_jax import host_resources, parallel
from simclr_jax.configs import base
from simclr_jax.data import pipeline
from simclr_jax.data.sources import registry, subsets
from simclr_jax.errors import ConfigError, DataError, NotPrepared
from simclr_jax.evaluation import (
    context,
    datasets,
    linear,
    loop,
    metrics,
    receipts,
    room,
    transfer,
)
from simclr_jax.evaluation.transfer_datasets import DATASETS

CLASSES = 3


def images_of(labels, *, seed):
    """Noise whose colour is the class."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 80, (len(labels), 9, 11, 3), np.uint8)
    images[np.arange(len(labels)), :, :, np.asarray(labels) % 3] += 120
    return images


def single_split(count, *, seed):
    labels = np.random.default_rng(seed).permutation(np.arange(count) % CLASSES)
    return images_of(labels, seed=seed), labels


def several_split(count, *, seed):
    images, labels = single_split(count, seed=seed)
    # The second image of each five shows a difficult object of another class too.
    lists = [
        (sorted({n, (n + 1) % CLASSES} if i % 5 == 1 else {n}), [n])
        for i, n in enumerate(labels.tolist())
    ]
    return images, lists


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    prepare_labelled(
        folder,
        "cifar10",
        {"train": single_split(60, seed=0), "test": single_split(31, seed=1)},
        num_classes=CLASSES,
    )
    three = ("train", "validation", "test")
    for name, make in (
        ("oxford_flowers102", single_split),
        ("voc/2007", several_split),
    ):
        splits = {split: make(20 + i, seed=i) for i, split in enumerate(three)}
        prepare_labelled(folder, name, splits, num_classes=CLASSES)
    return folder


@pytest.fixture
def evaluate(data_dir, monkeypatch, tmp_path):
    """Evaluates a tiny encoder on the prepared datasets; results and receipts.

    On one device, with pixels for the baseline.
    """
    monkeypatch.setattr(loop.encoder, "load", lambda *_, **__: make_pretrained())
    mesh = parallel.create_mesh(jax.devices()[:1])
    monkeypatch.setattr(loop.parallel, "create_mesh", lambda: mesh)
    monkeypatch.setattr(context, "baselines", lambda _: {"pixels": None})

    def run(*names, dataset="cifar10", chosen=(), **settings):
        overrides = [
            f"data.data_dir={data_dir}",
            f"data.dataset={dataset}",
            "evaluation.batch_size=16",
            "evaluation.knn_k=[5, 2]",
            "evaluation.l2_penalties=0.01",
            "evaluation.lbfgs_steps=20",
        ]
        results = loop.evaluate(
            str(tmp_path),
            names,
            overrides=overrides,
            transfer_datasets=chosen,
            **settings,
        )
        written = {
            str(path.relative_to(tmp_path / "eval")): json.loads(path.read_text())
            for path in (tmp_path / "eval").rglob("*.json")
        }
        return results, written

    return run


def check_receipt(receipt, *, num_train, num_test):
    assert 0 < receipt["value"] <= 1
    assert receipt["config_hash"] == "0" * 16
    before, after = (receipt[f"encoder_checksum_{n}"] for n in ("before", "after"))
    assert before == after
    assert len(before) == 64
    assert (receipt["num_train"], receipt["num_test"]) == (num_train, num_test)


@pytest.mark.slow
def test_the_suite_measures_what_is_prepared_and_names_the_rest(evaluate, caplog):
    with caplog.at_level(logging.INFO, "simclr_jax"):
        results, written = evaluate("transfer")
    assert set(written) == {
        "transfer.json",
        "transfer/cifar10.json",
        "transfer/flowers.json",
        "transfer/voc2007.json",
    }
    of = {name: written[f"transfer/{name}.json"] for name in ("cifar10", "flowers")}
    voc = of["voc2007"] = written["transfer/voc2007.json"]
    check_receipt(of["cifar10"], num_train=60, num_test=31)
    check_receipt(of["flowers"], num_train=20 + 21, num_test=22)
    check_receipt(voc, num_train=20 + 21, num_test=22)
    assert of["cifar10"]["metric"] == metrics.TOP1
    assert of["flowers"]["metric"] == metrics.MEAN_PER_CLASS
    assert voc["metric"] == metrics.MAP
    assert voc["dataset"] == "voc/2007"
    assert voc["train_split"] == "train+validation"
    # The class is the colour, which any encoder shows.
    for receipt in of.values():
        assert receipt["value"] > 0.9

    summary = written["transfer.json"]
    values = {name: receipt["value"] for name, receipt in of.items()}
    assert summary["values"] == values
    assert summary["value"] == pytest.approx(np.mean([*values.values()]))
    assert summary["encoder_checksum_after"] == voc["encoder_checksum_after"]
    assert len(summary["settings"]["not_prepared"]) == 9
    (line,) = (m for m in caplog.messages if m.startswith("transfer leaves out"))
    assert "tfds build food101 cifar100 sun397/standard-part1-120k cars196 " in line
    assert "birdsnap (not in TFDS" in line
    assert "\n" not in line
    text = loop.table(results)
    assert len([row for row in text.splitlines() if row.startswith("voc2007")]) == 1


@pytest.mark.slow
def test_datasets_can_be_chosen(evaluate, caplog):
    _, written = evaluate("transfer", chosen=["flowers"])
    assert set(written) == {"transfer.json", "transfer/flowers.json"}
    with pytest.raises(NotPrepared, match=r"no dataset .*tfds build dtd --data_dir="):
        evaluate("transfer", chosen=["dtd"])


@pytest.mark.parametrize(
    ("names", "chosen", "message"),
    [
        (["transfer"], ["dtd", "mnist"], "--datasets=mnist: must be one .* flowers"),
        (["knn"], ["dtd"], "--datasets=dtd: must come with --protocol=transfer"),
        (["nearest"], [], "--protocol=nearest: must be one of knn, .*, transfer"),
    ],
)
def test_unknown_names_are_refused(evaluate, names, chosen, message):
    with pytest.raises(ConfigError, match=message) as error:
        evaluate(*names, chosen=chosen)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_suite_needs_nothing_of_the_runs_dataset(evaluate):
    _, written = evaluate("transfer", dataset="folder:/none", chosen=["cifar10"])
    assert "transfer/cifar10.json" in written


def test_every_dataset_has_a_known_metric_and_split():
    assert len(DATASETS) == 12
    for entry in DATASETS.values():
        assert entry.metric in metrics.METRICS
        assert (entry.metric == metrics.MAP) == (entry.certain_key is not None)
        assert entry.train_split != entry.test_split
        assert transfer.choose([]) == [*DATASETS]


@pytest.mark.slow
def test_layers_have_a_figure_each(evaluate, monkeypatch):
    widths = []
    fit = linear.linear_evaluation

    def watched(train, *arguments, **settings):
        widths.append(train.width)
        return fit(train, *arguments, **settings)

    monkeypatch.setattr(linear, "linear_evaluation", watched)
    results, written = evaluate("linear", "layers", baselines=True)
    receipt = written["cifar10/layers.json"]
    # Of pixels by `linear` and by `layers`, of h by `linear`, of three layers.
    assert widths == [192, 192, 32, 32, 32, 128]
    assert list(receipt["values"]) == ["h", "layer 1", "z"]
    assert receipt["value"] == receipt["values"]["h"]
    assert receipt["value"] == written["cifar10/linear.json"]["value"]
    assert results["layers"]["pixels"].values.keys() == {"h"}
    rows = [line.split() for line in loop.table(results).splitlines()]
    header = rows.index(["layers", "pixels", "pretrained"])
    assert [row[0] for row in rows[header + 1 :]] == ["h", "layer", "z"]
    assert len(rows[header + 1]) == 3
    assert len(rows[header + 3]) == 2  # there is no z of pixels


@pytest.mark.slow
def test_layers_are_those_of_the_encoder():
    pretrained = make_pretrained()
    z, layers = context.network_layers(pretrained, -1)
    images = np.random.default_rng(0).random((4, 8, 8, 3), np.float32)
    h = pretrained.encode(images)
    assert list(layers) == ["h", "layer 1", "z"]
    assert layers.pop("h") is None
    for number, layer in enumerate(layers.values(), start=1):
        expected = pretrained.encode(images, layer=number)
        np.testing.assert_allclose(layer(h), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(z(h), layers["z"](h))


def test_several_k_are_in_one_receipt(evaluate):
    _, written = evaluate("knn")
    receipt = written["cifar10/knn.json"]
    check_receipt(receipt, num_train=60, num_test=31)
    assert receipt["settings"]["k"] == [5, 2]
    assert list(receipt["values"]) == ["k=5", "k=2"]
    assert receipt["value"] == receipt["values"]["k=5"]


@pytest.mark.slow
def test_images_are_encoded_once_for_all_protocols(evaluate, monkeypatch):
    encoded = []
    eval_batches = pipeline.eval_batches

    def watched(source, *arguments, **settings):
        encoded.append(source.name)
        return eval_batches(source, *arguments, **settings)

    monkeypatch.setattr(pipeline, "eval_batches", watched)
    names = ("linear_10pct", "knn", "layers")
    results, _ = evaluate(*names, keep_features=True)
    assert encoded == ["cifar10/train", "cifar10/test"]
    assert list(results) == list(names)
    again, _ = evaluate(*names, keep_features=True)
    assert len(encoded) == 2
    # Without the flag features are computed again: the shares from images of their own.
    alone, _ = evaluate("linear_10pct")
    assert encoded[2:] == ["10 % of cifar10/train", "cifar10/test"]
    assert again == results
    assert alone["linear_10pct"]["pretrained"] == results["linear_10pct"]["pretrained"]


@pytest.mark.slow
def test_another_dataset_has_receipts_of_its_own(evaluate, monkeypatch):
    _, written = evaluate("knn")
    assert set(written) == {"cifar10/knn.json"}
    pretrained = make_pretrained()
    pretrained.config["data"]["dataset"] = "cifar10"
    monkeypatch.setattr(loop.encoder, "load", lambda *_, **__: pretrained)
    _, written = evaluate("knn", baselines=True)
    assert set(written) == {"knn.json", "cifar10/knn.json"}
    assert "pixels" not in written["cifar10/knn.json"]
    assert written["knn.json"]["pixels"] == {"image_size": 8, "shrunk_to": 8}


def test_names_of_datasets_make_folders(tmp_path):
    pretrained = make_pretrained()
    dataset = mock.Mock()
    dataset.name = "folder:/data/my flowers"
    of = mock.Mock(network=pretrained, dataset=dataset, workdir=str(tmp_path))
    folder = receipts.folder(of)
    assert folder == tmp_path / "eval" / "folder-data-my-flowers"


def test_features_that_do_not_fit_are_refused_before_the_work(evaluate, monkeypatch):
    # Of 60 + 31 images. h has 32 features, the widest layer 128.
    free = 91 * 4 * 32
    monkeypatch.setattr(room, "_free_bytes", lambda _: free)
    evaluate("knn")
    message = r"60 training and 31 test images x {} .* on each of 1 devices, .*; use "
    with pytest.raises(ConfigError, match=message.format(160)):
        evaluate("knn", "layers")
    free -= 1
    with pytest.raises(ConfigError, match=message.format(32)):
        evaluate("knn")
    monkeypatch.undo()
    mesh = parallel.create_mesh()
    assert room._free_bytes(mesh) > 2**20
    # A container's limit counts, not the machine's memory alone.
    share = host_resources.Share(1, 2**20, "a container")
    monkeypatch.setattr(host_resources, "mine", lambda: share)
    assert room._free_bytes(mesh) == 2**20 // mesh.size


@pytest.mark.slow
def test_shares_of_the_labels_are_balanced_and_named(evaluate):
    results, written = evaluate("linear", "linear_10pct")
    check_receipt(written["cifar10/linear.json"], num_train=60, num_test=31)
    receipt = written["cifar10/linear_10pct.json"]
    check_receipt(receipt, num_train=6, num_test=31)
    assert receipt["settings"]["train_images"] == "6 of 10 % of cifar10/train"
    assert (
        written["cifar10/linear.json"]["settings"]["train_images"]
        == "60 of cifar10/train"
    )
    assert set(results) == {"linear", "linear_10pct"}


def imagenet_config(data_dir):
    config = base.get_config()
    config.data.data_dir = str(data_dir)
    config.evaluation.test_split = "train"
    return config


def test_imagenet_has_official_shares(tmp_path):
    train = {"train": single_split(30, seed=0)}
    prepare_labelled(tmp_path, "imagenet2012", train, num_classes=CLASSES)
    config = imagenet_config(tmp_path)
    dataset = datasets.open_dataset(config)
    with pytest.raises(NotPrepared, match=r"tfds build imagenet2012_subset/1pct"):
        datasets.open_share(config, dataset, 0.01)
    few = {"train": single_split(7, seed=1)}
    name = "imagenet2012_subset/10pct"
    prepare_labelled(tmp_path, name, few, num_classes=CLASSES)
    share = datasets.open_share(config, dataset, 0.1)
    assert (share.name, share.num_examples) == ("imagenet2012_subset/10pct/train", 7)
    # Of a part of the training images there is no official share.
    config.evaluation.train_split = "train[:20]"
    share = datasets.open_share(config, datasets.open_dataset(config), 0.1)
    assert share.name == "10 % of imagenet2012/train[:20]"


def test_several_splits_are_read_one_after_the_other(data_dir):
    settings = {"data_dir": str(data_dir)}
    both = registry.open_tfds("oxford_flowers102", split="train+validation", **settings)
    parts = [
        subsets.labels(registry.open_tfds("oxford_flowers102", split=split, **settings))
        for split in ("train", "validation")
    ]
    np.testing.assert_array_equal(subsets.labels(both), np.concatenate(parts))
    with pytest.raises(DataError, match=r"'train\+val' of .* must be one of train, "):
        registry.open_tfds("oxford_flowers102", split="train+val", **settings)


def open_voc(data_dir, **settings):
    keys = {"label_key": "labels", "certain_key": "labels_no_difficult"} | settings
    return registry.open_tfds("voc/2007", split="train", data_dir=str(data_dir), **keys)


def test_difficult_objects_do_not_count(data_dir):
    _, lists = several_split(20, seed=0)
    expected = np.zeros((20, CLASSES), np.int32)
    for row, (named, certain) in zip(expected, lists, strict=True):
        row[named] = -1
        row[certain] = 1
    assert (expected == -1).sum() == 4
    source = open_voc(data_dir)
    assert source.num_classes == CLASSES
    np.testing.assert_array_equal(subsets.labels(source), expected)


def test_images_of_no_class_have_vectors_too(tmp_path):
    images = images_of([0, 1], seed=0)
    splits = {"train": (images, [([], []), ([1], [1])])}
    prepare_labelled(tmp_path, "voc/2007", splits, num_classes=CLASSES)
    np.testing.assert_array_equal(
        subsets.labels(open_voc(tmp_path)), [[0, 0, 0], [0, 1, 0]]
    )


def test_lists_of_classes_are_no_class(data_dir):
    listed = registry.open_tfds(
        "voc/2007", split="train", data_dir=str(data_dir), label_key="labels"
    )
    assert listed.num_classes is None
    with pytest.raises(DataError, match="feature 'image' must be a list of classes"):
        open_voc(data_dir, certain_key="image")
