"""Nearest neighbours and linear classifiers against plain definitions."""

import functools

import jax
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from PIL import Image

from configs import smoke
from simclr_jax import parallel
from simclr_jax.errors import DataError, EncoderChanged
from simclr_jax.evaluation import encoder, features, knn, linear, linear_sgd, protocols
from simclr_jax.training import checkpoints, recipe, step, validation


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
@pytest.mark.parametrize("bank_block", [65536, 128])
def test_knn_equals_its_definition(mesh, monkeypatch, k, temperature, bank_block):
    monkeypatch.setattr(knn, "_BANK_BLOCK", bank_block)
    monkeypatch.setattr(knn, "_QUERY_BLOCK", 60)
    bank, queries = clusters(300, seed=0), clusters(101, seed=1)
    settings = {"k": k, "temperature": temperature}
    value = knn.knn_accuracy(*bank, *queries, **settings, mesh=mesh)
    assert value == plain_knn(*bank, *queries, **settings)
    assert 0.4 < value < 1


def test_knn_at_small_temperatures_does_not_overflow(mesh):
    bank, queries = clusters(50, seed=0), clusters(20, seed=1)
    value = knn.knn_accuracy(*bank, *queries, k=5, temperature=1e-4, mesh=mesh)
    assert value == knn.knn_accuracy(*bank, *queries, k=1, temperature=1.0, mesh=mesh)


def scipy_fit(x, labels, penalty, classes):
    """The same regression in float64 by another solver."""
    hot = np.eye(classes)[labels]

    def objective(flat):
        weights, bias = np.split(flat, [x.shape[1] * classes])
        weights = weights.reshape(x.shape[1], classes)
        logits = x @ weights + bias
        log_p = logits - scipy.special.logsumexp(logits, axis=1, keepdims=True)
        error = (np.exp(log_p) - hot) / len(x)
        value = -np.mean(np.sum(hot * log_p, axis=1))
        gradient = x.T @ error + penalty * weights
        return value + 0.5 * penalty * np.sum(weights**2), np.concatenate(
            [gradient.ravel(), error.sum(axis=0)]
        )

    start = np.zeros((x.shape[1] + 1) * classes)
    return scipy.optimize.minimize(objective, start, jac=True, tol=1e-12).fun


@pytest.mark.parametrize("penalty", [1e-4, 1e-1])
def test_the_linear_fit_reaches_the_minimum(mesh, penalty):
    x, labels = clusters(203, seed=0)  # not divisible by the 8 devices
    data = linear._shard(x, labels, mesh)
    fitted = linear._fit(linear._zeros(12, 4), data, penalty, max_steps=300)
    reached = float(linear._objective(fitted, data, penalty))
    best = scipy_fit(x.astype(np.float64), labels, penalty, classes=4)
    assert reached == pytest.approx(best, rel=2e-4)


def test_linear_accuracy_chooses_its_penalty_without_the_test_labels(mesh):
    train, test = clusters(400, seed=0), clusters(200, seed=1)
    settings = {"l2_penalties": (1e-4, 1e-2, 10.0), "max_steps": 100, "mesh": mesh}
    value, chosen = linear.linear_accuracy(*train, *test, **settings)
    assert value > 0.8
    assert set(chosen["held_out_accuracy"]) == {"0.0001", "0.01", "10"}
    wrong = (test[0], (test[1] + 1) % 4)
    _, chosen_for_wrong = linear.linear_accuracy(*train, *wrong, **settings)
    assert chosen_for_wrong == chosen


def test_linear_accuracy_does_not_depend_on_scale_and_offset(mesh):
    train, test = clusters(400, seed=0), clusters(200, seed=1)
    settings = {"l2_penalties": (1e-3,), "max_steps": 100, "mesh": mesh}
    value, _ = linear.linear_accuracy(*train, *test, **settings)
    moved, _ = linear.linear_accuracy(
        train[0] * 100 + 7, train[1], test[0] * 100 + 7, test[1], **settings
    )
    assert moved == pytest.approx(value, abs=0.01)


def test_linear_sgd_learns_what_can_be_learnt(mesh):
    generator = np.random.default_rng(0)

    def batches():
        while True:
            labels = generator.integers(0, 3, 32).astype(np.int32)
            images = np.zeros((32, 1, 4, 4, 3), np.uint8)
            images[np.arange(32), :, :, :, labels] = 200
            yield {"images": images, "labels": labels}

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
    x = batch["images"].reshape(32, -1) / 255
    assert linear.accuracy(classifier, x, batch["labels"]) == 1.0


