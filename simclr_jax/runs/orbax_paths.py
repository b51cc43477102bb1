"""How Orbax finishes checkpoints on each kind of path, and what it lacks.

It lacks a way to s3://, and a public way to save small arrays whole.
"""

import os
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint._src.path import atomicity, gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from simclr_jax import paths

_COMMIT_BY_FILE = ".commit_by_file"
_COMMITTED = atomicity.COMMIT_SUCCESS_FILE


def prepare(folder: epath.Path) -> None:
    """Decides how checkpoints of a run are finished, before Orbax opens the folder.

    Args:
      folder: `checkpoints` of a run; need not be there.
    """
    if (folder / _COMMIT_BY_FILE).exists():
        return
    steps = _step_folders(folder)
    if paths.is_store(folder):
        # Checkpoints that are there already were copied from a disk, complete.
        for step in steps:
            for part in (*(p for p in step.iterdir() if p.is_dir()), step):
                (part / _COMMITTED).write_text("")
    elif steps or not paths.is_mounted_bucket(folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _COMMIT_BY_FILE).write_text("")


def temporary_path_class(folder: epath.Path) -> type[atomicity.TemporaryPathBase]:
    """How Orbax completes checkpoints in a folder `checkpoints`, and tells them."""
    if (folder / _COMMIT_BY_FILE).exists():
        return atomicity.CommitFileTemporaryPath
    return atomicity.AtomicRenameTemporaryPath


def complete_steps(folder: epath.Path) -> list[int]:
    """The steps of the complete checkpoints in a folder; none where it is not there."""
    steps = _step_folders(folder)
    if (folder / _COMMIT_BY_FILE).exists():
        steps = [step for step in steps if (step / _COMMITTED).exists()]
    return sorted(int(step.name) for step in steps)


def move_aside(checkpoint: epath.Path) -> epath.Path:
    """Renames the folder of a checkpoint so that no one takes it for one.

    Returns:
      Its new path, such as `checkpoints/35.damaged`.
    """
    number, target = 1, checkpoint.with_name(f"{checkpoint.name}.damaged")
    while target.exists():
        number += 1
        target = checkpoint.with_name(f"{checkpoint.name}.damaged{number}")
    return checkpoint.rename(target)


def _step_folders(folder: epath.Path) -> list[epath.Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.name.isdecimal()]


# Orbax hands gs:// to TensorStore and takes s3:// for a relative path. Everything else
# in it goes through epath, so these three functions are all that S3 needs.
_normalize_path = tensorstore_utils._normalize_path
_kvstore_of_gcs = gcs_utils.get_kvstore_for_gcs


def _normalized(path: str) -> str:
    return path.rstrip("/") if path.startswith("s3://") else _normalize_path(path)


def _is_on_store(directory: str) -> bool:
    return directory.startswith(("gs://", "s3://"))


# 0.5, 1, 2, 4, 8, 16 and 16 seconds apart; by itself TensorStore tries for a quarter of
# an hour, in which a save that cannot succeed holds up the run.
_RETRIES = {"max_retries": 7, "initial_delay": "500ms", "max_delay": "16s"}


def _kvstore(path: str) -> dict[str, Any]:
    if not path.startswith("s3://"):
        return {**_kvstore_of_gcs(path), "gcs_request_retries": _RETRIES}
    bucket, _, key = path.removeprefix("s3://").partition("/")
    spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": key}
    spec["s3_request_retries"] = _RETRIES
    # The variables that boto reads, and so s3fs.
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    options = {"aws_region": region, "endpoint": url}
    return spec | {name: value for name, value in options.items() if value}


tensorstore_utils._normalize_path = _normalized
tensorstore_utils._use_gcs_driver = _is_on_store
gcs_utils.get_kvstore_for_gcs = _kvstore

# Orbax saves a replicated array in parts, one by each of its devices, and compiles a
# program for each shape to cut them out: 8 s of the first save for a ResNet-18 on eight
# devices. Below this size of a part one device saves the array whole.
_LEAST_PART_BYTES = 1 << 20
_arrays = ocp.type_handlers.get_type_handler(jax.Array)
_arrays._min_slice_bytes_for_replica_parallel = _LEAST_PART_BYTES
