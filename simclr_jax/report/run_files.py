"""What a run directory says of its run, for the page."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from etils import epath
from ml_collections import config_dict

from simclr_jax import paths
from simclr_jax.errors import ConfigError, InvalidInput, first_line
from simclr_jax.report import metrics_log
from simclr_jax.report.metrics_log import Metrics
from simclr_jax.runs import (
    atomic,
    dataset_record,
    directory,
    metrics_writer,
    orbax_paths,
    ownership,
    plans,
    quarantine,
)

_T = TypeVar("_T")
# Bad images that the page lists; the file has all of them.
MOST_BAD_IMAGES = 200


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The checkpoints that are there.

    Attributes:
      folder: name of their folder, such as 'checkpoints_2' after a change of the batch
        size.
      steps: of the complete ones, increasing.
      damaged: names of folders that were set aside.
    """

    folder: str
    steps: Sequence[int] = ()
    damaged: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class BadImages:
    """The list of images that could not be read.

    Attributes:
      count: of all.
      rows: (record, reason, step, index) of the first ones, as they are in the file.
    """

    count: int
    rows: Sequence[tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """A run directory as it was when it was read.

    Attributes:
      workdir: the run directory.
      name: for the page; no two runs of a page share it.
      config: in this version's keys.
      metrics: what was logged.
      num_examples: images of the dataset; None where they are not recorded.
      class_names: None where they are not recorded, as without labels.
      checkpoints: that are there.
      receipts: of evaluations, by path below `eval/`.
      bad_images: of `quarantine.tsv`.
      holder: who trains in it, in words, and whether that still runs; None if nobody.
      notes: what could not be read, a line each.
    """

    workdir: str
    name: str
    config: config_dict.ConfigDict
    metrics: Metrics
    num_examples: int | None
    class_names: list[str] | None
    checkpoints: Checkpoints
    receipts: Mapping[str, dict[str, Any]]
    bad_images: BadImages
    holder: tuple[str, bool] | None
    notes: Sequence[str]

    @property
    def restarts(self) -> list[int]:
        """Steps after which the run was resumed, as far as the log tells.

        A start logs the first step after the checkpoint that it resumes from.
        """
        return [step - 1 for step in self.metrics.starts if step > 1]


def read(workdir: str, *, name: str | None = None) -> RunFiles:
    """Reads a run directory, which a training may be writing.

    Args:
      workdir: local, or on a store.
      name: for the page; the folder's by default.

    Raises:
      ConfigError: it is no run directory, or its config or log cannot be read. Other
        files that are damaged are in `notes`.
    """
    atomic.check_no_file(workdir)
    config = directory.read_config(workdir)
    folder = paths.as_path(workdir)
    notes: list[str] = []

    def unless_damaged(read_it: Callable[[], _T], otherwise: _T) -> _T:
        try:
            return read_it()
        except InvalidInput as error:
            notes.append(first_line(error))
            return otherwise

    # The lease first: a run that ends meanwhile has then written its last line.
    holder = unless_damaged(lambda: ownership.holder(workdir), None)
    metrics = metrics_log.read(folder / metrics_writer.FILE_NAME)
    if metrics.num_damaged:
        notes.append(
            f"{metrics.num_damaged:,} lines of {metrics_writer.FILE_NAME} are damaged "
            "and left out"
        )
    listing = unless_damaged(lambda: dataset_record.read(workdir), None)
    names = unless_damaged(lambda: dataset_record.class_names(workdir), None)
    return RunFiles(
        workdir=workdir,
        name=name or folder_name(workdir),
        config=config_dict.ConfigDict(config),
        metrics=metrics,
        num_examples=listing.num_examples if listing else None,
        class_names=names,
        checkpoints=unless_damaged(
            lambda: _checkpoints(workdir), Checkpoints(plans.FIRST)
        ),
        receipts=unless_damaged(lambda: _receipts(folder / "eval", notes), {}),
        bad_images=unless_damaged(
            lambda: _bad_images(folder / quarantine.FILE_NAME), BadImages(0, ())
        ),
        holder=holder,
        notes=list(dict.fromkeys(notes)),  # a file may be read twice
    )


def read_all(workdirs: Sequence[str]) -> list[RunFiles]:
    """Reads several run directories, and names them apart.

    Raises:
      ConfigError: as `read`, or a directory is named twice.
    """
    whole = [os.fspath(paths.absolute(workdir)) for workdir in workdirs]
    for workdir, path in zip(workdirs, whole, strict=True):
        if whole.count(path) > 1:
            raise ConfigError(f"--workdir={workdir}: must be named once")
    return [
        read(workdir, name=name)
        for workdir, name in zip(workdirs, _names_apart(whole), strict=True)
    ]


def folder_name(workdir: str) -> str:
    """The last part of a path."""
    return os.fspath(paths.absolute(workdir)).rstrip("/").rpartition("/")[2] or "/"


def _names_apart(whole: Sequence[str]) -> list[str]:
    """Ends of different paths, with as few parts as keep them apart."""
    split = [path.rstrip("/").split("/") for path in whole]
    for parts in range(1, max(map(len, split)) + 1):
        names = ["/".join(path[-parts:]) for path in split]
        if len({*names}) == len(names):
            return names
    return list(whole)


def _checkpoints(workdir: str) -> Checkpoints:
    folder = plans.folder_in_force(workdir)
    with atomic.one_line(f"folder {folder}: cannot be read"):
        damaged = []
        if folder.is_dir():
            names = [path.name for path in folder.iterdir()]
            damaged = sorted(name for name in names if ".damaged" in name)
        return Checkpoints(folder.name, orbax_paths.complete_steps(folder), damaged)


def _receipts(folder: epath.Path, notes: list[str]) -> dict[str, dict[str, Any]]:
    """By path below `eval/`, those of the run's own dataset first."""
    found = {}
    with atomic.one_line(f"folder {folder}: cannot be read"):
        for path in _json_files(folder):
            name = "/".join(path.parts[len(folder.parts) :])
            try:
                receipt = json.loads(path.read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                notes.append(f"receipt {name}: is no JSON ({first_line(error)})")
                continue
            if isinstance(receipt, dict) and isinstance(
                receipt.get("value"), int | float
            ):
                found[name] = receipt
            else:
                notes.append(f"receipt {name}: has no value")
    return found


def _json_files(folder: epath.Path) -> Iterator[epath.Path]:
    if not folder.is_dir():
        return
    inside = sorted(folder.iterdir(), key=lambda path: path.name)
    # Fine-tuned runs, which protocols keep below `eval/`, are not entered.
    if any(path.name == directory.CONFIG for path in inside):
        return
    # `features` holds kept features, which are large.
    inner = [path for path in inside if path.is_dir() and path.name != "features"]
    yield from (path for path in inside if path.name.endswith(".json"))
    for path in inner:
        yield from _json_files(path)


def _bad_images(path: epath.Path) -> BadImages:
    with atomic.one_line(f"file {path}: cannot be read"):
        if not path.exists():
            return BadImages(0, ())
        count, rows = 0, []
        with path.open("rb") as file:
            next(file, None)  # the header
            for line in file:
                if not line.strip(b"\0 \r\t\n"):
                    continue
                count += 1
                if count <= MOST_BAD_IMAGES:
                    cells = line.decode(errors="replace").rstrip("\n").split("\t")
                    rows.append(tuple((cells + [""] * 4)[:4]))
    return BadImages(count, rows)
