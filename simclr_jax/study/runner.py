"""Runs the missing cells of a study, one after the other.

Processes on several hosts can run the same study in one work directory: each takes the
cells that nobody has, by a lock in the directory, and in the end waits for the others'.
A lock whose process is gone is taken over: at once on its machine, on another one after
`ownership.EXPIRY_SECS` without a renewal. The processes of one JAX job run each cell
together, and process 0 holds its lock.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from simclr_jax.errors import RunOwned, TrainingDiverged, first_line
from simclr_jax.parallel import processes
from simclr_jax.runs import atomic, ownership
from simclr_jax.study import measures
from simclr_jax.study.cells import Cell, Folder
from simclr_jax.study.definitions import Study
from simclr_jax.study.shared import Shared
from simclr_jax.training import loop

_LOG = logging.getLogger(__name__)
_WAIT_SECS = 10.0
# In place of a cell's number.
_NONE_FREE, _ALL_DONE = -1, -2
# Whose messages about each cell would hide those of the study.
_QUIET = ("data", "evaluation", "runs", "training", "weights", "config")

# (cell, its run directory) -> what `Folder.write_result` completes it with.
RunCell = Callable[[Cell, str], dict[str, Any]]


def run(cells: Sequence[Cell], folder: Folder, run_cell: RunCell) -> int:
    """Runs the cells that have no result, until all have one.

    Args:
      cells: of a study.
      folder: of the study.
      run_cell: trains and measures one; every process of the job calls it.

    Returns:
      The number of cells that this process ran.

    Raises:
      RunStopped, RunFailed, InvalidInput: from `run_cell`; the lock is freed, and the
        same command goes on.
    """
    progress = _Progress(cells, folder)
    count, waiting = 0, False
    while True:
        with _claimed(cells, folder) as (number, owner):
            if number >= 0:
                start = time.monotonic()
                cell = cells[number]
                result = run_cell(cell, folder.run(cell))
                result["secs"] = round(time.monotonic() - start, 1)
                with processes.all_or_none():
                    if owner is not None:
                        owner.check(now=True)
                        folder.write_result(cell, result)
                        progress.tell(cell, result)
                count += 1
        if number == _ALL_DONE:
            return count
        if number == _NONE_FREE:
            if not waiting:
                _LOG.info("Waiting for cells that other processes run ...")
            time.sleep(_WAIT_SECS)
        waiting = number == _NONE_FREE


@contextlib.contextmanager
def _claimed(
    cells: Sequence[Cell], folder: Folder
) -> Iterator[tuple[int, ownership.Ownership | None]]:
    """The number of a cell without a result, while this job holds its lock.

    `_NONE_FREE` where others have the locks of all, `_ALL_DONE` where all have results.
    The lock's owner is on process 0.
    """
    number, owner = _NONE_FREE, None
    try:
        with processes.all_or_none():
            if processes.is_main():
                number, owner = _acquire(cells, folder)
        number = int(processes.gather_texts(str(number))[0])
        yield number, owner
    finally:
        if owner is not None:
            owner.release()


def _acquire(
    cells: Sequence[Cell], folder: Folder
) -> tuple[int, ownership.Ownership | None]:
    """(what `_claimed` yields as the number, the owner of the cell's lock)."""
    missing = [n for n, cell in enumerate(cells) if folder.result(cell) is None]
    # Those of others come last: it takes a while to see that they are alive.
    missing.sort(key=lambda n: folder.is_locked(cells[n]))
    for number in missing:
        lock = folder.lock(cells[number])
        atomic.make_folder(lock, flag="workdir")
        owner = ownership.Ownership(lock)
        try:
            owner.acquire()
        except RunOwned:
            continue
        # Another process may have completed it meanwhile.
        if folder.result(cells[number]) is None:
            return number, owner
        owner.release()
    return (_NONE_FREE if missing else _ALL_DONE), None


class _Progress:
    """Says how far a study is, and how long it will take this process alone."""

    def __init__(self, cells: Sequence[Cell], folder: Folder) -> None:
        self._cells, self._folder = cells, folder
        self._secs = self._work = 0.0

    def tell(self, cell: Cell, result: dict[str, Any]) -> None:
        """After each cell."""
        missing = [c for c in self._cells if self._folder.result(c) is None]
        self._secs += result["secs"]
        self._work += _work(cell)
        left = self._secs / self._work * sum(map(_work, missing))
        figures = ", ".join(
            f"{name} {100 * value:.1f} %" for name, value in result["metrics"].items()
        )
        total = len(self._cells)
        _LOG.info(
            "%d of %d cells: %s: %s (%.0f s); about %.0f minutes left",
            *(total - len(missing), total, cell.name),
            *(figures or result["diverged"], result["secs"], left / 60),
        )


def _work(cell: Cell) -> float:
    """A cell's share of the time, in no unit: its images times its encoder's size."""
    config = cell.config
    epochs = config.schedule.train_epochs
    return float(epochs * config.encoder.depth * max(config.encoder.width, 0.125))


def train_and_measure(study: Study, name: str, scale: str) -> RunCell:
    """The `RunCell` of a study.

    Args:
      study: from `cells.open_study`.
      name: its name, for the results.
      scale: for the results.
    """
    shared = Shared()

    def run_cell(cell: Cell, workdir: str) -> dict[str, Any]:
        result: dict[str, Any] = {
            "study": name,
            "scale": scale,
            "cell": cell.name,
            **{"axes": cell.point, "seed": cell.seed},
            "config_hash": cell.config_hash,
            "jax": jax.__version__,
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            **{"steps": 0, "parameters": None, "metrics": {}, "diverged": None},
        }
        with _quiet():
            job = shared.job(cell.config)
            result["steps"] = job.config.schedule.train_steps
            try:
                loop.run(job, workdir)
            except TrainingDiverged as error:
                return result | {"diverged": first_line(error)}
            figures, size = measures.measure(study, workdir, shared)
        return result | {"metrics": figures, "parameters": size}

    return run_cell


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Only warnings of the parts that train and measure."""
    loggers = [logging.getLogger(f"simclr_jax.{name}") for name in _QUIET]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
