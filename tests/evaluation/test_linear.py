"""The fits of linear evaluation against another solver in float64."""

import dataclasses

import jax
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from cases import first

from simclr_jax import parallel
from simclr_jax.evaluation import features, linear, logistic, metrics
from simclr_jax.evaluation.logistic import Classifier, Data

CLASSES, WIDTH = 4, 12


@pytest.fixture(scope="module")
def mesh():
    return parallel.create_mesh(jax.devices()[:2])


def clusters(count, *, seed):
    """Overlapping classes in features that differ in size and go together."""
    rng = np.random.default_rng(99)
    centres = rng.normal(size=(CLASSES, WIDTH))
    mixed = rng.normal(size=(WIDTH, WIDTH)) * np.arange(1, WIDTH + 1) ** -1.0
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count).astype(np.int32)
    x = (centres[labels] + rng.normal(size=(count, WIDTH))) @ mixed.T
    return x.astype(np.float32), labels


def several_labels(count, *, seed):
    """Features, and for each class 1, 0 or -1."""
    x, labels = clusters(count, seed=seed)
    rng = np.random.default_rng(seed)
    hot = np.eye(CLASSES, dtype=np.int32)[labels]
    hot = np.maximum(hot, rng.random(hot.shape) < 0.1)
    return x, np.where(rng.random(hot.shape) < 0.2, -1, hot).astype(np.int32)


def softmax_loss(scores, labels):
    """(loss, its gradient) by scores, of one multinomial regression."""
    hot = np.eye(CLASSES)[labels]
    log_p = scores - scipy.special.logsumexp(scores, axis=1, keepdims=True)
    return -np.sum(hot * log_p) / len(scores), (np.exp(log_p) - hot) / len(scores)


def binary_loss(scores, labels):
    """The same of a binary regression for each class; -1 does not count."""
    counts = labels >= 0
    signs = np.where(labels == 1, 1, -1)
    losses = np.logaddexp(0, -signs * scores)
    slopes = -signs * scipy.special.expit(-signs * scores)
    return np.sum(losses * counts) / len(scores), slopes * counts / len(scores)


