"""How a run stands, in one line, with the figures that say most."""

import dataclasses
import math
from collections.abc import Sequence

from simclr_jax.report.run_files import RunFiles
from simclr_jax.runs.health import HEALTHY, TOO_EARLY
from simclr_jax.runs.metrics_writer import format_secs


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of the summary.

    Attributes:
      name: what it is.
      value: with its unit.
      detail: what it compares with; may be ''.
    """

    name: str
    value: str
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Status:
    """How a run stands.

    Attributes:
      kind: 'good', 'running', 'warning' or 'bad'; of the mark beside the headline.
      headline: such as 'Finished: 100 of 100 steps'.
      details: what to know about it, a line each.
      figures: the newest ones.
    """

    kind: str
    headline: str
    details: Sequence[str]
    figures: Sequence[Figure]


def of_run(run: RunFiles) -> Status:
    """The status of a run as it was read."""
    step, total = done_steps(run), run.config.schedule.train_steps
    of_total = f"{step:,} of {total:,} steps" if total else f"{step:,} steps"
    resumes = "The same command resumes from its newest checkpoint."
    details = []
    if total and max(run.checkpoints.steps, default=0) >= total:
        kind, headline = "good", f"Finished: {of_total}"
    elif run.holder and run.holder[1]:
        kind, headline = "running", f"Running: {of_total}"
        details.append(f"Held by {run.holder[0]}.")
    elif run.holder:
        kind, headline = "bad", f"Ended without a word: {of_total}"
        details.append(f"{run.holder[0]} is gone, as after a crash. {resumes}")
    elif not len(run.metrics.steps):
        kind, headline = "warning", "No step was logged"
        if run.checkpoints.steps:
            details.append("It has weights, as those of imported ones.")
    elif total and step >= total:  # the last step is logged before it is saved
        kind, headline = "warning", f"No checkpoint of the last step: {of_total}"
        details.append(f"Unless it was deleted since, it was not saved. {resumes}")
    else:
        kind, headline = "warning", f"Stopped: {of_total}"
        details.append(resumes)
    health = _health(run)
    if kind == "good" and health not in ("", HEALTHY, TOO_EARLY):
        kind = "warning"
    if health:
        details.append(f"Health: {health}")
    details += _not_finite(run)
    return Status(kind, headline, details, _figures(run))


def done_steps(run: RunFiles) -> int:
    """The newest step that was logged or saved."""
    return max([run.metrics.last_step, *run.checkpoints.steps])


def _health(run: RunFiles) -> str:
    changes = run.metrics.words.get("health")
    return changes[-1][1] if changes else ""


def _not_finite(run: RunFiles) -> list[str]:
    found = {
        name: step
        for name, curve in run.metrics.curves.items()
        if (step := curve.first_not_finite()) is not None
    }
    return [
        f"{name} is not finite, first at step {step:,}."
        for name, step in sorted(found.items(), key=lambda item: item[1])[:3]
    ]


def held_out_rows(run: RunFiles) -> list[tuple[int, str]]:
    """(step, held-out kNN) of the checkpoints that were measured."""
    curve = run.metrics.curves.get("held_out_knn")
    if curve is None:
        return []
    figures = dict(zip(curve.steps.tolist(), curve.values.tolist(), strict=True))
    return [
        (step, _share(figures[step]))
        for step in run.checkpoints.steps
        if step in figures
    ]


# (name, metric)
_SHARES = (
    ("Contrastive accuracy", "contrastive_accuracy"),
    ("Accuracy", "accuracy"),
    ("Agrees with the teacher", "teacher_agreement"),
    ("Held-out kNN", "held_out_knn"),
    ("Held-out probe", "held_out_probe"),
    ("Online probe", "probe_accuracy"),
)


def _figures(run: RunFiles) -> list[Figure]:
    metrics, figures = run.metrics, []
    loss, chance = metrics.last("loss"), metrics.last("chance")
    if loss is not None:
        share = f"{loss / chance:.0%} of chance {chance:.2f}" if chance else ""
        figures.append(Figure("Loss", _number(loss), share))
    for name, metric in _SHARES:
        value = metrics.last(metric)
        if value is not None:
            figures.append(Figure(name, _share(value), _best_so_far(run, metric)))
    ranks = metrics.last("effective_rank_h"), metrics.last("effective_rank_z")
    if ranks[0] is not None and ranks[1] is not None:
        of_z = f"projection z: {ranks[1]:.1f}"
        figures.append(Figure("Effective rank of h", f"{ranks[0]:.1f}", of_z))
    figures += _rates(run)
    if run.bad_images.count:
        figures.append(Figure("Images not read", f"{run.bad_images.count:,}"))
    return figures


def _best_so_far(run: RunFiles, metric: str) -> str:
    """Where the best held-out figure was, unless it is the newest one."""
    curve = run.metrics.curves[metric]
    if not metric.startswith("held_out") or not (curve.values > curve.last).any():
        return ""
    best = int((curve.values == max(curve.values)).argmax())
    return f"best {_share(curve.values[best])} at step {curve.steps[best]:,}"


def _rates(run: RunFiles) -> list[Figure]:
    rates, figures = run.metrics.curves.get("images_per_sec"), []
    if rates is not None:
        # The middle one, because first steps and stalls would pull a mean.
        middle = sorted(rates.values.tolist())[len(rates.values) // 2]
        wait = run.metrics.last("input_wait_share")
        detail = f"input wait {_share(wait)}" if wait is not None else ""
        figures.append(Figure("Throughput, median", f"{middle:,.0f} images/s", detail))
    secs = run.metrics.seconds(run.config.batch.batch_size)
    if secs is not None:
        starts = len(run.metrics.starts)
        detail = f"{starts} starts" if starts > 1 else ""
        figures.append(Figure("Training time", format_secs(secs[-1]), detail))
    return figures


def _share(value: float) -> str:
    return f"{100 * value:.1f} %" if math.isfinite(value) else str(value)


def _number(value: float) -> str:
    return f"{value:.4g}"
