"""Draws the figure of a study, in the form that the paper has it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from simclr_jax.data import optional
from simclr_jax.errors import ConfigError
from simclr_jax.runs import atomic
from simclr_jax.study.definitions import Axis, Study
from simclr_jax.study.findings import Results, interval

# Okabe and Ito's colours, which the colour-blind can tell apart, and two greys.
_COLORS = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"),
    *("#F0E442", "#7F7F7F", "#333333"),
)
_MARKERS = "osD^vPX*h"
_DPI = 150
# Below this many bars each has its figure written above it.
_MOST_LABELLED = 16

Summary = dict[tuple[str, ...], tuple[float, float, int]]


def require_matplotlib() -> None:
    """Raises ConfigError where it is not installed."""
    if not optional.is_installed("matplotlib"):
        hint = optional.install_hint("drawing", "matplotlib", extra="report")
        raise ConfigError(f"--study: {hint}")


def draw(study: Study, results: Results, paths: Sequence[str]) -> None:
    """Writes the figure; the suffix of each path is its format.

    Args:
      study: what to draw.
      results: of its cells.
      paths: local.

    Raises:
      ConfigError: a file cannot be written.
    """
    import matplotlib
    import matplotlib.figure

    figure = matplotlib.figure.Figure(layout="constrained", figsize=(6.4, 4.2))
    axes = figure.subplots()
    KINDS[study.figure.kind](study, results, figure, axes)
    seeds = len({cell.seed for cell, result in results if result})
    has_bars = seeds > 1 and study.figure.kind != "heat_map"
    bars = "; bars: 95 % intervals over seeds" if has_bars else ""
    axes.set_title(f"{study.title}\n({study.source}; {seeds} seeds{bars})", fontsize=10)
    for path in paths:
        with atomic.one_line(f"file {path}: cannot be written"):
            # The same results give the same file.
            metadata = {"Date": None} if path.endswith(".svg") else None
            with matplotlib.rc_context({"svg.hashsalt": study.title}):
                figure.savefig(path, dpi=_DPI, metadata=metadata)


def summary(results: Results, metric: str, names: Sequence[str]) -> Summary:
    """(mean, half of its interval, number of seeds) in per cent, by choices of axes.

    Args:
      results: of cells.
      metric: that is averaged.
      names: of the axes that tell cells apart. Half an interval is 0 for one seed.
    """
    values: dict[tuple[str, ...], list[float]] = {}
    for cell, result in results:
        figure = (result or {}).get("metrics", {}).get(metric)
        if figure is not None:
            key = tuple(cell.point[name] for name in names)
            values.setdefault(key, []).append(100 * figure)
    found: Summary = {}
    for key, figures in values.items():
        mean, low, high = interval(figures)
        half = (high - low) / 2
        found[key] = (mean, half if np.isfinite(half) else 0.0, len(figures))
    return found


def _axis(study: Study, name: str) -> Axis:
    return next(axis for axis in study.axes if axis.name == name)


def _series(study: Study, names: Sequence[str]) -> Iterator[tuple[tuple, str]]:
    """(choices of the axes, label) of each series, in the order of the grid."""
    seen = dict.fromkeys(tuple(p[name] for name in names) for p in study.points())
    for key in seen:
        labels = [
            str(_axis(study, name).choice(choice))
            for name, choice in zip(names, key, strict=True)
        ]
        yield key, ", ".join(labels)


def _first_metric(study: Study) -> str:
    return next(iter(study.metrics))


def _heat_map(study: Study, results: Results, figure: Any, axes: Any) -> None:
    """A symmetric map of pairs, as Figure 5, and each row's mean."""
    (row,) = study.figure.series
    choices = _axis(study, row).choices
    means = summary(results, _first_metric(study), (row, study.figure.x))
    size = len(choices)
    values = np.full((size, size + 1), np.nan)
    for i, first in enumerate(choices):
        for j, second in enumerate(choices):
            pair = (first.name, second.name)
            values[i, j] = means.get(pair, means.get(pair[::-1], (np.nan,)))[0]
        # A row with cells that are missing has no mean.
        values[i, size] = np.mean(values[i, :size])
    image = axes.imshow(np.ma.masked_invalid(values), cmap="cividis", aspect="auto")
    shown = values[np.isfinite(values)]
    middle = (shown.min() + shown.max()) / 2 if len(shown) else 0.0
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = "black" if value > middle else "white"
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", color=color)
    labels = [str(choice) for choice in choices]
    axes.set_xticks(range(size + 1), [*labels, "Average"])
    axes.set_yticks(range(size), labels)
    axes.axvline(size - 0.5, color="white", linewidth=3)
    axes.set_xlabel(_axis(study, study.figure.x).label)
    axes.set_ylabel(_axis(study, row).label)
    figure.colorbar(image, ax=axes, label=study.figure.label)


