"""Clipping by the global norm, for each optimiser, against NumPy in float64."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import config_dict

from simclr_jax.configs import base
from simclr_jax.training import build

RATE, DECAY, MOMENTUM, TRUST, B1, B2 = 0.3, 0.01, 0.9, 0.02, 0.9, 0.99
NAMES = ("kernel", "bias")


def drawn(seed, scale=1.0):
    generator = np.random.default_rng(seed)
    return {
        "kernel": scale * generator.normal(size=(4, 3)),
        "bias": scale * generator.normal(size=3),
    }


def clip(gradients, limit):
    norm = np.sqrt(sum(np.sum(g**2) for g in gradients.values()))
    share = 1.0 if limit is None else min(1.0, limit / norm)
    return {name: share * g for name, g in gradients.items()}


def decayed(name, gradient, weights):
    return gradient + (DECAY * weights if name == "kernel" else 0.0)


def sgd(weights, history):
    velocity = {name: np.zeros_like(w) for name, w in weights.items()}
    for gradients in history:
        for name in NAMES:
            u = decayed(name, gradients[name], weights[name])
            velocity[name] = MOMENTUM * velocity[name] + u
            weights[name] = weights[name] - RATE * velocity[name]
    return weights


def lars(weights, history):
    velocity = {name: np.zeros_like(w) for name, w in weights.items()}
    for gradients in history:
        for name in NAMES:
            u = decayed(name, gradients[name], weights[name])
            if name == "kernel":
                u = u * TRUST * np.linalg.norm(weights[name]) / np.linalg.norm(u)
            velocity[name] = MOMENTUM * velocity[name] + RATE * u
            weights[name] = weights[name] - velocity[name]
    return weights


def adamw(weights, history):
    mean = {name: np.zeros_like(w) for name, w in weights.items()}
    square = {name: np.zeros_like(w) for name, w in weights.items()}
    for count, gradients in enumerate(history, start=1):
        for name in NAMES:
            g, w = gradients[name], weights[name]
            mean[name] = B1 * mean[name] + (1 - B1) * g
            square[name] = B2 * square[name] + (1 - B2) * g**2
            scale = np.sqrt(square[name] / (1 - B2**count)) + 1e-8
            u = mean[name] / (1 - B1**count) / scale
            weights[name] = w - RATE * decayed(name, u, w)
    return weights


@pytest.mark.parametrize("limit", [None, 0.5, 100.0])
@pytest.mark.parametrize("oracle", [sgd, lars, adamw])
def test_gradients_are_clipped_before_the_optimiser(oracle, limit):
    settings = base.get_config().optimizer
    settings.update(
        config_dict.ConfigDict(
            {
                "name": oracle.__name__,
                "weight_decay": DECAY,
                "momentum": MOMENTUM,
                "trust_coefficient": TRUST,
                "b1": B1,
                "b2": B2,
                "clip_norm": limit,
            }
        )
    )
    optimizer = build.make_optimizer(settings, lambda step: RATE)
    history = [drawn(seed, scale) for seed, scale in ((1, 1.0), (2, 9.0), (3, 0.01))]
    found = {name: jnp.float32(w) for name, w in drawn(0).items()}
    state = optimizer.init(found)
    for gradients in history:
        gradients = {name: jnp.float32(g) for name, g in gradients.items()}
        updates, state = optimizer.update(gradients, state, found)
        found = optax.apply_updates(found, updates)
    expected = oracle(drawn(0), [clip(gradients, limit) for gradients in history])
    for name in NAMES:
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-5, atol=1e-6)
    # A run may resume with another limit.
    plain = build.make_optimizer(base.get_config().optimizer, lambda step: RATE)
    if oracle is lars:
        assert str(optimizer.init(found)) == str(plain.init(found))
