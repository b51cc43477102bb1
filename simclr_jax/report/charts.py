"""The charts of the page: which curves, with which words and units."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from simclr_jax.report import names
from simclr_jax.report.metrics_log import Curve, rounded
from simclr_jax.report.run_files import RunFiles

# Points of a curve; fewer where many runs share the page.
_MOST_POINTS, _MOST_POINTS_OF_ALL = 2000, 8000
# Of the table from steps to time, which the page interpolates.
_CLOCK_POINTS = 400
# More than this many checkpoints would hide the curves.
_MOST_MARKS = 40


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart over steps.

    Attributes:
      name: its anchor.
      title: with the unit.
      series: (metric, words), the first one drawn solid and the others dashed.
      form: of values, in d3's notation; '%' makes an axis of percent.
      note: how to read it.
      log: whether the axis is logarithmic, where no value is negative.
    """

    name: str
    title: str
    series: tuple[tuple[str, str], ...]
    form: str = ".4~g"
    note: str = ""
    log: bool = False


_TRAINING = (
    Chart(
        "loss",
        "Loss and chance",
        (("loss", "loss"), ("chance", "chance")),
        note="Chance is the loss of an encoder that tells no two images apart.",
    ),
    Chart(
        "accuracy",
        "Contrastive accuracy",
        (("contrastive_accuracy", "contrastive accuracy"),),
        ".1%",
        "How often view 1 is nearest to its own image's view 2.",
    ),
    # Of fine-tuning and distillation.
    Chart(
        "classifier",
        "Classifier on training images",
        (("accuracy", "accuracy"), ("teacher_agreement", "as the teacher")),
        ".1%",
        "How often its class is the label, or the teacher's.",
    ),
    Chart(
        "similarity",
        "Cosine similarity of views",
        (
            ("positive_similarity", "positive: one image"),
            ("negative_similarity", "negative: two images"),
        ),
        ".3f",
        "The two should part; both near 1 is a collapse.",
    ),
    Chart(
        "rank",
        "Effective rank",
        (
            ("effective_rank_h", "representation h"),
            ("effective_rank_z", "projection z"),
        ),
        ".1f",
        "The effective number of directions in use.",
    ),
    Chart(
        "entropy",
        "Contrastive entropy (nats)",
        (("contrastive_entropy", "entropy"),),
        ".3f",
    ),
    Chart(
        "learning-rate", "Learning rate", (("learning_rate", "learning rate"),), ".3~g"
    ),
    Chart(
        "gradient-norm",
        "Gradient and update norm",
        (("gradient_norm", "gradient"), ("update_norm", "update")),
        ".3~g",
        log=True,
    ),
    Chart(
        "throughput",
        "Throughput (images/s)",
        (("images_per_sec", "images/s"),),
        ",.4~g",
        "The first step of a start is mostly compilation.",
    ),
    Chart(
        "input-wait",
        "Input wait (share of time)",
        (("input_wait_share", "input wait"),),
        ".1%",
    ),
)
# Where no run has a chance level.
_LOSS = Chart("loss", "Loss", (("loss", "loss"),))
_HELD_OUT = (
    Chart(
        "held-out",
        "Held-out accuracy",
        (("held_out_knn", "kNN"), ("held_out_probe", "online probe")),
        ".2%",
        "Images that were not trained on; the best of many figures is too good.",
    ),
    Chart(
        "probe",
        "Online probe on training images",
        (("probe_accuracy", "accuracy"),),
        ".1%",
        "A linear classifier on stop-gradient h.",
    ),
)
_SHOWN = {
    metric for chart in (*_TRAINING, *_HELD_OUT) for metric, _ in chart.series
} | {
    "loss_of_chance",  # its two parts are drawn
}


@dataclasses.dataclass(frozen=True)
class Group:
    """Charts under one heading.

    Attributes:
      name: its anchor.
      title: the heading.
      charts: those that have a curve.
      is_open: False for what few readers need.
    """

    name: str
    title: str
    charts: Sequence[Chart]
    is_open: bool = True


