"""The run directory: its config, written once, and who may go on in it."""

import json
import os
import pathlib
from typing import Any

from ml_collections import config_dict

from simclr_jax.errors import ConfigError
from simclr_jax.training.validation import differing_keys

_CONFIG = "config.json"


def claim(
    workdir: str, config: config_dict.ConfigDict, *, allow_config_change: bool
) -> dict[str, Any]:
    """Makes the run directory, or checks that it belongs to this config.

    Args:
      workdir: the run directory; made if it is not there.
      config: resolved.
      allow_config_change: take the directory over even if its config differs.

    Returns:
      The config as JSON values, as written to `config.json`.

    Raises:
      ConfigError: the directory is another config's, or a file.
    """
    path = pathlib.Path(workdir) / _CONFIG
    if path.parent.exists() and not path.parent.is_dir():
        raise ConfigError(f"--workdir={workdir}: must be a folder, and is a file")
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True)
    new = json.loads(text)
    if path.exists() and not allow_config_change:
        changes = differing_keys(read_config(workdir), new)
        if changes:
            raise ConfigError(
                f"--workdir={workdir}: holds a run of another config "
                f"({'; '.join(changes)}); use a new workdir, or --allow_config_change "
                "to go on with the new values"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    replacement = path.with_suffix(".tmp")
    replacement.write_text(text + "\n", encoding="utf-8")
    os.replace(replacement, path)
    return new


def read_config(workdir: str) -> dict[str, Any]:
    """The config of a run.

    Raises:
      ConfigError: the folder is no run directory, or its config is damaged.
    """
    path = pathlib.Path(workdir) / _CONFIG
    if not path.exists():
        raise ConfigError(
            f"--workdir={workdir}: is no run directory (has no {_CONFIG})"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"file {path}: is no valid JSON ({error})") from error
