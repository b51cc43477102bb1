"""The fits of linear evaluation against another solver in float64."""

import jax
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from simclr_jax import parallel
from simclr_jax.evaluation import linear, metrics

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


@pytest.mark.parametrize("penalty", [1e-4, 1e-1])
@pytest.mark.parametrize("widest", [8192, 1])
@pytest.mark.parametrize("several", [False, True])
def test_the_fit_is_the_minimum(mesh, monkeypatch, penalty, widest, several):
    # With and without the preconditioner; not divisible by the devices.
    monkeypatch.setattr(linear, "_MAX_WIDTH", widest)
    x, labels = (several_labels if several else clusters)(403, seed=0)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    data, moments = linear._shard(x, labels, mesh), linear._second_moments(x, mesh)
    assert (moments is None) == (widest == 1)
    fitted = linear._fit(
        linear._zeros(WIDTH, CLASSES), data, moments, penalty, max_steps=300
    )
    reached = float(linear._objective(fitted, data, penalty))
    loss = binary_loss if several else softmax_loss
    best, weights, bias = scipy_fit(x, labels, penalty, loss)
    assert best * (1 - 1e-6) < reached < best * (1 + 1e-4)
    # Predictions: probabilities of images that it has not seen.
    unseen, _ = clusters(200, seed=1)
    unseen = unseen / unseen.std(axis=0)
    to_p = scipy.special.expit if several else scipy.special.softmax
    axis = {} if several else {"axis": 1}
    expected = to_p(unseen @ weights + bias, **axis)
    found = to_p(linear.logits(fitted, unseen), **axis)
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_the_preconditioner_saves_steps(mesh):
    x, labels = clusters(403, seed=0)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    data, moments = linear._shard(x, labels, mesh), linear._second_moments(x, mesh)
    rows = x[::3]  # the 10 for each of the 12 features, and some
    np.testing.assert_allclose(moments, rows.T @ rows / len(rows), atol=1e-5)
    losses = {
        name: float(
            linear._objective(
                linear._fit(
                    linear._zeros(WIDTH, CLASSES), data, known, 1e-3, max_steps=8
                ),
                data,
                1e-3,
            )
        )
        for name, known in (("with", moments), ("without", None))
    }
    best, _, _ = scipy_fit(x, labels, 1e-3, softmax_loss)
    assert losses["with"] - best < 0.2 * (losses["without"] - best)


def test_a_fit_begins_where_the_last_one_ended(mesh):
    x, labels = clusters(403, seed=0)
    data, moments = linear._shard(x, labels, mesh), linear._second_moments(x, mesh)
    rng = np.random.default_rng(0)
    start = linear.Classifier(
        rng.normal(size=(WIDTH, CLASSES)).astype(np.float32),
        rng.normal(size=CLASSES).astype(np.float32),
    )
    same = linear._fit(start, data, moments, 1e-2, max_steps=0)
    np.testing.assert_allclose(same.weights, start.weights, atol=1e-4)
    np.testing.assert_array_equal(same.bias, start.bias)


def test_the_penalty_is_chosen_without_the_test_labels(mesh):
    train, test = clusters(400, seed=0), clusters(200, seed=1)
    settings = {"l2_penalties": (1e-4, 1e-2, 10.0), "max_steps": 100, "mesh": mesh}
    value, chosen = linear.linear_evaluation(*train, *test, **settings)
    assert value > 0.7
    assert set(chosen["held_out_values"]) == {"0.0001", "0.01", "10"}
    assert chosen["held_out_values"]["10"] < chosen["held_out_values"]["0.01"]
    wrong = (test[0], (test[1] + 1) % 4)
    _, chosen_for_wrong = linear.linear_evaluation(*train, *wrong, **settings)
    assert chosen_for_wrong == chosen


def test_one_penalty_is_taken_as_it_is(mesh):
    train, test = clusters(400, seed=0), clusters(200, seed=1)
    settings = {"max_steps": 100, "mesh": mesh}
    value, chosen = linear.linear_evaluation(
        *train, *test, l2_penalties=(1e-2,), **settings
    )
    assert chosen == {"l2_penalty": 1e-2, "held_out_values": {}}
    weak, _ = linear.linear_evaluation(*train, *test, l2_penalties=(1e9,), **settings)
    assert weak < value


def test_scale_and_offset_make_no_difference(mesh):
    train, test = clusters(400, seed=0), clusters(200, seed=1)
    settings = {"l2_penalties": (1e-3,), "max_steps": 100, "mesh": mesh}
    value, _ = linear.linear_evaluation(*train, *test, **settings)
    moved, _ = linear.linear_evaluation(
        train[0] * 100 + 7, train[1], test[0] * 100 + 7, test[1], **settings
    )
    assert moved == pytest.approx(value, abs=0.01)


def test_several_labels_are_judged_by_their_metric(mesh):
    train, test = several_labels(400, seed=0), several_labels(200, seed=1)
    value, chosen = linear.linear_evaluation(
        *train,
        *test,
        l2_penalties=(1e-3, 10.0),
        max_steps=100,
        mesh=mesh,
        metric=metrics.mean_average_precision,
    )
    chance = metrics.mean_average_precision(
        np.random.default_rng(0).random(test[1].shape), test[1]
    )
    assert value > chance + 0.2
    assert len(chosen["held_out_values"]) == 2
