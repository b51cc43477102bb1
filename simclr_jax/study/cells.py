"""The cells of a study: their configs, and what is on disk of each.

DIR/study.json            the study, its scale and settings
DIR/cells/NAME/           the run directory of a cell, see `runs/`
DIR/cells/NAME/result.json  written as a whole once the cell is measured
DIR/locks/NAME/owner.json who runs it, see `runs/ownership.py`
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from etils import epath
from ml_collections import config_dict

from simclr_jax import paths
from simclr_jax.config import identity, resolve, rules
from simclr_jax.errors import ConfigError
from simclr_jax.evaluation import overrides as settings
from simclr_jax.runs import atomic, ownership
from simclr_jax.study import scales
from simclr_jax.study.definitions import Point, Study
from simclr_jax.study.studies import STUDIES

RESULT = "result.json"
_STUDY = "study.json"
# A number of images for which epochs of every scale are some steps: cells are checked
# before their dataset is opened.
_SOME_IMAGES = 10**6


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training of a study.

    Attributes:
      name: of its folder.
      point: the choice of each axis.
      seed: of the training.
      config: valid, not resolved.
    """

    name: str
    point: Point
    seed: int
    config: config_dict.ConfigDict

    @property
    def config_hash(self) -> str:
        """16 hex digits that identify the experiment."""
        return identity.config_hash(identity.as_json(self.config))


def open_study(name: str, scale: str, overrides: Sequence[str] = ()) -> Study:
    """A study at a scale, with overrides of its base config.

    Args:
      name: in `STUDIES`.
      scale: in `scales.SCALES`.
      overrides: 'key=value' for keys of the config that the study does not vary.

    Raises:
      ConfigError: there is no such study, scale or key, or the study varies it.
    """
    if name not in STUDIES:
        raise ConfigError(f"--study={name}: must be one of {', '.join(STUDIES)}")
    if scale not in scales.SCALES:
        raise ConfigError(f"--scale={scale}: must be one of {', '.join(scales.SCALES)}")
    study = STUDIES[name](scale)
    for override in overrides:
        key = override.partition("=")[0]
        if key in study.varied_keys() or key == "seed":
            raise ConfigError(
                f"--set={override}: the study {name} sets {key} in its cells"
            )
        # Steps, where they are set, take the place of epochs.
        epochs = f"{key.removesuffix('_steps')}_epochs"
        if key.endswith("_steps") and epochs in study.varied_keys():
            raise ConfigError(
                f"--set={override}: would override {epochs}, which the study {name} "
                "sets in its cells"
            )
    base = settings.with_any_overrides(study.base, overrides)
    return dataclasses.replace(study, base=base)


def expand(study: Study, num_seeds: int | None = None) -> list[Cell]:
    """All cells of a study, with valid configs; the seeds of a point in a row.

    Args:
      study: from `open_study`.
      num_seeds: of each point; None: as the study has it.

    Raises:
      ConfigError: the config of a cell breaks a rule; names the cell.
    """
    cells = []
    for point in study.points():
        for seed in range(num_seeds or study.num_seeds):
            name = "-".join([*point.values(), f"seed{seed}"])
            config = study.base.copy_and_resolve_references()
            with config.unlocked(), config.ignore_type():
                config.update_from_flattened_dict(study.changes(point))
                config.seed = seed
            try:
                rules.validate(config)
                resolve.resolve(config, num_examples=_SOME_IMAGES)
            except ConfigError as error:
                raise ConfigError(f"cell {name}: {error}") from error
            cells.append(Cell(name, point, seed, config))
    return cells


class Folder:
    """The files of a study in a work directory."""

    def __init__(self, workdir: str) -> None:
        """Reads and writes nothing yet."""
        self.workdir = workdir.rstrip("/")
        self._path = paths.as_path(workdir)

    def claim(self, study: str, scale: str, *, create: bool = True) -> None:
        """Makes sure that the directory is this study's; process 0 calls it.

        Args:
          study: its name.
          scale: its scale.
          create: make the directory where there is none.

        Raises:
          ConfigError: it is another study's, another scale's or another thing's.
        """
        if self.holds(study, scale):
            return
        try:
            atomic.check_free(self.workdir, flag="workdir")
        except ConfigError:
            # Another host that starts the study now may have been first.
            if self.holds(study, scale):
                return
            raise
        if create:
            atomic.make_folder(self.workdir, flag="workdir")
            text = json.dumps({"study": study, "scale": scale}, indent=2) + "\n"
            atomic.write_file(self._path / _STUDY, text)

    def holds(self, study: str, scale: str) -> bool:
        """Whether the directory is this study's; False where it is no study's.

        Raises:
          ConfigError: it is a file, or another study's or another scale's.
        """
        atomic.check_no_file(self.workdir)
        found = _read(self._path / _STUDY)
        if found is None:
            return False
        if (found.get("study"), found.get("scale")) != (study, scale):
            raise ConfigError(
                f"--workdir={self.workdir}: holds --study={found.get('study')} "
                f"--scale={found.get('scale')}; use another workdir"
            )
        return True

    def run(self, cell: Cell) -> str:
        """The run directory of a cell."""
        return f"{self.workdir}/cells/{cell.name}"

    def lock(self, cell: Cell) -> str:
        """The directory of a cell's lock."""
        return f"{self.workdir}/locks/{cell.name}"

    def is_locked(self, cell: Cell) -> bool:
        """Whether a process runs the cell, or has died in it."""
        return (paths.as_path(self.lock(cell)) / ownership.FILE_NAME).exists()

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """What was measured of a cell; None where it is not complete.

        Raises:
          ConfigError: the file is damaged, or of a cell with other settings.
        """
        path = paths.as_path(self.run(cell)) / RESULT
        result = _read(path)
        if result is not None and result.get("config_hash") != cell.config_hash:
            raise ConfigError(
                f"file {path}: is of a cell with other settings; use the same --set "
                "as before, or another workdir"
            )
        return result

    def write_result(self, cell: Cell, result: dict[str, Any]) -> None:
        """Completes a cell."""
        path = paths.as_path(self.run(cell)) / RESULT
        atomic.write_file(path, json.dumps(result, indent=2) + "\n")

    def state(self, cell: Cell) -> str:
        """'done', 'diverged', 'running', 'started' or 'missing'."""
        result = self.result(cell)
        if result is not None:
            return "diverged" if result["diverged"] else "done"
        if self.is_locked(cell):
            return "running"
        return "started" if paths.as_path(self.run(cell)).exists() else "missing"


def _read(path: epath.Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is no file."""
    with atomic.one_line(f"file {path}: cannot be read"):
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ConfigError(f"file {path}: is no valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise ConfigError(f"file {path}: must hold a JSON object")
    return value
