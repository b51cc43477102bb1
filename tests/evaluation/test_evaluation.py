"""Nearest neighbours and linear classifiers against plain definitions."""

import functools
import itertools
import types

import jax
import numpy as np
import pytest
from cases import first
from PIL import Image

from simclr_jax import parallel
from simclr_jax.config import resolve
from simclr_jax.configs import smoke
from simclr_jax.data import pipeline
from simclr_jax.data.sources import registry
from simclr_jax.data.views.composition import Composition
from simclr_jax.errors import DataError, EncoderChanged
from simclr_jax.evaluation import (
    datasets,
    features,
    knn,
    linear,
    linear_sgd,
    loop,
    protocols,
    receipts,
)
from simclr_jax.runs import checkpoints
from simclr_jax.training import build, step
from simclr_jax.weights import encoder


@pytest.fixture(scope="module")
def mesh():
    return parallel.create_mesh()


def clusters(count: int, *, seed: int, classes: int = 4, width: int = 12):
    """Noisy features around class centres that do not depend on the seed."""
    centres = np.random.default_rng(99).normal(size=(classes, width))
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count).astype(np.int32)
    noise = generator.normal(size=(count, width))
    return (centres[labels] + noise).astype(np.float32), labels


def plain_knn(bank, bank_labels, queries, query_labels, *, k, temperature):
    bank = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    hits = 0
    for query, answer in zip(queries.astype(np.float64), query_labels, strict=True):
        similarities = bank.astype(np.float64) @ (query / np.linalg.norm(query))
        votes = np.zeros(bank_labels.max() + 1)
        for i in np.argsort(-similarities)[:k]:
            votes[bank_labels[i]] += np.exp(similarities[i] / temperature)
        hits += np.argmax(votes) == answer
    return hits / len(queries)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (250, 0.5)])
@pytest.mark.parametrize(("bank_block", "devices"), [(8192, 1), (128, 1), (16, 8)])
def test_knn_equals_its_definition(monkeypatch, k, temperature, bank_block, devices):
    # Neither the 300 or 38 rows of a device are divisible by the block, nor the 101
    # queries by the devices.
    monkeypatch.setattr(knn, "_BANK_BLOCK", bank_block)
    monkeypatch.setattr(knn, "_QUERY_BLOCK", 60)
    mesh = parallel.create_mesh(jax.devices()[:devices])
    bank, queries = clusters(300, seed=0), clusters(101, seed=1)
    found = knn.classify(
        features.put(*bank, mesh),
        features.put(*queries, mesh),
        ks=(k, 7),
        temperature=temperature,
    )
    assert list(found) == [k, 7]
    for number, predicted in found.items():
        value = np.mean(predicted == queries[1])
        settings = {"k": number, "temperature": temperature}
        assert value == plain_knn(*bank, *queries, **settings)
        assert 0.4 < value < 1


def test_knn_at_small_temperatures_does_not_overflow(mesh):
    bank, queries = (
        features.put(*clusters(count, seed=i), mesh) for i, count in enumerate((50, 20))
    )
    cold = knn.classify(bank, queries, ks=(5, 1), temperature=1e-4)
    np.testing.assert_array_equal(cold[5], cold[1])
    assert np.mean(cold[5] == queries.labels) > 0


def test_linear_sgd_learns_what_can_be_learnt(mesh):
    generator = np.random.default_rng(0)

    def batches():
        while True:
            labels = generator.integers(0, 3, 32).astype(np.int32)
            images = np.zeros((32, 1, 4, 4, 3), np.uint8)
            images[np.arange(32), :, :, :, labels] = 200
            yield parallel.shard_batch(mesh, {"images": images, "labels": labels})

    classifier = linear_sgd.train_classifier(
        features.pixels,
        batches(),
        num_classes=3,
        num_steps=60,
        learning_rate=0.1,
        momentum=0.9,
        mesh=mesh,
    )
    batch = next(batches())
    x = np.asarray(batch["images"]).reshape(32, -1) / 255
    predicted = linear.predict(
        classifier, features.put(x, np.asarray(batch["labels"]), mesh)
    )
    np.testing.assert_array_equal(predicted, batch["labels"])


def tiny_config():
    config = smoke.get_config()
    config.image_size = 8
    config.encoder.depth, config.encoder.width = 10, 0.0625
    config.batch.batch_size = 16
    return config


@functools.cache
def drawn():
    """A tiny model, its config, and its first parameters and statistics."""
    config = resolve.resolve(tiny_config(), num_examples=100)
    model = build.make_model(config, num_classes=18)
    images = np.zeros((1, 8, 8, 3), np.float32)
    params, batch_stats = jax.jit(model.init)(jax.random.key(5), images)
    return model, config, {"params": params, "batch_stats": batch_stats}


