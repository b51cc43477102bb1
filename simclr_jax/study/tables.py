"""What a study writes of its results: figure, CSV, and a short text."""

import csv
import io
import math
import pathlib
import statistics
import tempfile
from collections.abc import Sequence

from simclr_jax import paths
from simclr_jax.runs import atomic
from simclr_jax.study import figures
from simclr_jax.study.definitions import Study
from simclr_jax.study.findings import HELD, NOT_HELD, Results, Verdict, judge

TEXT, CSV, PICTURES = "findings.md", "results.csv", ("figure.png", "figure.svg")


def check_output(output: str) -> None:
    """Makes the folder for `write`, before the work.

    Raises:
      ConfigError: it cannot be made, or takes no files.
    """
    atomic.make_folder(output, flag="output")
    atomic.check_output(f"{output}/{CSV}", flag="output")


def write(study: Study, results: Results, output: str, command: str) -> list[Verdict]:
    """Writes `findings.md`, `results.csv`, `figure.png` and `figure.svg`.

    Args:
      study: of the results.
      results: of all its cells, None for those that are missing.
      output: the folder.
      command: that made them, for the text.

    Returns:
      The verdicts on the findings.

    Raises:
      ConfigError: a file cannot be written.
    """
    atomic.make_folder(output, flag="output")
    folder = paths.as_path(output)
    verdicts = [judge(finding, results) for finding in study.findings]
    atomic.write_file(folder / CSV, as_csv(study, results))
    atomic.write_file(folder / TEXT, as_text(study, results, verdicts, command))
    # matplotlib writes local files only.
    with tempfile.TemporaryDirectory() as local:
        pictures = [str(pathlib.Path(local) / name) for name in PICTURES]
        figures.draw(study, results, pictures)
        with atomic.one_line(f"--output={output}: cannot be written"):
            for picture in map(pathlib.Path, pictures):
                (folder / picture.name).write_bytes(picture.read_bytes())
    return verdicts


def as_csv(study: Study, results: Results) -> str:
    """One row for each cell and seed; fields of cells without a result are empty."""
    axes = [axis.name for axis in study.axes]
    metrics = list(study.metrics)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(
        ["cell", *axes, "seed", "state", *metrics, "steps", "secs", "parameters"]
    )
    for cell, result in results:
        state = "missing" if result is None else "done"
        found = result or {}
        if found.get("diverged"):
            state = "diverged"
        values = [found.get("metrics", {}).get(name) for name in metrics]
        rows.writerow(
            [
                cell.name,
                *(cell.point[axis] for axis in axes),
                *(cell.seed, state),
                *("" if value is None else f"{value:.6f}" for value in values),
                *(found.get(key, "") for key in ("steps", "secs", "parameters")),
            ]
        )
    return text.getvalue()


def as_text(
    study: Study, results: Results, verdicts: Sequence[Verdict], command: str
) -> str:
    """The generated page: setting, cuts, findings with their verdicts, figures."""
    done = sum(result is not None for _, result in results)
    diverged = sum(bool(result and result["diverged"]) for _, result in results)
    secs = [result["secs"] for _, result in results if result]
    devices = sorted({r["devices"] for _, r in results if r})
    state = f"{done} of {len(results)} trainings are complete"
    if diverged:
        state += f", {diverged} of them diverged and count as missing"
    state += "."
    if secs:
        # Not the sum: some may have been paused.
        state += (
            f" One with its evaluation takes {statistics.median(secs):.0f} s (median) "
            f"on {', '.join(devices)}."
        )
    lines = [
        f"# {study.title}",
        "",
        f"After {study.source}; written by",
        "",
        f"```bash\n{command}\n```",
        "",
        state,
        "",
        "![Figure](figure.png)",
        "",
        "## Findings of the paper at this scale",
        "",
        *_counts(verdicts),
        "",
        "| finding | paper | difference in points, 95 % interval | seeds | verdict |",
        "|---|---|---:|---:|---|",
        *(_row(verdict) for verdict in verdicts),
        "",
        "Differences are paired by seed; the interval is Student's over seeds, and "
        "each finding is judged alone. Held: the interval lies above 0, or within the "
        "bounds that the finding names. Not held: below 0, or outside of them.",
        "",
        "## Cut against the paper",
        "",
        *(f"- {sentence}" for sentence in study.cut or ("Nothing but seeds.",)),
        "",
        "## Figures",
        "",
        *_means(study, results),
    ]
    return "\n".join(lines) + "\n"


def _counts(verdicts: Sequence[Verdict]) -> list[str]:
    held = sum(v.word == HELD for v in verdicts)
    not_held = sum(v.word == NOT_HELD for v in verdicts)
    undecided = len(verdicts) - held - not_held
    return [f"{held} held, {not_held} not held, {undecided} undecided."]


def _row(verdict: Verdict) -> str:
    finding = verdict.finding
    return (
        f"| {finding.text} | {finding.source} | {shown(verdict)} | "
        f"{verdict.num_seeds} | **{verdict.word}** |"
    )


def shown(verdict: Verdict) -> str:
    """The difference and its interval, in points."""
    if math.isnan(verdict.estimate):
        return "cells are missing"
    estimate = f"{100 * verdict.estimate:+.1f}"
    if math.isinf(verdict.low):
        return f"{estimate}, no interval"
    return f"{estimate} ({100 * verdict.low:+.1f} to {100 * verdict.high:+.1f})"


def _means(study: Study, results: Results) -> list[str]:
    """A table of means with half their intervals, a row for each point."""
    axes = [axis.name for axis in study.axes]
    by_metric = {m: figures.summary(results, m, axes) for m in study.metrics}
    titles = [*(axis.label for axis in study.axes), *study.metrics.values()]
    lines = [
        f"| {' | '.join(titles)} |",
        f"|{'---|' * len(axes)}{'---:|' * len(study.metrics)}",
    ]
    for point in study.points():
        key = tuple(point[name] for name in axes)
        shown = []
        for found in by_metric.values():
            mean, half, count = found.get(key, (math.nan, 0.0, 0))
            shown.append(f"{mean:.1f}" + (f" ± {half:.1f}" if count > 1 else ""))
        labels = [str(axis.choice(point[axis.name])) for axis in study.axes]
        lines.append(f"| {' | '.join([*labels, *shown])} |".replace("nan", "-"))
    return lines