def groups(runs: Sequence[RunFiles]) -> list[Group]:
    """The charts of the metrics that any run has logged."""
    logged = {name for run in runs for name in run.metrics.curves}
    others = tuple(
        Chart(f"metric-{number}", name.replace("_", " "), ((name, name),))
        for number, name in enumerate(sorted(logged - _SHOWN))
        if _varies(runs, name)
    )
    loss = _TRAINING[0] if "chance" in logged else _LOSS
    found = [
        Group("training", "Training", _with_curves((loss, *_TRAINING[1:]), logged)),
        Group(
            "held-out-figures", "Held out and probe", _with_curves(_HELD_OUT, logged)
        ),
        Group("other-metrics", "Other metrics", others, is_open=False),
    ]
    return [group for group in found if group.charts]


def _with_curves(charts: Sequence[Chart], logged: set[str]) -> list[Chart]:
    """The charts, and of each the series, of what was logged."""
    kept = [
        dataclasses.replace(
            chart,
            series=tuple(one for one in chart.series if one[0] in logged),
        )
        for chart in charts
    ]
    return [chart for chart in kept if chart.series]


def _varies(runs: Sequence[RunFiles], name: str) -> bool:
    """Whether a metric says something: a constant 0, as of bad images, does not."""
    curves = [run.metrics.curves[name] for run in runs if name in run.metrics.curves]
    return any(bool((curve.values != 0).any()) for curve in curves)


def as_json(runs: Sequence[RunFiles], found: Sequence[Group]) -> dict[str, Any]:
    """What the page's script draws: `templates/report.js` explains the names."""
    most = max(200, min(_MOST_POINTS, _MOST_POINTS_OF_ALL // len(runs)))
    return {
        "runs": [_run(run) for run in runs],
        "charts": [
            _chart(chart, runs, most) for group in found for chart in group.charts
        ],
    }


def _chart(chart: Chart, runs: Sequence[RunFiles], most: int) -> dict[str, Any]:
    series = list(_series(chart, runs, most))
    # A 0, as of the first update, is left out of a logarithmic axis.
    is_logarithmic = chart.log and all(
        y is None or y >= 0 for one in series for y in one["y"]
    )
    return {
        "id": f"chart-{chart.name}",
        "form": chart.form,
        "log": is_logarithmic,
        "series": series,
    }


def _series(
    chart: Chart, runs: Sequence[RunFiles], most: int
) -> Iterator[dict[str, Any]]:
    for number, run in enumerate(runs):
        for place, (metric, words) in enumerate(chart.series):
            curve = run.metrics.curves.get(metric)
            if curve is not None and len(curve.steps):
                yield {
                    "run": number,
                    "place": place,
                    "name": names.plot_label(
                        words if len(runs) == 1 else f"{run.name}: {words}"
                    ),
                    **_points(curve.thinned(most)),
                }


def _points(curve: Curve) -> dict[str, list[Any]]:
    return {"x": curve.steps.tolist(), "y": [*map(rounded, curve.values.tolist())]}


def _run(run: RunFiles) -> dict[str, Any]:
    """What charts show of a run beside its curves."""
    steps = [*run.checkpoints.steps]
    return {
        "last": run.metrics.last_step,
        "checkpoints": steps,
        "mark_checkpoints": len(steps) <= _MOST_MARKS,
        "restarts": run.restarts,
        "clock": _clock(run),
    }


def _clock(run: RunFiles) -> dict[str, list[Any]] | None:
    secs = run.metrics.seconds(run.config.batch.batch_size)
    if secs is None:
        return None
    count = len(secs)
    chosen = np.unique(np.linspace(0, count - 1, _CLOCK_POINTS).round().astype(int))
    return {
        "steps": [0, *run.metrics.steps[chosen].tolist()],
        "secs": [0, *(round(s, 1) for s in secs[chosen].tolist())],
    }
