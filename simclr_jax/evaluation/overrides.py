"""Applies the overrides of `--set` to the config of a run."""

import json
from collections.abc import Sequence
from typing import Any

from ml_collections import config_dict

from simclr_jax.config import identity, rules
from simclr_jax.errors import ConfigError

# Keys that `--set` may change: the data and settings of the evaluation.
_SETTABLE = (
    *("evaluation.", "data.", "image_size", "seed"),
    *("augment.crop.", "augment.placement", "augment.host_views"),
)
# Keys of the protocols that fine-tune.
_TRAINING = ("finetune.", "optimizer.", "batch.", "schedule.")


def separate_training_overrides(
    overrides: Sequence[str],
) -> tuple[list[str], list[str]]:
    """(overrides of the evaluation, overrides of fine-tuning)."""
    training = [o for o in overrides if o.startswith(_TRAINING)]
    return [o for o in overrides if o not in training], training


def with_training_overrides(
    config: config_dict.ConfigDict, overrides: Sequence[str]
) -> config_dict.ConfigDict:
    """A copy of a fine-tuning config with overrides, unlocked; raises ConfigError."""
    return _apply(config, overrides, _TRAINING, {})


def with_any_overrides(
    config: config_dict.ConfigDict, overrides: Sequence[str]
) -> config_dict.ConfigDict:
    """A copy of a config with overrides of any of its keys; raises ConfigError."""
    first = identity.as_json(config).items()
    settable = [f"{key}." if isinstance(value, dict) else key for key, value in first]
    return _apply(config, overrides, tuple(settable), {}).lock()


def with_overrides(
    config: dict[str, Any], overrides: Sequence[str]
) -> config_dict.ConfigDict:
    """A copy of a run's config with overrides, unlocked.

    Args:
      config: the run's config.
      overrides: 'key=value' for its keys.

    Returns:
      The config; `evaluation.knn_k` is a tuple, even if the run had one number.

    Raises:
      ConfigError: a key cannot be set, or its value has another type.
    """
    result = config_dict.ConfigDict(config)
    k = rules.as_tuple(result.evaluation.knn_k)
    return _apply(result, overrides, _SETTABLE, {"evaluation.knn_k": k})


def _apply(
    config: config_dict.ConfigDict,
    overrides: Sequence[str],
    settable: tuple[str, ...],
    changes: dict[str, Any],
) -> config_dict.ConfigDict:
    """An unlocked copy with `changes` and then `overrides` applied."""
    result = config.copy_and_resolve_references().unlock()
    flat = identity.flatten(result)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or key not in flat or not key.startswith(settable):
            raise ConfigError(
                f"--set={override}: must be KEY=VALUE with a key that starts with "
                f"{', '.join(settable)}"
            )
        current = changes.get(key, flat[key])
        value = _parse_like(current, text)
        if value is None:
            kind = type(current).__name__
            raise ConfigError(
                f"--set={override[:200]}: the value must be of type {kind}"
            )
        changes[key] = value
    with result.ignore_type():
        result.update_from_flattened_dict(changes)
    return result


def _parse_like(current: Any, text: str) -> Any:
    """The parsed value, or None if its type is not that of `current`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # of numbers and lists without an end, too
        value = text
    if isinstance(current, tuple | list):
        # One number means a list of one.
        values = [_like(current[0], item) for item in rules.as_tuple(value)]
        return None if None in values else tuple(values)
    return text if isinstance(current, str) else _like(current, value)


def _like(current: Any, value: Any) -> Any:
    # True and False are integers in Python, but not numbers here.
    if isinstance(value, bool) and not isinstance(current, bool | None):
        return None
    if current is None or isinstance(value, type(current)):
        return value
    if isinstance(current, float) and isinstance(value, int):
        return float(value)
    return None
