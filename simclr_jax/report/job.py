"""Reads the runs, and writes the page."""

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

from etils import epath

from simclr_jax import paths
from simclr_jax.errors import ConfigError, InvalidInput, RunFailed, first_line
from simclr_jax.report import (
    charts,
    comparison,
    evaluations,
    page,
    representation,
    run_files,
    status,
)
from simclr_jax.report.run_files import RunFiles
from simclr_jax.report.sections import MISSING, Section
from simclr_jax.runs import atomic, plans

_LOG = logging.getLogger(__name__)
FILE_NAME = "report.html"


def write(workdirs: Sequence[str], output: str | None, *, images: bool = True) -> str:
    """Writes the page of one run, or of several side by side.

    Args:
      workdirs: run directories; local, or on a store.
      output: the file; `report.html` in the run directory where None.
      images: with the parts that need the dataset and the encoder.

    Returns:
      The file's path.

    Raises:
      ConfigError: a directory is no run, one is named twice, there are several and no
        `output`, or that cannot be written.
    """
    page.check_libraries()
    if output is None:
        if len(workdirs) > 1:
            raise ConfigError("--output: must be given for the page of several runs")
        output = os.path.join(workdirs[0], FILE_NAME)
    runs = run_files.read_all(workdirs)
    atomic.check_output(output, flag="output")
    parts = [_image_sections(run) if images else [] for run in runs]
    text = page.render(context(runs, parts))
    atomic.write_file(paths.as_path(output), text)
    return output


def context(
    runs: Sequence[RunFiles], image_sections: Sequence[Sequence[Section]]
) -> dict[str, Any]:
    """What `templates/page.html` gets.

    Args:
      runs: at least one.
      image_sections: of each run.
    """
    found = charts.groups(runs)
    several = len(runs) > 1
    statuses = [status.of_run(run) for run in runs]
    names = [figure.name for of_run in statuses for figure in of_run.figures]
    return {
        "title": ", ".join(run.name for run in runs),
        "made_at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "runs": runs,
        "statuses": statuses,
        "figure_names": list(dict.fromkeys(names)),
        "differences": comparison.differences(runs) if several else [],
        "groups": found,
        "plots": charts.as_json(runs, found),
        "parts": _by_title(
            [_sections(run, several=several) for run in runs], image_sections
        ),
    }


def _image_sections(run: RunFiles) -> list[Section]:
    try:
        return representation.sections(run.workdir, run.config.to_dict())
    except Exception as error:  # the rest of the page is worth having
        if not isinstance(error, InvalidInput | RunFailed):
            _LOG.exception("A part of the report failed")
        data = {"reason": first_line(error)}
        return [Section("images", "Images", MISSING, data)]


def _sections(run: RunFiles, *, several: bool) -> list[Section]:
    """The parts of the page about one run that need neither images nor encoder."""
    sections = [
        Section(
            "evaluations",
            "Evaluations",
            "evaluations.html",
            {"rows": evaluations.rows(run)},
        ),
        Section(
            "checkpoints",
            "Checkpoints and restarts",
            "checkpoints.html",
            _checkpoints(run),
        ),
    ]
    if run.bad_images.count:
        bad = {"bad": run.bad_images}
        sections.append(Section("bad-images", "Images not read", "bad.html", bad))
    config = {
        "run": run,
        "from_base": comparison.from_base(run),
        "whole": comparison.whole(run),
        "is_open": not several,
    }
    return [*sections, Section("config", "Config", "config.html", config)]


def _checkpoints(run: RunFiles) -> dict[str, Any]:
    folder = epath.Path(run.checkpoints.folder)
    return {
        "checkpoints": run.checkpoints,
        "restarts": run.restarts,
        "held_out_rows": status.held_out_rows(run),
        "earlier_plans": plans.number(folder) - 1,
    }


def _by_title(
    own: Sequence[Sequence[Section]], image_sections: Sequence[Sequence[Section]]
) -> list[dict[str, Any]]:
    """Sections of all runs by their name; those with images come first."""
    found: dict[str, dict[str, Any]] = {}
    for number in range(len(own)):
        for section in image_sections[number]:
            _add(found, number, section)
    for number in range(len(own)):
        for section in own[number]:
            _add(found, number, section)
    return list(found.values())


def _add(found: dict[str, dict[str, Any]], number: int, section: Section) -> None:
    part = found.setdefault(
        section.name, {"name": section.name, "title": section.title, "of_runs": []}
    )
    part["of_runs"].append((number, section))
