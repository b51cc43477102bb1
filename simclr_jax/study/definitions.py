"""What a study is: a grid of configs, what is measured, a figure, and findings.

Everything here is data. To add a study, write a function that returns a `Study` and
name it in `STUDIES` (`studies.py`).
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import config_dict

# The choice of each axis, by the axis's name.
Point = dict[str, str]
Where = Callable[[Point], bool]


@dataclasses.dataclass(frozen=True)
class Choice:
    """One value of an axis.

    Attributes:
      name: in names of cells, so of letters, digits and '.', '+', '_'.
      changes: values of config keys, by dotted key.
      label: in figures; the name by default.
    """

    name: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    label: str = ""

    def __str__(self) -> str:
        return self.label or self.name


@dataclasses.dataclass(frozen=True)
class Axis:
    """What a study varies: name in the table, label in figures, and its values."""

    name: str
    label: str
    choices: tuple[Choice, ...]

    def choice(self, name: str) -> Choice:
        """The choice of a name."""
        return next(choice for choice in self.choices if choice.name == name)


def key_axis(name: str, label: str, key: str, values: tuple[Any, ...]) -> Axis:
    """An axis of one config key."""
    choices = (Choice(f"{value:g}", {key: value}) for value in values)
    return Axis(name, label, tuple(choices))


@dataclasses.dataclass(frozen=True)
class Term:
    """A part of a contrast: a weight times the mean of a metric over some cells."""

    weight: float
    where: Where
    metric: str = "linear"


@dataclasses.dataclass(frozen=True)
class Finding:
    """A statement of a paper, and what to compute of the cells to test it.

    The contrast, the sum of its terms, is computed for each seed. The statement says
    that it is positive, or that it is close to 0.

    Attributes:
      text: the statement, in our words.
      source: table, figure or section of the paper.
      contrast: the terms.
      within: where the statement says 'makes no difference': the largest difference
        that counts as none.
    """

    text: str
    source: str
    contrast: tuple[Term, ...]
    within: float | None = None


def difference(
    high: Where, low: Where, high_metric: str = "linear", low_metric: str = "linear"
) -> tuple[Term, ...]:
    """The contrast of the mean of some cells above that of others."""
    return (Term(1.0, high, high_metric), Term(-1.0, low, low_metric))


def where(**chosen: str | tuple[str, ...]) -> Where:
    """Cells with these choices, one or several for each axis that is named."""
    allowed = {
        axis: names if isinstance(names, tuple) else (names,)
        for axis, names in chosen.items()
    }
    return lambda point: all(point[axis] in names for axis, names in allowed.items())


@dataclasses.dataclass(frozen=True)
class Figure:
    """The figure of a study; error bars are intervals over its seeds.

    Attributes:
      kind: a key of `figures.KINDS`.
      x: an axis; 'metric' for the metrics of the study, 'parameters' for the size of
        the encoder.
      series: axes whose choices share the figure, or 'metric'.
      label: of the figure's values.
    """

    kind: str
    x: str
    series: tuple[str, ...] = ()
    label: str = "Linear evaluation, top-1 (%)"


@dataclasses.dataclass(frozen=True)
class Study:
    """A study at one scale.

    Attributes:
      title: of figure and text.
      source: the figure or table of the paper.
      axes: whose product is the grid.
      measure: a key of `measures.MEASURES`.
      metrics: that it returns, by name, with their labels.
      figure: to draw.
      findings: to judge.
      base: the config that cells change, with the study's own settings.
      cut: what differs from the paper at this scale, one sentence each.
      keep: the points of the product that are cells; all by default.
      derive: further changes of a point, where axes act together.
      protocol: that measures a representation, a key of `evaluation.protocols`.
      settings: of the measure.
      num_seeds: of each point.
    """

    title: str
    source: str
    axes: tuple[Axis, ...]
    figure: Figure
    findings: tuple[Finding, ...]
    base: config_dict.ConfigDict
    cut: tuple[str, ...]
    measure: str = "accuracy"
    metrics: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: {"linear": "h, linear evaluation", "knn": "h, kNN"}
    )
    keep: Where = lambda point: True
    derive: Callable[[Point], dict[str, Any]] = lambda point: {}
    protocol: str = "linear"
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    num_seeds: int = 3

    def points(self) -> Iterator[Point]:
        """The points of the grid that are cells."""
        names = [axis.name for axis in self.axes]
        for choices in itertools.product(*(axis.choices for axis in self.axes)):
            point = dict(zip(names, (c.name for c in choices), strict=True))
            if self.keep(point):
                yield point

    def changes(self, point: Point) -> dict[str, Any]:
        """Values of config keys at a point."""
        changes: dict[str, Any] = {}
        for axis in self.axes:
            changes |= axis.choice(point[axis.name]).changes
        return changes | self.derive(point)

    def varied_keys(self) -> set[str]:
        """The config keys that the study varies."""
        return {key for point in self.points() for key in self.changes(point)}
