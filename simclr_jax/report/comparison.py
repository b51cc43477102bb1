"""Configs beside each other: those of several runs, and of a run and its base."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import config_dict

from simclr_jax.config import identity
from simclr_jax.configs import base
from simclr_jax.report.run_files import RunFiles

_ABSENT = "(no such key)"
# Of the files, and not of the experiment.
_FORMAT = ("format_version",)


def differences(runs: Sequence[RunFiles]) -> list[tuple[str, list[str]]]:
    """(key, its value in each run) for the keys that differ between runs."""
    flat = [_flat(run.config) for run in runs]
    return [
        (key, [_shown(config, key) for config in flat])
        for key in sorted({key for config in flat for key in config})
        if len({_shown(config, key) for config in flat}) > 1
    ]


def from_base(run: RunFiles) -> list[tuple[str, str, str]]:
    """(key, value of `configs/base.py`, value of the run) for the keys that differ."""
    before, now = _flat(base.get_config()), _flat(run.config)
    return [
        (key, _shown(before, key), _shown(now, key))
        for key in sorted(now)
        if _shown(before, key) != _shown(now, key)
    ]


def whole(run: RunFiles) -> str:
    """The config as JSON."""
    return json.dumps(identity.as_json(run.config), indent=2, sort_keys=True)


def _flat(config: config_dict.ConfigDict) -> dict[str, Any]:
    flat = identity.flatten(identity.as_json(config))
    return {key: value for key, value in flat.items() if key not in _FORMAT}


def _shown(config: Mapping[str, Any], key: str) -> str:
    """A value as the command line takes it; 1 and 1.0 are the same."""
    if key not in config:
        return _ABSENT
    value = config[key]
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e6:
        return str(int(value))
    return json.dumps(value) if isinstance(value, list | dict) else str(value)
