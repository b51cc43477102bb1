"""The plans of a run: a change of the batch size begins one, whose steps count anew.

Steps of two batch sizes do not compare: the step that a run has reached is smaller with
a larger batch, and so than those of its checkpoints. So each plan has its own folder of
checkpoints: `checkpoints`, then `checkpoints_2` and so on. A plan is in force once its
folder has a complete checkpoint, which is the converted state. That appears as a whole
or not at all, so a kill leaves the plan before or the new one, and no checkpoint of the
plan before is renamed or removed. Its logs move to the folder `plan_1`.
"""

import logging
import re

from etils import epath

from simclr_jax import paths
from simclr_jax.parallel import processes
from simclr_jax.runs import atomic, orbax_paths

_LOG = logging.getLogger(__name__)
FIRST = "checkpoints"
_NAME = re.compile(rf"{FIRST}(?:_(\d+))?")
# Writers that continue by an identifier begin a new run: their steps cannot fall.
_LOGS = ("metrics.jsonl*", "events.out.tfevents.*", "writers.json")


def is_folder(name: str) -> bool:
    """Whether a folder of this name has the checkpoints of a plan."""
    return _NAME.fullmatch(name) is not None


def number(folder: epath.Path) -> int:
    """Of the plan of a folder of checkpoints, from 1."""
    match = _NAME.fullmatch(folder.name)
    assert match is not None
    return int(match[1] or 1)


def folder_in_force(workdir: str) -> epath.Path:
    """The folder of checkpoints of a run's last plan; need not be there."""
    root = paths.absolute(workdir)
    later: list[epath.Path] = []
    if root.is_dir():
        later = [p for p in root.iterdir() if is_folder(p.name) and number(p) > 1]
    for folder in sorted(later, key=number, reverse=True):
        if orbax_paths.complete_steps(folder):
            return folder
    return root / FIRST


def next_folder(folder: epath.Path) -> epath.Path:
    """The folder of the plan after that of `folder`."""
    return folder.with_name(f"{FIRST}_{number(folder) + 1}")


def set_logs_aside(workdir: str, folder: epath.Path) -> None:
    """Moves the logs of the plan before that of `folder`; process 0 does.

    Called again after a kill, it moves what is left.

    Raises:
      ConfigError: they cannot be moved.
    """
    if not processes.is_main():
        return
    root = paths.as_path(workdir)
    aside = root / f"plan_{number(folder) - 1}"
    found = [path for pattern in _LOGS for path in root.glob(pattern)]
    with atomic.one_line(f"--workdir={workdir}: logs cannot be moved to {aside}"):
        for path in found:
            aside.mkdir(parents=True, exist_ok=True)
            if paths.is_store(path):
                (aside / path.name).write_bytes(path.read_bytes())
                path.unlink()
            else:
                path.replace(aside / path.name)
    if found:
        _LOG.info("The metrics so far are now in %s.", aside)
