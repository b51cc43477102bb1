"""The run directory: its config, and which config may resume in it."""

import json
import logging
import uuid
from typing import Any

from ml_collections import config_dict

from simclr_jax import paths
from simclr_jax.config import identity, rules
from simclr_jax.data.sources.listings import Listing
from simclr_jax.errors import ConfigError, first_line
from simclr_jax.models import normalization
from simclr_jax.parallel import processes
from simclr_jax.runs import atomic, dataset_record, format_version

_LOG = logging.getLogger(__name__)

CONFIG = "config.json"


def check(
    workdir: str,
    config: config_dict.ConfigDict,
    listing: Listing,
    allow_config_change: bool,
) -> None:
    """Checks that a run directory is free, or belongs to this config.

    Args:
      workdir: the run directory; need not be there.
      config: resolved.
      listing: of the training images. Where the run recorded the same one, they may
        lie elsewhere than the directory's config says.
      allow_config_change: resume although the directory's config differs.

    Raises:
      ConfigError: the directory is another config's, or no folder.
    """
    atomic.check_no_file(workdir)
    if has_config(workdir) and not allow_config_change:
        old, new = read_config(workdir), identity.as_json(config)
        if identity.is_moved(old, new) and dataset_record.holds(workdir, listing):
            _LOG.info("The dataset has moved here from %s.", old["data"]["dataset"])
            old["data"]["dataset"] = new["data"]["dataset"]
        changes = identity.differing_keys(old, new)
        if changes:
            raise ConfigError(
                f"--workdir={workdir}: holds a run of another config "
                f"({'; '.join(changes)}); use a new workdir, or --allow_config_change "
                "to resume with the new values"
            )


def as_recorded(config: config_dict.ConfigDict, workdir: str) -> config_dict.ConfigDict:
    """A copy of a config that reads files as a run did that began in a directory.

    For keys that are None, and decided when a run begins, and a normalisation of pixels
    that was measured then.

    Raises:
      ConfigError: the directory's config cannot be read.
    """
    config = config.copy_and_resolve_references()
    if "data" in config and has_config(workdir):
        recorded = read_config(workdir)
        for key in ("exif_orientation", "white_level"):
            if key in config.data and config.data[key] is None:
                config.data[key] = recorded["data"][key]
        encoder = config.encoder
        measured = recorded["encoder"]["normalization"]
        if encoder.normalization == normalization.MEASURED and "/" in measured:
            encoder.normalization = measured
    return config


def make_folder(workdir: str) -> None:
    """Creates the run directory, and checks that all processes see the same one.

    Every process has to call it.

    Raises:
      ConfigError: it cannot be created, or another process sees a different one.
    """
    folder = paths.as_path(workdir)
    mark = folder / f".shared-{uuid.uuid4().hex}"
    with processes.all_or_none():
        if processes.is_main():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                mark.write_text("")
            except Exception as error:
                if not paths.is_failure(error):
                    raise
                raise ConfigError(
                    f"--workdir={workdir}: cannot be created or written "
                    f"({first_line(error)})"
                ) from error
    name = processes.gather_texts(mark.name)[0]
    try:
        with processes.all_or_none():
            if not (folder / name).exists():
                raise ConfigError(
                    f"--workdir={workdir}: is not the folder that process 0 has under "
                    "this name; it must be on a path that all hosts share, such as a "
                    "bucket (gs://...) or NFS"
                )
    finally:
        if processes.is_main():
            mark.unlink(missing_ok=True)


def has_config(workdir: str) -> bool:
    """Whether a run has recorded its config here."""
    return (paths.as_path(workdir) / CONFIG).exists()


def write_config(workdir: str, config: config_dict.ConfigDict) -> None:
    """Writes `config.json`, atomically; process 0 does.

    Raises:
      ConfigError: the directory cannot be written.
    """
    if not processes.is_main():
        return
    stored = format_version.stamp(identity.as_json(config))
    text = json.dumps(stored, indent=2, sort_keys=True)
    atomic.write_file(paths.as_path(workdir) / CONFIG, text + "\n")


def read_config(workdir: str) -> dict[str, Any]:
    """The config of a run, in this version's keys.

    Raises:
      ConfigError: the folder is no run directory, or its config is damaged or of a
        later format.
    """
    path = paths.as_path(workdir) / CONFIG
    if not path.exists():
        raise ConfigError(f"--workdir={workdir}: is no run directory (has no {CONFIG})")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        reason = first_line(error)
        raise ConfigError(f"file {path}: is no valid JSON ({reason})") from error
    except Exception as error:
        if not paths.is_failure(error):
            raise
        raise ConfigError(f"file {path}: cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise ConfigError(f"file {path}: must hold a JSON object")
    try:
        config = format_version.upgrade(config, file=str(path))
    except (AttributeError, TypeError) as error:  # a value where a group should be
        raise ConfigError(f"file {path}: is damaged ({first_line(error)})") from error
    rules.check_keys(config, file=str(path))
    return config