def test_features_keep_the_order_and_leave_the_filling_out(mesh):
    images = np.arange(24, dtype=np.float32)[:, None, None, None] * np.ones(
        (1, 2, 2, 3)
    )
    mask = np.ones(24, bool)
    mask[20:] = False
    labels = np.arange(24, dtype=np.int32)
    batches = [
        {"images": images[i : i + 8], "labels": labels[i : i + 8], "mask": mask[i:][:8]}
        for i in (0, 8, 16)
    ]
    x, y = features.extract(features.pixels, batches, mesh, num_examples=20)
    np.testing.assert_array_equal(y, np.arange(20))
    np.testing.assert_array_equal(x[:, 0], np.arange(20))


def tiny_config():
    config = smoke.get_config()
    config.image_size = 8
    config.encoder.width = 0.0625
    config.batch.batch_size = 16
    return config


def make_pretrained():
    config = validation.resolve(tiny_config(), num_examples=100)
    model = recipe.make_model(config, num_classes=3, platform="cpu")
    images = np.zeros((1, 8, 8, 3), np.float32)
    params, batch_stats = jax.jit(model.init)(jax.random.key(5), images)
    variables, heads = checkpoints.split_variables(
        jax.tree.map(np.array, {"params": params, "batch_stats": batch_stats})
    )
    return encoder.PretrainedEncoder(
        model=model,
        variables=variables,
        heads=heads,
        preprocessing=encoder.Preprocessing(8, 1.0),
        config=config.to_dict(),
        config_hash="0" * 16,
        step=1,
    )


def test_the_checksum_covers_parameters_and_statistics():
    pretrained = make_pretrained()
    before = encoder.checksum(pretrained.variables)
    assert before == encoder.checksum(jax.tree.map(np.copy, pretrained.variables))
    for collection in ("params", "batch_stats"):
        changed = jax.tree.map(np.copy, pretrained.variables)
        jax.tree.leaves(changed[collection])[0].flat[0] += 1e-3
        assert encoder.checksum(changed) != before


def test_a_protocol_that_changes_the_encoder_fails_loudly(tmp_path, monkeypatch):
    pretrained = make_pretrained()

    def cheat(task):
        # What a BatchNorm left in training mode would do.
        jax.tree.leaves(pretrained.variables["batch_stats"])[0][...] += 0.1
        return 1.0, {}

    monkeypatch.setattr(protocols.encoders, "load", lambda *_, **__: pretrained)
    monkeypatch.setitem(protocols.PROTOCOLS, "knn", cheat)
    with pytest.raises(EncoderChanged, match="--protocol=knn: changed the encoder"):
        protocols.evaluate(str(tmp_path), ["knn"])
    assert not (tmp_path / "eval").exists()


def test_the_untrained_baseline_has_the_weights_that_training_started_from():
    pretrained = make_pretrained()
    config = validation.resolve(tiny_config(), num_examples=100)
    parts = recipe.make_recipe(config, num_classes=7)
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
    text = protocols.table(
        {
            "pixels": {"knn": 0.3, "linear": 0.25},
            "pretrained": {"knn": 0.5, "linear": 1},
        }
    )
    assert text.splitlines()[1].split() == ["pixels", "30.0%", "25.0%"]
    assert text.splitlines()[2].split() == ["pretrained", "50.0%", "100.0%"]


def test_overrides_take_keys_of_the_config_only():
    config = {
        "evaluation": {"knn_k": 200},
        "loss": {"temperature": 1.0},
        "data": {"data_dir": None},
    }
    result = protocols._with_overrides(
        config, ["evaluation.knn_k=20", "data.data_dir=/data", "data.data_dir=a=b"]
    )
    assert result.evaluation.knn_k == 20
    assert result.data.data_dir == "a=b"
    bad_ones = ("evaluation.k=20", "evaluation.knn_k", "evaluation.knn_k=2.5")
    for bad in (*bad_ones, "evaluation.knn_k=null", "loss.temperature=1"):
        with pytest.raises(protocols.ConfigError, match="--set="):
            protocols._with_overrides(config, [bad])


def test_splits_with_other_classes_are_refused(tmp_path, monkeypatch):
    for name in ("train/a", "train/b", "train/c", "val/b", "val/c"):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "1.png")
    monkeypatch.setattr(protocols.encoders, "load", lambda *_, **__: make_pretrained())
    overrides = [f"data.dataset=folder:{tmp_path}/images", "evaluation.test_split=val"]
    with pytest.raises(DataError, match="must be the same"):
        protocols.evaluate(str(tmp_path), ["knn"], overrides=overrides)


def test_too_many_neighbours_are_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(protocols.encoders, "load", lambda *_, **__: make_pretrained())
    with pytest.raises(protocols.ConfigError, match=r"knn_k=9000: .* 7200 images"):
        protocols.evaluate(
            str(tmp_path), ["linear", "knn"], overrides=["evaluation.knn_k=9000"]
        )
    assert not (tmp_path / "eval").exists()