def make_pretrained():
    model, config, arrays = drawn()
    variables, heads = checkpoints.separate_encoder(jax.tree.map(np.array, arrays))
    return encoder.PretrainedEncoder(
        model=model,
        variables=variables,
        heads=heads,
        preprocessing=encoder.Preprocessing(8, 1.0),
        config=config.to_dict(),
        config_hash="0" * 16,
        step=1,
    )


@pytest.mark.slow
def test_the_checksum_covers_parameters_and_statistics():
    pretrained = make_pretrained()
    before = encoder.checksum(pretrained.variables)
    assert before == encoder.checksum(jax.tree.map(np.copy, pretrained.variables))
    for collection in ("params", "batch_stats"):
        changed = jax.tree.map(np.copy, pretrained.variables)
        jax.tree.leaves(changed[collection])[0].flat[0] += 1e-3
        assert encoder.checksum(changed) != before


# Of h of the tiny encoder.
WIDTH = 32
# What each protocol does at some point, with the encoder at hand.
DEEDS = {
    "knn": (knn, "classify"),
    "linear": (linear, "linear_evaluation"),
    "linear_1pct": (linear, "linear_evaluation"),
    "linear_10pct": (features, "extract"),
    "linear_sgd": (linear_sgd, "train_classifier"),
    "layers": (features, "extract"),
    "classifier": (features, "extract"),
}


def test_deeds_of_all_protocols_are_known():
    assert set(DEEDS) == set(protocols.PROTOCOLS)


@pytest.mark.parametrize(
    "protocol",
    # By default one of `classify` and one of `extract`.
    first(2, sorted(DEEDS, key=lambda name: name not in ("knn", "linear_10pct"))),
)
@pytest.mark.parametrize(
    "collection", ["params", pytest.param("batch_stats", marks=pytest.mark.slow)]
)
def test_a_protocol_that_changes_the_encoder_fails_loudly(
    tmp_path, monkeypatch, protocol, collection
):
    pretrained = make_pretrained()
    module, deed = DEEDS[protocol]
    mesh = parallel.create_mesh()

    def some_features(count):
        return features.put(*clusters(count, seed=0, width=WIDTH), mesh)

    def cheat(*arguments, **settings):
        # What a BatchNorm left in training mode would do.
        jax.tree.leaves(pretrained.variables[collection])[0][...] += 0.1
        if deed == "extract":
            return some_features(settings["num_examples"])
        if deed == "train_classifier":
            return linear.Classifier(np.zeros((WIDTH, 4)), np.zeros(4))
        predicted = some_features(len(arguments[1])).labels
        if module is linear:
            return predicted, {}
        return dict.fromkeys(settings["ks"], predicted)

    monkeypatch.setattr(loop.encoder, "load", lambda *_, **__: pretrained)
    monkeypatch.setattr(module, deed, cheat)
    if deed != "extract":
        extract = lambda *_, num_examples, **__: some_features(num_examples)  # noqa: E731
        monkeypatch.setattr(features, "extract", extract)
    overrides = ["evaluation.l2_penalties=0.1", "evaluation.lbfgs_steps=2"]
    with pytest.raises(EncoderChanged, match=f"--protocol={protocol}: changed the"):
        loop.evaluate(str(tmp_path), [protocol], overrides=overrides)
    assert not (tmp_path / "eval").exists()


@pytest.mark.slow
def test_linear_sgd_learns_from_the_same_views_in_every_placement(
    tmp_path, monkeypatch
):
    pretrained, train, found = make_pretrained(), linear_sgd.train_classifier, []
    # Settings of pretraining, which are not those of the probe.
    pretrained.config["augment"]["flip"]["probability"] = 0.1
    pretrained.config["batch"]["micro_batch_size"] = 16
    first_batches = []

    def watched(encode, batches, **settings):
        first = next(batches)
        first_batches.append(first)
        batches = itertools.chain([first], batches)
        found.append(train(encode, batches, **settings))
        return found[-1]

    monkeypatch.setattr(loop.encoder, "load", lambda *_, **__: pretrained)
    monkeypatch.setattr(linear_sgd, "train_classifier", watched)
    for placement in ("host", "host_crop", "accelerator"):
        overrides = [f"augment.placement={placement}", "evaluation.sgd_epochs=0.01"]
        overrides.append("evaluation.sgd_batch_size=8")
        loop.evaluate(str(tmp_path), ["linear_sgd"], overrides=overrides)
    host, *others = (classifier.weights for classifier in found)
    for weights in others:
        # Crops are rounded to 256 levels, in each placement at another point.
        np.testing.assert_allclose(weights, host, atol=2e-3 * np.abs(host).max())
    crop = dict(tiny_config().augment.crop)
    del crop["antialias"]
    (expected,) = pipeline.train_batches(
        registry.open_source("photographs", split="train"),
        # The paper's: random crops and horizontal flips.
        Composition(
            ("crop", "flip"),
            {"crop": crop, "flip": {"probability": 0.5}},
            image_size=8,
        ),
        seed=tiny_config().seed,
        batch_size=8,
        num_views=1,
        stop_step=1,
    )
    for name, array in expected.items():
        np.testing.assert_array_equal(first_batches[0][name], array)