def scipy_fit(x, labels, penalty, loss):
    """(lowest loss, weights, bias) in float64."""
    x = x.astype(np.float64)

    def objective(flat):
        weights, bias = np.split(flat, [WIDTH * CLASSES])
        weights = weights.reshape(WIDTH, CLASSES)
        value, slopes = loss(x @ weights + bias, labels)
        gradient = x.T @ slopes + penalty * weights
        return value + 0.5 * penalty * np.sum(weights**2), np.concatenate(
            [gradient.ravel(), slopes.sum(axis=0)]
        )

    start = np.zeros((WIDTH + 1) * CLASSES)
    options = {"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-9}
    found = scipy.optimize.minimize(
        objective, start, jac=True, method="L-BFGS-B", options=options
    )
    weights, bias = np.split(found.x, [WIDTH * CLASSES])
    return found.fun, weights.reshape(WIDTH, CLASSES), bias


def as_data(x, labels, mesh):
    """(data of all rows, second moments) as `linear_evaluation` makes them."""
    train = features.put(x, labels, mesh)
    scale = linear._standardise(train)
    weights = linear._row_weights(train, np.arange(len(x)))
    moments = linear._second_moments(train, scale)
    return Data(train.x, train.by_row(labels, fill=0), weights, scale), moments


def fit(start, data, moments, penalty, **settings):
    return logistic.fit(
        start, data, moments, penalty, mesh=data.x.sharding.mesh, **settings
    )


def objective(classifier, data, penalty):
    mesh = data.x.sharding.mesh
    return float(logistic.objective(classifier, data, penalty, mesh=mesh))


@pytest.mark.parametrize("penalty", [1e-4, 1e-1])
@pytest.mark.parametrize(
    ("several", "widest"),
    first(1, [(False, 8192), (True, 1), (False, 1), (True, 8192)]),
)
def test_the_fit_is_the_minimum(mesh, monkeypatch, penalty, widest, several):
    # With and without the preconditioner; in blocks that do not divide the 202 rows of
    # a device, which are not divisible by the devices either.
    monkeypatch.setattr(linear, "_MAX_WIDTH", widest)
    monkeypatch.setattr(logistic, "_BLOCK_BYTES", 60 * 4 * WIDTH)
    x, labels = (several_labels if several else clusters)(403, seed=0)
    data, moments = as_data(x, labels, mesh)
    assert (moments is None) == (widest == 1)
    start = logistic.zeros(WIDTH, CLASSES)
    fitted = fit(start, data, moments, penalty, max_steps=300)
    reached = objective(fitted, data, penalty)
    loss = binary_loss if several else softmax_loss
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    best, weights, bias = scipy_fit((x - mean) / deviation, labels, penalty, loss)
    assert best * (1 - 1e-6) < reached < best * (1 + 1e-4)
    # Predictions: probabilities of images that it has not seen.
    unseen = (clusters(200, seed=1)[0] - mean) / deviation
    to_p = scipy.special.expit if several else scipy.special.softmax
    axis = {} if several else {"axis": 1}
    expected = to_p(unseen @ weights + bias, **axis)
    found = to_p(unseen @ np.asarray(fitted.weights) + np.asarray(fitted.bias), **axis)
    np.testing.assert_allclose(found, expected, atol=0.02)


@pytest.mark.parametrize("several", [False, True])
def test_predictions_are_those_of_the_scores(mesh, monkeypatch, several):
    monkeypatch.setattr(logistic, "_BLOCK_BYTES", 60 * 4 * WIDTH)
    x, labels = (several_labels if several else clusters)(403, seed=0)
    rng = np.random.default_rng(0)
    classifier = Classifier(
        rng.normal(size=(WIDTH, CLASSES)).astype(np.float32),
        rng.normal(size=CLASSES).astype(np.float32),
    )
    train = features.put(x, labels, mesh)
    standard = (x - x.mean(axis=0)) / x.std(axis=0)
    for rows, scale in ((x, None), (standard, linear._standardise(train))):
        scores = rows @ classifier.weights + classifier.bias
        found = linear.predict(classifier, train, scale)
        if several:
            np.testing.assert_allclose(found, scores, rtol=1e-3, atol=1e-3)
        else:
            np.testing.assert_array_equal(found, np.argmax(scores, axis=1))


@pytest.mark.slow
def test_the_preconditioner_saves_steps(mesh):
    x, labels = clusters(403, seed=0)
    data, moments = as_data(x, labels, mesh)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    rows = x[::3]  # the 10 for each of the 12 features, and some
    np.testing.assert_allclose(moments, rows.T @ rows / len(rows), atol=1e-5)
    start = logistic.zeros(WIDTH, CLASSES)
    losses = {
        name: objective(fit(start, data, known, 1e-3, max_steps=8), data, 1e-3)
        for name, known in (("with", moments), ("without", None))
    }
    best, _, _ = scipy_fit(x, labels, 1e-3, softmax_loss)
    assert losses["with"] - best < 0.2 * (losses["without"] - best)


@pytest.mark.slow
def test_a_fit_begins_where_the_last_one_ended(mesh):
    data, moments = as_data(*clusters(403, seed=0), mesh)
    rng = np.random.default_rng(0)
    start = Classifier(
        rng.normal(size=(WIDTH, CLASSES)).astype(np.float32),
        rng.normal(size=CLASSES).astype(np.float32),
    )
    same = fit(start, data, moments, 1e-2, max_steps=0)
    np.testing.assert_allclose(same.weights, start.weights, atol=1e-4)
    np.testing.assert_array_equal(same.bias, start.bias)


@pytest.mark.slow
def test_held_out_images_judge_fits_without_them(mesh, monkeypatch):
    x, labels = clusters(403, seed=0)
    train = features.put(x, labels, mesh)
    held_out = np.random.default_rng(7).permutation(403)[:40]
    weights, judged = [], []
    fit = logistic.fit

    def watched_fit(start, data, *arguments, **settings):
        weights.append(train.by_image(np.asarray(data.row_weights)))
        return fit(start, data, *arguments, **settings)

    def watched_metric(predicted, of_images):
        judged.append(of_images)
        return metrics.top1(predicted, of_images)

    monkeypatch.setattr(logistic, "fit", watched_fit)
    linear.linear_evaluation(
        train,
        train,
        l2_penalties=(1e-3, 1.0),
        max_steps=3,
        metric=watched_metric,
        seed=7,
    )
    kept = np.ones(403, bool)
    kept[held_out] = False
    np.testing.assert_allclose(weights[0], kept / 363, rtol=1e-6)
    np.testing.assert_array_equal(weights[1], weights[0])
    np.testing.assert_allclose(weights[2], np.full(403, 1 / 403), rtol=1e-6)
    for of_images in judged[:2]:
        np.testing.assert_array_equal(of_images, labels[held_out])
    assert len(judged) == 2


def put(draw, mesh):
    """(features to train on, features to test on)."""
    return [features.put(*draw(n, seed=i), mesh) for i, n in enumerate((400, 200))]


def accuracy(train, test, **settings):
    predicted, chosen = linear.linear_evaluation(train, test, **settings)
    return metrics.top1(predicted, test.labels), chosen


def test_the_penalty_is_chosen_without_the_test_labels(mesh):
    train, test = put(clusters, mesh)
    settings = {"l2_penalties": (1e-4, 1e-2, 10.0), "max_steps": 100}
    value, chosen = accuracy(train, test, **settings)
    assert value > 0.7
    assert set(chosen["held_out_values"]) == {"0.0001", "0.01", "10"}
    assert chosen["held_out_values"]["10"] < chosen["held_out_values"]["0.01"]
    wrong = dataclasses.replace(test, labels=(test.labels + 1) % 4)
    _, chosen_for_wrong = linear.linear_evaluation(train, wrong, **settings)
    assert chosen_for_wrong == chosen


def test_one_penalty_is_taken_as_it_is(mesh):
    train, test = put(clusters, mesh)
    settings = {"max_steps": 100}
    value, chosen = accuracy(train, test, l2_penalties=(1e-2,), **settings)
    assert chosen == {
        "l2_penalty": 1e-2,
        "held_out_values": {},
        "l2_penalty_by": "the only candidate",
    }
    weak, _ = accuracy(train, test, l2_penalties=(1e9,), **settings)
    assert weak < value


def test_scale_and_offset_make_no_difference(mesh):
    train, test = put(clusters, mesh)
    settings = {"l2_penalties": (1e-3,), "max_steps": 100}
    value, _ = accuracy(train, test, **settings)
    moved, _ = accuracy(
        *(dataclasses.replace(part, x=part.x * 100 + 7) for part in (train, test)),
        **settings,
    )
    assert moved == pytest.approx(value, abs=0.01)


@pytest.mark.slow
def test_several_labels_are_judged_by_their_metric(mesh):
    train, test = put(several_labels, mesh)
    scores, chosen = linear.linear_evaluation(
        train,
        test,
        l2_penalties=(1e-3, 10.0),
        max_steps=100,
        metric=metrics.mean_average_precision,
    )
    value = metrics.mean_average_precision(scores, test.labels)
    chance = metrics.mean_average_precision(
        np.random.default_rng(0).random(test.labels.shape), test.labels
    )
    assert value > chance + 0.2
    assert len(chosen["held_out_values"]) == 2


def by_class(labels, images):
    return np.bincount(labels[images], minlength=labels.max() + 1)


def test_a_random_tenth_judges_where_all_classes_are_in_both_parts():
    labels = np.random.default_rng(1).integers(0, 5, 600)
    images, words = linear.held_out_images(labels, seed=4)
    expected = np.random.default_rng(4).permutation(600)[:60]
    np.testing.assert_array_equal(images, expected)
    assert words == "a random tenth, 60 of 600 training images"


@pytest.mark.parametrize(
    ("sizes", "held_out", "words"),
    [
        ((2, 2, 2), (1, 1, 1), "a share of each class, 3 of 6 training images"),
        ((2, 3, 40, 2), (1, 1, 4, 1), "a share of each class, 7 of 47 training"),
        # Classes without images do not count.
        ((2, 0, 2, 0), (1, 0, 1, 0), "a share of each class, 2 of 4 training images"),
        ((500, 1, 30), (50, 0, 3), "none of the 1 classes with one image"),
        ((1, 1, 1, 1), None, "default, since 4 of 4 classes have one training image"),
        ((90, 1, 1), None, "default, since 2 of 3 classes have one training image"),
        ((1,), None, "default, since 1 of 1 classes"),
    ],
)
def test_no_held_out_class_lacks_training_images(sizes, held_out, words):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    for seed in range(5):
        images, said = linear.held_out_images(labels, seed=seed)
        assert words in said
        if held_out is None:
            assert not len(images)
        elif len(labels) < 100:
            held = by_class(labels, images)
            assert tuple(held) == held_out[: len(held)]
        assert len(set(images.tolist())) == len(images)
        rest = np.setdiff1d(np.arange(len(labels)), images)
        assert set(labels[images]) <= set(labels[rest])


@pytest.mark.slow
def test_without_held_out_images_the_default_is_taken_and_said(mesh):
    x, _ = clusters(4, seed=0)
    train = features.put(x, np.arange(4, dtype=np.int32), mesh)
    settings = {"max_steps": 3}
    for penalties, expected in (
        ((1e-6, 1e-1, 1e-2, 1e-3), 1e-2),
        ((0.0, 1e-5, 1.0), 1.0),
        ((0.0, 1e-5), 1e-5),
    ):
        _, chosen = linear.linear_evaluation(
            train, train, l2_penalties=penalties, **settings
        )
        assert chosen["l2_penalty"] == expected
        assert chosen["held_out_values"] == {}
        assert "default, since 4 of 4 classes" in chosen["l2_penalty_by"]


def test_several_labels_need_positives_in_both_parts():
    hot = np.zeros((40, 2), np.int32)
    hot[:, 0] = 1
    images, words = linear.held_out_images(hot, seed=0)
    assert len(images) == 4
    assert "a random tenth, 4 of 40" in words
    hot[images[0], 1] = 1
    images, words = linear.held_out_images(hot, seed=0)
    assert not len(images)
    assert words.startswith("default, since")
