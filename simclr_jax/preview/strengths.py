"""Strengths of an operation: rows of draws that apply it alone, with their labels.

An operation is what its draws make of it (`data/sampling/draws.py`), so a strength is a
row of draws. Operations need no entry here: those with settings `NAME_min` and
`NAME_max` take draw 1 between them, those with one draw have one strength, and others
are shown as some draws make them. `_BY_NAME` has those of which more can be said.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from simclr_jax.data.sampling import boxes, draws, order

_LARGEST_DRAW = np.float32(1 - 2**-24)
_JITTER_PARTS = ("brightness", "contrast", "saturation", "hue")

Settings = Mapping[str, Any]


class Sweep(NamedTuple):
    """Strengths of an operation, from the weakest on.

    Attributes:
      operation: its name.
      title: of what they are strengths.
      labels: n texts with the strengths.
      draws: float32 [n, count], of the operation.
      boxes: int32 [n, 4], of a crop; None for other operations.
    """

    operation: str
    title: str
    labels: list[str]
    draws: np.ndarray
    boxes: np.ndarray | None = None


def of_operation(name: str, settings: Settings, num: int) -> list[Sweep]:
    """The strengths of an operation other than 'crop', within its settings.

    Args:
      name: in `draws.COUNTS`.
      settings: the config's group of the operation.
      num: strengths, where the operation has a continuum of them.
    """
    if name in _BY_NAME:
        return _BY_NAME[name](settings, num)
    ranges = [key.removesuffix("_min") for key in settings if key.endswith("_min")]
    if ranges and draws.COUNTS[name] > 1:
        measure = ranges[0]
        low, high = settings[f"{measure}_min"], settings[f"{measure}_max"]
        values = np.linspace(low, high, num)
        numbers = _applied(name, num)
        numbers[:, 1] = _draws_of(values, low, high)
        return [Sweep(name, name, [f"{measure} {x:.2f}" for x in values], numbers)]
    if draws.COUNTS[name] == 1:
        return [Sweep(name, name, ["applied"], _applied(name, 1))]
    labels = [f"draw {n + 1}" for n in range(num)]
    return [Sweep(name, name, labels, _applied(name, num))]


def of_crop(shape: tuple[int, int], settings: Settings, num: int) -> list[Sweep]:
    """Crops from the smallest to the largest area, and of the allowed ratios.

    Args:
      shape: (height, width) of the image.
      settings: the config's group `crop`, without `antialias`.
      num: crops of each kind.
    """
    height, width = shape
    smallest, largest = boxes.BoxDraws(shape, **settings).areas
    areas = np.geomspace(smallest, largest, num)
    ratios = np.geomspace(settings["ratio_min"], settings["ratio_max"], num)
    none = np.zeros((num, 0), np.float32)
    by_area = [(height * math.sqrt(area), width * math.sqrt(area)) for area in areas]
    by_ratio = [(min(height, width / r), min(width, height * r)) for r in ratios]
    return [
        Sweep("crop", title, labels, none, _central(sizes, shape))
        for title, labels, sizes in (
            ("crop: area", [f"{100 * area:.0f} %" for area in areas], by_area),
            ("crop: width / height", [f"{r:.2f}" for r in ratios], by_ratio),
        )
    ]


def _central(sizes: list[tuple[float, float]], shape: tuple[int, int]) -> np.ndarray:
    """Boxes int32 [n, 4] of (height, width) in the middle of an image."""
    sides = np.maximum(np.rint(sizes), 1).astype(np.int32)
    corners = (np.array(shape, np.int32) - sides) // 2
    return np.concatenate([corners, sides], axis=1)


def _applied(name: str, num: int) -> np.ndarray:
    """Draws [num, count] as of some views, all of which the operation changes."""
    images = np.arange(num, dtype=np.uint32)
    keys = order.view_keys(images, np.zeros_like(images), seed=0, num_views=1)
    numbers = draws.view_draws(keys, (name,))[:, 0]
    numbers[:, 0] = 0  # below any probability
    return numbers


def _draws_of(values: np.ndarray | float, low: float, high: float) -> np.ndarray:
    """What `draws.between` makes these values of."""
    span = (high - low) or 1.0
    return np.clip((np.asarray(values) - low) / span, 0, _LARGEST_DRAW)


def _jitter(settings: Settings, num: int) -> list[Sweep]:
    """Each part of the jitter, the others without effect."""
    ranges = {name: v for name, v in settings.items() if name != "probability"}
    ends = draws.jitter_ranges(**ranges)
    additive = settings["brightness_mode"] == "additive"
    neutral = (0.0 if additive else 1.0, 1.0, 1.0, 0.0)
    usual = _applied("color_jitter", num)
    usual[:, 5:] = np.arange(4) / 4  # in the order of their names
    for part, value in enumerate(neutral):
        usual[:, 1 + part] = _draws_of(value, *ends[part])
    sweeps = []
    for part, name in enumerate(_JITTER_PARTS):
        values = np.linspace(*ends[part], num)
        numbers = usual.copy()
        numbers[:, 1 + part] = _draws_of(values, *ends[part])
        shape = "x {:.2f}" if neutral[part] else "{:+.2f}"
        labels = [shape.format(value + 0.0) for value in values]
        if name == "hue":
            labels = [f"{label} turns" for label in labels]
        sweeps.append(Sweep("color_jitter", name, labels, numbers))
    return sweeps


def _quarter_turns(_settings: Settings, _num: int) -> list[Sweep]:
    numbers = _applied("rotation", 4)
    numbers[:, 1] = (np.arange(4) + 0.5) / 4
    return [Sweep("rotation", "rotation", [f"{90 * n}°" for n in range(4)], numbers)]


_BY_NAME: dict[str, Callable[[Settings, int], list[Sweep]]] = {
    "color_jitter": _jitter,
    "rotation": _quarter_turns,
}