@pytest.mark.slow
def test_the_untrained_baseline_has_the_weights_that_training_started_from():
    pretrained = make_pretrained()
    config = resolve.resolve(tiny_config(), num_examples=100)
    parts = step.pretraining_parts(config, num_classes=7)
    init = functools.partial(step.init_state, parts, image_size=8)
    state = jax.jit(init)(jax.random.key(config.seed))
    started_from = {
        "params": state.params["encoder"],
        "batch_stats": state.batch_stats["encoder"],
    }
    fresh = encoder.untrained(pretrained).variables
    assert jax.tree.structure(fresh) == jax.tree.structure(started_from)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), fresh, started_from
    )
    assert encoder.checksum(fresh) != encoder.checksum(pretrained.variables)


def test_the_table_has_a_row_for_each_representation():
    def row(knn, linear):
        return {"knn": receipts.Result(knn, {}), "linear": linear}

    layers = receipts.Result(1.0, {}, values={"h": 1.0, "z": 0.125})
    found = {
        "pixels": row(0.3, receipts.Result(0.25, {}, values={"h": 0.25})),
        "pretrained": row(0.5, layers),
    }
    text = loop.table(
        {name: {r: found[r][name] for r in found} for name in ("knn", "linear")}
    )
    lines = [line.split() for line in text.splitlines()]
    assert lines[1] == ["pixels", "30.0%", "25.0%"]
    long = loop.table(
        {
            name: {"pixels": receipts.Result(1, {})} | {"pretrained": layers}
            for name in ("linear_sgd", "finetune_10pct")
        }
    )
    assert long.split()[:3] == ["representation", "linear_sgd", "finetune_10pct"]
    assert lines[2] == ["pretrained", "50.0%", "100.0%"]
    assert lines[4:] == [
        ["linear", "pixels", "pretrained"],
        ["h", "25.0%", "100.0%"],
        ["z", "12.5%"],
    ]


def _folder_config(root, names, **splits):
    """A config of a folder with an image for each name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / name)
    config = tiny_config().unlock()
    config.data.dataset = f"folder:{root}"
    config.evaluation.update(splits)
    return config


def test_folders_with_other_classes_are_refused(tmp_path):
    names = ["one/a/1.png", "one/b/1.png", "two/b/1.png", "two/c/1.png"]
    config = _folder_config(tmp_path, names, train_split="one", test_split="two")
    with pytest.raises(DataError, match="must be the same"):
        datasets.open_dataset(config)


def test_a_class_may_be_missing_in_a_split(tmp_path, caplog):
    names = [f"training/{c}/{i}.png" for c in "abc" for i in "12"]
    names += ["testing/b/1.png", "testing/c/1.png", "testing/d/1.png"]
    # Two without a label.
    names += ["training/1.png", "testing/unlabeled.jpg"]
    names += [f"training/a/more{i}.png" for i in range(9)]
    names += [f"testing/b/more{i}.png" for i in range(9)]
    config = _folder_config(tmp_path, names, train_split="train", test_split="val")
    dataset = datasets.open_dataset(config)
    assert (dataset.train_split, dataset.test_split) == ("training", "testing")
    assert dataset.train.class_names == dataset.test.class_names == [*"abcd"]
    assert np.bincount(dataset.train.labels).tolist() == [11, 2, 2]
    assert np.bincount(dataset.test.labels).tolist() == [0, 10, 1, 1]
    absent = {"training": ["d"], "testing": ["a"]}
    assert datasets.absent_classes(dataset) == absent
    assert "1 of 4 classes have no images in testing (a)" in caplog.text
    context = types.SimpleNamespace(dataset=dataset)
    assert receipts._describe_data(context)["classes_without_images"] == absent
    share = datasets.open_share(config, dataset, 0.1)
    assert sorted(share.labels.tolist()) == [0, 0, 1, 2]


def test_too_many_neighbours_are_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(loop.encoder, "load", lambda *_, **__: make_pretrained())
    with pytest.raises(loop.ConfigError, match=r"knn_k=\(20, 9000\): .* 7200 images"):
        loop.evaluate(
            str(tmp_path), ["linear", "knn"], overrides=["evaluation.knn_k=[20,9000]"]
        )
    assert not (tmp_path / "eval").exists()
