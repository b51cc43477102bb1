"""The format of run directories: opening those of older versions.

`config.json` carries `format_version`. A version that adds a config key lists it in
`_ADDED` with its default, and older runs get that default when they are opened, even
where a later version has another one in `configs/base.py`. A test holds the lists
against `configs/base.py` and a recorded run of version 1.
"""

from typing import Any

from simclr_jax.config import identity, renamed
from simclr_jax.errors import ConfigError

# 1 had no `format_version`; 2 renamed the values in `config/renamed.py`; later ones
# added keys, and 7 has `log.writers` for `log.tensorboard`. No version gives the old
# name of a key another meaning.
VERSION = 8
_KEY = "format_version"
# By version: the keys that it added, with its defaults.
_ADDED: dict[int, dict[str, Any]] = {
    2: {"augment.host_views": "auto"},
    3: {"parallel.deterministic": False},
    4: {"checkpoint.every_secs": None},
    5: {
        "data.on_bad_record": "replace",
        "data.bad_records_max": 0.001,
        "checkpoint.checksums": True,
        "optimizer.clip_norm": None,
        "optimizer.on_nonfinite": "stop",
        "optimizer.max_skipped_steps": 10,
        "schedule.extend": "stretch",
        "schedule.extend_step": None,
        "schedule.extend_learning_rate": None,
    },
    6: {
        "augment.crop.antialias": False,
        "batch.norm_group": None,
        "checkpoint.keep_best": False,
        # Of 16 bits the upper 8 were used.
        "data.exif_orientation": False,
        "data.white_level": 65535,
        "evaluation.every_steps": None,
        "evaluation.held_out_split": None,
        "evaluation.bank_images": None,
        "finetune.class_weights": "none",
        "finetune.sampling": "shuffled",
    },
    7: {
        "encoder.zero_init_residual": True,
        "head.kernel_init": "normal",
        "log.writers": ["tensorboard"],
        "optimizer.decayed": "kernels",
    },
    8: {"batch.norm_parts": 1},
}
# Groups that only some configs have.
_GROUPS_OF_SOME = ("finetune", "distill")


def stamp(config: dict[str, Any]) -> dict[str, Any]:
    """A config, as JSON, with the format's version."""
    return {_KEY: VERSION, **config}


def upgrade(stored: dict[str, Any], *, file: str) -> dict[str, Any]:
    """The config of `config.json` with the keys of this version, changed in place.

    Args:
      stored: the object in the file.
      file: its name, for messages.

    Raises:
      ConfigError: a later version wrote it, or its version is no number.
    """
    version = stored.pop(_KEY, 1)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ConfigError(f"file {file}: {_KEY}={version!r}: must be a whole number")
    if version > VERSION:
        raise ConfigError(
            f"file {file}: {_KEY}={version}: was written by a later version of "
            f"simclr_jax, and this one reads up to {VERSION}; upgrade simclr_jax"
        )
    for old, new in renamed.KEYS.items():
        if old in identity.flatten(stored):
            group, name = _parent(stored, old)
            new_group, new_name = _parent(stored, new)
            meaning = renamed.MEANINGS.get(new, lambda value: value)
            new_group[new_name] = meaning(group.pop(name))
    if version < 2:
        for key, values in renamed.VALUES.items():
            group, name = _parent(stored, key)
            if name in group:
                group[name] = values.get(group[name], group[name])
    for added in range(version + 1, VERSION + 1):
        _add(stored, _ADDED.get(added, {}))
    return stored


def _add(stored: dict[str, Any], keys: dict[str, Any]) -> None:
    for key, default in keys.items():
        first = key.partition(".")[0]
        if first not in _GROUPS_OF_SOME or first in stored:
            group, name = _parent(stored, key)
            group.setdefault(name, default)


def _parent(config: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """(group that holds a dotted key, the key's last part)."""
    *groups, name = key.split(".")
    for group in groups:
        config = config.setdefault(group, {})
    return config, name
