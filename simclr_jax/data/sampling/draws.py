"""The random numbers of a view: how many each operation takes and what they mean.

Every random operation takes its uniform numbers as an argument, on the host and on an
accelerator, so the same draws give the same view everywhere, up to rounding. Crop boxes
have draws of their own (`boxes.py`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from simclr_jax.data.sampling import order

Array = Any  # of NumPy, JAX or TensorFlow

# Uniform numbers that each operation takes. An operation's place in this table seeds
# its draws, so new operations go to the end. The draws of one operation do not depend
# on the others in a composition.
COUNTS = {
    "crop": 0,
    "flip": 1,
    "color_jitter": 9,  # whether, four factors, four numbers whose order counts
    "grayscale": 1,
    "blur": 2,  # whether, sigma
    "rotation": 2,  # whether, how far
    "cutout": 3,  # whether, where
    "noise": 4,  # whether, how much, a seed for the pixels
    "sobel": 1,
}
_LARGEST_COUNT = 16  # counters set aside for an operation
# Their draws seed generators that hosts and accelerators do not share: the pixels are
# each one's own.
OWN_NUMBERS = frozenset({"noise"})


def count(operations: Sequence[str]) -> int:
    """Uniform numbers of a view, D."""
    return sum(COUNTS[name] for name in operations)


def view_draws(key: order.Key, operations: Sequence[str]) -> Array:
    """Uniform numbers for all operations of a composition, side by side.

    Args:
      key: [...], of the views; arrays of NumPy or JAX.
      operations: names in `COUNTS`.

    Returns:
      float32 [..., D] in [0, 1).
    """
    places = list(COUNTS)
    counters = [
        places.index(name) * _LARGEST_COUNT + number
        for name in operations
        for number in range(COUNTS[name])
    ]
    each = order.Key(key.first[..., None], key.second[..., None])
    words, _ = order.threefry(
        each, np.array(counters, np.uint32), np.array([1], np.uint32)
    )
    return order.uniform(words)


def by_operation(draws: Array, operations: Sequence[str]) -> dict[str, Array]:
    """Splits [..., D] into the numbers [..., count] of each operation."""
    result, start = {}, 0
    for name in operations:
        result[name] = draws[..., start : start + COUNTS[name]]
        start += COUNTS[name]
    return result


def between(u: Array, low: float, high: float) -> Array:
    """Uniform in [low, high)."""
    return low + u * (high - low)


def jitter_ranges(
    *,
    strength: float,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    brightness_mode: str,
) -> tuple[tuple[float, float], ...]:
    """Lowest and highest brightness, contrast, saturation and hue of the jitter.

    Each range r is its number times `strength`: factors from [max(0, 1 - r), 1 + r],
    the hue from [-r, r] turns, additive brightness from [-r, r].

    Args:
      strength: multiplies the four ranges.
      brightness: range.
      contrast: range.
      saturation: range.
      hue: range.
      brightness_mode: 'multiplicative' or 'additive'.
    """

    def factors(spread: float) -> tuple[float, float]:
        return max(0.0, 1.0 - spread * strength), 1.0 + spread * strength

    def shifts(spread: float) -> tuple[float, float]:
        return -spread * strength, spread * strength

    return (
        (shifts if brightness_mode == "additive" else factors)(brightness),
        factors(contrast),
        factors(saturation),
        shifts(hue),
    )


def jitter_factors(u: Array, **ranges: Any) -> tuple[Array, ...]:
    """Brightness, contrast, saturation and hue of the jitter.

    Args:
      u: [..., 9].
      **ranges: the arguments of `jitter_ranges`.

    Returns:
      Four arrays [...].
    """
    return tuple(
        between(u[..., 1 + number], *ends)
        for number, ends in enumerate(jitter_ranges(**ranges))
    )


def jitter_order(u: Array) -> Array:
    """The numbers whose order is that of the four adjustments: [..., 9] -> [..., 4]."""
    return u[..., 5:]
