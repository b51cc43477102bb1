"""What the command does, in order: check everything, run cells, write."""

import dataclasses
import shlex
from collections.abc import Callable, Iterator, Sequence

from simclr_jax.errors import ConfigError
from simclr_jax.parallel import processes
from simclr_jax.study import cells, figures, runner, tables
from simclr_jax.study.cells import Cell, Folder


@dataclasses.dataclass(frozen=True)
class Request:
    """The flags of the command."""

    study: str
    scale: str
    workdir: str
    overrides: Sequence[str] = ()
    num_seeds: int | None = None
    chosen: Sequence[str] = ()
    only_list: bool = False
    only_figures: bool = False
    output: str | None = None

    def command(self) -> str:
        """The command that made the study, without the paths of a machine."""
        words = ["python", "-m", "simclr_jax.study"]
        words += [f"--study={self.study}", f"--scale={self.scale}", "--workdir=DIR"]
        if self.num_seeds:
            words.append(f"--seeds={self.num_seeds}")
        for override in self.overrides:
            key, _, value = override.partition("=")
            value = "TFDS_DIR" if key == "data.data_dir" else value
            words.append(f"--set={key}={value}")
        return shlex.join(words)


def run(request: Request, *, start: Callable[[], None]) -> Iterator[str]:
    """Runs, lists or draws a study; yields lines to print.

    Args:
      request: the flags.
      start: joins the other processes; called after the flags and configs are checked.

    Raises:
      ConfigError, DataError: a flag, the config of any cell, the work directory or the
        dataset cannot be used.
      RunStopped, RunFailed: a cell was stopped, or failed; the same command goes on.
    """
    study = cells.open_study(request.study, request.scale, request.overrides)
    all_cells = cells.expand(study, request.num_seeds)
    chosen = _choose(all_cells, request.chosen)
    figures.require_matplotlib()
    folder = Folder(request.workdir)
    only_reads = request.only_list or request.only_figures
    if not only_reads:
        start()
    with processes.all_or_none():
        if processes.is_main():
            if request.only_figures and not folder.holds(request.study, request.scale):
                raise ConfigError(
                    f"--only_figures: there is no study in --workdir={request.workdir}"
                )
            if request.output and not request.only_list:
                tables.check_output(request.output)
            folder.claim(request.study, request.scale, create=not only_reads)
            states = [folder.state(cell) for cell in all_cells]
    if request.only_list:
        width = max(len(cell.name) for cell in all_cells)
        for cell, state in zip(all_cells, states, strict=True):
            yield f"{cell.name:<{width}}  {state}"
        return
    if not request.only_figures:
        run_cell = runner.train_and_measure(study, request.study, request.scale)
        runner.run(chosen, folder, run_cell)
    if not processes.is_main():
        return
    results = [(cell, folder.result(cell)) for cell in all_cells]
    output = request.output or request.workdir
    for verdict in tables.write(study, results, output, request.command()):
        yield f"{verdict.word:<9}  {tables.shown(verdict)}: {verdict.finding.text}"
    yield f"wrote {', '.join([tables.TEXT, tables.CSV, *tables.PICTURES])} in {output}"


def _choose(all_cells: Sequence[Cell], names: Sequence[str]) -> Sequence[Cell]:
    """The cells of these names; all without names."""
    by_name = {cell.name: cell for cell in all_cells}
    for name in names:
        if name not in by_name:
            raise ConfigError(
                f"--cell={name}: must be one of the {len(by_name)} cells that --list "
                f"prints, such as {all_cells[0].name}"
            )
    return [by_name[name] for name in names] if names else all_cells
