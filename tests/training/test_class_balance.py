"""Weights and sampling for classes of different sizes, and batches of few images."""

import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.config import resolve, rules
from simclr_jax.configs import finetune, smoke
from simclr_jax.data.sources.arrays import ArraySource
from simclr_jax.errors import ConfigError
from simclr_jax.training import class_balance, input_pipeline
from simclr_jax.training.objectives import classification


def make_config(**changes):
    config = finetune.adapt(smoke.get_config(), 1.0).unlock()
    config.update_from_flattened_dict(changes)
    return config


def make_source(sizes):
    labels = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    images = np.zeros((len(labels), 16, 16, 3), np.uint8)
    images[:] = np.arange(len(labels))[:, None, None, None]
    return ArraySource(images, labels, name="images")


@pytest.mark.parametrize("sizes", [(95, 5), (3, 0, 7), (4, 4), (1, 20, 300)])
def test_balanced_weights_give_classes_equal_parts_of_the_loss(sizes):
    config = make_config(**{"finetune.class_weights": "balanced"})
    weights = class_balance.weights(config, make_source(sizes))
    parts = np.array(weights) * np.array(sizes)
    present = np.array(sizes) > 0
    np.testing.assert_allclose(
        parts[present], sum(sizes) / np.count_nonzero(present), rtol=1e-12
    )
    assert not parts[~present].any()
    assert class_balance.weights(make_config(), make_source(sizes)) is None


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_weighted_loss_is_its_definition(seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(20, 3)), rng.integers(-1, 3, 20)
    weights = tuple(rng.uniform(0.1, 5, 3).tolist())
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    rows = [i for i, label in enumerate(labels) if label >= 0]
    expected = np.mean([-weights[labels[i]] * log_p[i, labels[i]] for i in rows])
    found, accuracy = classification(
        jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.int32), weights
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    hits = [np.argmax(logits[i]) == labels[i] for i in rows]
    np.testing.assert_allclose(accuracy, np.mean(hits), rtol=1e-6)


@pytest.mark.parametrize("sampling", ["shuffled", "balanced"])
def test_the_pipeline_gets_the_order(monkeypatch, sampling):
    config, source = make_config(**{"finetune.sampling": sampling}), make_source((9, 3))
    config.batch.batch_size, config.schedule.train_steps = 4, 2
    given = []
    monkeypatch.setattr(
        input_pipeline.pipeline,
        "train_batches",
        lambda *_, balanced, **__: given.append(balanced) or iter(()),
    )
    input_pipeline.local_batches(config, source, 0, num_views=1, compiled=True)
    if sampling == "shuffled":
        assert given == [None]
    else:
        expected = class_balance.order_of(config, source)
        for found, members in zip(given[0].members, expected.members, strict=True):
            np.testing.assert_array_equal(found, members)


@pytest.mark.slow
def test_balanced_batches_reach_the_step():
    changes = {
        "finetune.sampling": "balanced",
        "augment.operations": ("flip",),
        "batch.batch_size": 16,
        "schedule.train_steps": 4,
    }
    config, source = make_config(**changes), make_source((90, 10))
    order = class_balance.order_of(config, source)
    batches = input_pipeline.local_batches(config, source, 2, num_views=1)
    for step in (2, 3):
        batch = next(batches)
        images, _ = order.batch_indices(step, seed=config.seed, batch_size=16)
        np.testing.assert_array_equal(batch["images"][:, 0, 0, 0, 0], images)
        assert np.bincount(batch["labels"]).tolist() == [8, 8]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"finetune.class_weights": "balanced"}, "class_weights='balanced': must be"),
        ({"data.block_size": 4}, "block_size=4: must be 1 where .*sampling='balanced'"),
        ({"augment.placement": "accelerator"}, "sampling='balanced': must be 'shuff"),
    ],
)
def test_what_balanced_sampling_cannot_do_is_refused(changes, words):
    config = make_config(**{"finetune.sampling": "balanced"} | changes)
    rules.validate(config)
    with pytest.raises(ConfigError, match=words):
        class_balance.check(config)
    config.finetune.sampling = "shuffled"
    class_balance.check(config)


@pytest.mark.parametrize(
    ("batch", "num_images", "devices", "expected"),
    [
        ({"batch_size": 64}, 12, 1, 12),
        ({"batch_size": 64}, 12, 8, 8),
        ({"batch_size": 64}, 64, 8, 64),
        ({"batch_size": 64}, 3, 2, 2),
        ({"batch_size": 64, "micro_batch_size": 4}, 31, 2, 28),
        ({"batch_size": 64, "norm_parts": 4}, 31, 2, 28),
        ({"batch_size": 64, "norm_parts": 3, "norm_group": 4}, 31, 8, 24),
        # Refused afterwards: no device is in a group of 64.
        ({"batch_size": 64, "norm_group": 64}, 31, 8, 24),
    ],
)
def test_a_batch_that_fits_is_chosen_and_said(
    caplog, batch, num_images, devices, expected
):
    config = make_config(**{f"batch.{key}": value for key, value in batch.items()})
    fitting = resolve.with_fitting_batch(config, num_images, devices)
    assert fitting.batch.batch_size == expected
    assert config.batch.batch_size == 64
    assert (f"batch_size=64: is now {expected}" in caplog.text) == (expected < 64)
    assert resolve.resolve(fitting, num_examples=num_images)


@pytest.mark.parametrize(("num_images", "devices"), [(1, 1), (7, 8)])
def test_where_no_batch_fits_there_is_an_error(num_images, devices):
    with pytest.raises(
        ConfigError, match=r"batch_size=64: must not .* no batch of two"
    ):
        resolve.with_fitting_batch(make_config(), num_images, devices)