def _bars(study: Study, results: Results, figure: Any, axes: Any) -> None:
    """Groups of bars, as Figures 8 and 9."""
    _over_axis(study, results, axes, _grouped)


def _metric_bars(study: Study, results: Results, figure: Any, axes: Any) -> None:
    """Pairs of bars, for h and for g(h), as Table 3: metrics NAME_h and NAME_z."""
    names = dict.fromkeys(name.rpartition("_")[0] for name in study.metrics)
    rows = []
    for suffix, label in (("h", "h"), ("z", "g(h)")):
        found = [summary(results, f"{name}_{suffix}", ()).get(()) for name in names]
        rows.append((label, found))
    labels = [study.metrics[f"{name}_h"].rpartition(",")[0] for name in names]
    _grouped(axes, rows, [label.replace(" or ", "\nor ") for label in labels])
    axes.set_ylim(0, 108)
    axes.set_ylabel(study.figure.label)
    _legend(axes)


def _grouped(
    axes: Any,
    rows: list[tuple[str, list[tuple[float, float, int] | None]]],
    labels: list[str],
) -> None:
    """Bars side by side, with a group for each label and a bar for each row."""
    width = 0.8 / len(rows)
    few = len(rows) * len(labels) <= _MOST_LABELLED
    for number, (label, found) in enumerate(rows):
        places = [
            g + (number - (len(rows) - 1) / 2) * width
            for g, value in enumerate(found)
            if value
        ]
        present = [value for value in found if value]
        means, halves = [v[0] for v in present], [v[1] for v in present]
        color = _COLORS[number % len(_COLORS)]
        axes.bar(places, means, width * 0.94, label=label, color=color, zorder=2)
        style = {"fmt": "none", "ecolor": "black", "elinewidth": 1, "capsize": 2}
        axes.errorbar(places, means, halves, zorder=3, **style)
        for place, mean, half in zip(places, means, halves, strict=True):
            if few:
                axes.annotate(
                    f"{mean:.1f}",
                    (place, mean + half),
                    xytext=(0, 2),
                    textcoords="offset points",
                    ha="center",
                    fontsize=7,
                )
    axes.set_xticks(range(len(labels)), labels, fontsize=9)


def _lines(study: Study, results: Results, figure: Any, axes: Any) -> None:
    """A line for each series over the choices of an axis."""
    _over_axis(study, results, axes, _joined)


def _over_axis(
    study: Study, results: Results, axes: Any, draw_rows: Callable[..., None]
) -> None:
    """The first metric of each series over the choices of the figure's axis."""
    axis = _axis(study, study.figure.x)
    names = (*study.figure.series, axis.name)
    means = summary(results, _first_metric(study), names)
    rows = [
        (label, [means.get((*key, c.name)) for c in axis.choices])
        for key, label in _series(study, study.figure.series)
    ]
    draw_rows(axes, rows, [str(choice) for choice in axis.choices])
    axes.set_xlabel(axis.label)
    varied = [_axis(study, name).label for name in study.figure.series]
    _finish(study, axes)
    if varied:
        _legend(axes, ", ".join(varied))


