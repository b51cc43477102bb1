"""Every key with values that make no sense: refused in one line, or they work.

No key may crash the process, or be accepted although nothing can come of it.
"""

import math

import jax
import numpy as np
import pytest

from simclr_jax.config import identity, resolve, rules
from simclr_jax.configs import base, distill, finetune
from simclr_jax.data.sampling import draws
from simclr_jax.data.views.composition import Composition
from simclr_jax.errors import ConfigError
from simclr_jax.training import build

MAKERS = {
    "finetune": lambda: finetune.get_config("cifar10,0.1"),
    "distill": lambda: distill.get_config("cifar10"),
}
KEYS = sorted(
    {
        *identity.flatten(base.get_config()),
        *(key for make in MAKERS.values() for key in identity.flatten(make())),
    }
)
VALUES = [
    *(math.inf, -math.inf, math.nan, 1e300, -1e300, 1e30, 1e-30, 1e-300, 0.5, -0.5),
    *(0, 1, -1, 2, 3, 2**31, 2**32, 2**40, 2**63, -(2**63), 10**400, 0.0, -0.0, 1.0),
    *(True, False, None, "", " ", "no", "5", "a\nb", "a\0b", "\x1b[31m", "x" * 10_000),
    *((), [], (1,), [1.5], ("crop",), ("no",), (None,), (math.nan,), [[1]], {}),
    *({"a": 1}, b"crop", 1j, np.float32(0.5), np.int64(3), object()),
]


def config_for(key):
    return MAKERS.get(key.partition(".")[0], base.get_config)()


def with_value(key, value):
    """A config with a value in it whatever its type, as a config file may have."""
    config = config_for(key).unlock()
    *groups, name = key.split(".")
    group = config
    for part in groups:
        group = group[part]
    with group.ignore_type():
        del group[name]
        group[name] = value
    return config


def build_all(config):
    """What training builds of a config, without a device."""
    resolved = resolve.resolve(config, num_examples=max(config.batch.batch_size, 10**6))
    augment = resolved.augment
    composition = Composition(
        tuple(augment.operations),
        {name: dict(augment[name]) for name in draws.COUNTS},
        image_size=resolved.image_size,
    )
    schedule = build.make_schedule(resolved)
    build.make_optimizer(resolved.optimizer, schedule)
    assert np.isfinite(float(schedule(resolved.schedule.warmup_steps)))
    model = build.make_model(resolved, num_classes=10)
    assert model.encoder.feature_width >= 1
    jax.random.key(resolved.seed)
    identity.config_hash(identity.as_json(resolved))
    return composition


@pytest.mark.parametrize("key", KEYS)
def test_a_value_is_refused_in_one_line_or_works(key):
    refused = []
    for value in VALUES:
        config = with_value(key, value)
        try:
            rules.validate(config)
        except ConfigError as error:
            message = str(error)
            refused.append(value)
        else:
            try:
                build_all(config)
            except ConfigError as error:
                message = str(error)
                refused.append(value)
            else:
                continue
        assert message.startswith("config.")
        assert f"config.{key}" in message
        assert message.isprintable()
        assert len(message) < 1000
    assert len(refused) > len(VALUES) // 2
    # What nobody can mean, whatever the key.
    endless = (math.inf, -math.inf, 1e300, -1e300, 10**400, -(2**63))
    for value in (*endless, math.nan, b"crop", {}, (None,), 1j):
        assert any(value is v or value == v for v in refused), value


def test_every_key_has_a_rule():
    ruled = {key for key, _, _ in rules._RULES} | {"augment.operations"}
    for more in rules._MORE_RULES.values():
        ruled |= {key for key, _, _ in more}
    # What a run records, no key of a config file.
    ruled -= {"pretrain.init_from", "pretrain.init_checksum"}
    assert ruled == {*KEYS}