def _metric_lines(study: Study, results: Results, figure: Any, axes: Any) -> None:
    """A line for each series over metrics 'LABEL, from LAYER', one style a layer."""
    groups: dict[str, list[str]] = {}
    for name, label in study.metrics.items():
        groups.setdefault(label.rpartition(", ")[2], []).append(name)
    for style, (suffix, metrics) in zip("-:", groups.items(), strict=False):
        rows = []
        for key, label in _series(study, study.figure.series):
            found = [summary(results, m, study.figure.series).get(key) for m in metrics]
            rows.append((f"{label} layers, {suffix}", found))
        labels = [study.metrics[m].partition(" of ")[0] for m in metrics]
        _joined(axes, rows, labels, style=style)
    axes.set_xlabel("Share of labels")
    _finish(study, axes)
    _legend(axes)


def _joined(
    axes: Any,
    rows: list[tuple[str, list[tuple[float, float, int] | None]]],
    labels: list[str],
    style: str = "-",
) -> None:
    for number, (label, found) in enumerate(rows):
        # Side by side, so that error bars do not hide each other.
        shift = 0.04 * (number - (len(rows) - 1) / 2)
        present = [(x + shift, *v[:2]) for x, v in enumerate(found) if v]
        if present:
            x, mean, half = zip(*present, strict=True)
            axes.errorbar(
                x,
                mean,
                half,
                label=label,
                linestyle=style,
                color=_COLORS[number % len(_COLORS)],
                marker=_MARKERS[number % len(_MARKERS)],
                capsize=2,
            )
    axes.set_xticks(range(len(labels)), labels)


def _points(study: Study, results: Results, figure: Any, axes: Any) -> None:
    """A point for each cell over the encoder's parameters, as Figure 7."""
    depth, width = study.figure.series
    means = summary(results, _first_metric(study), (depth, width))
    sizes: dict[tuple[str, ...], float] = {
        (cell.point[depth], cell.point[width]): result["parameters"] / 1e6
        for cell, result in results
        if result and result["parameters"]
    }
    for number, choice in enumerate(_axis(study, depth).choices):
        keys = [key for key in means if key[0] == choice.name]
        axes.errorbar(
            [sizes[key] for key in keys],
            [means[key][0] for key in keys],
            [means[key][1] for key in keys],
            label=f"ResNet-{choice}",
            color=_COLORS[number],
            marker=_MARKERS[number],
            linestyle="none",
            capsize=2,
        )
        for key in keys:
            axes.annotate(
                f"R{key[0]} ({key[1]}x)",
                (sizes[key], means[key][0]),
                xytext=(6, -3),
                textcoords="offset points",
                fontsize=8,
            )
    axes.set_xscale("log")
    axes.margins(x=0.3)
    axes.set_xlabel("Parameters of the encoder (millions)")
    _finish(study, axes)
    _legend(axes)


def _finish(study: Study, axes: Any) -> None:
    """Labels, and a range of values in which differences are seen."""
    axes.set_ylabel(study.figure.label)
    axes.grid(axis="y", color="#dddddd", zorder=0)
    if axes.patches:  # bars start at 0: cut off what all have in common
        tops = [p.get_height() for p in axes.patches]
        low = max(0.0, 5 * np.floor((min(tops) - 5) / 5))
        axes.set_ylim(low, None)


def _legend(axes: Any, title: str = "") -> None:
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            title=title or None,
            title_fontsize=9,
            fontsize=8,
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
        )


# By the name in a study's figure.
KINDS: dict[str, Callable[[Study, Results, Any, Any], None]] = {
    "heat_map": _heat_map,
    "bars": _bars,
    "lines": _lines,
    "points": _points,
    "metric_bars": _metric_bars,
    "metric_lines": _metric_lines,
}
