"""Images of more than 8 bits, scaled to 8 by the range that a dataset really uses.

A camera of 12 bits writes files of 16: divided by 65535, such images are nearly black.
The white level of a dataset is the value that becomes 255. It is measured once,
recorded, and the same for every image of the dataset and wherever the weights go.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

# Of files of 16 bits that use them all. PNG decoders agree: the upper 8 bits remain.
FULL = 65535
MOST = 2**32 - 1


class Peak(NamedTuple):
    """The largest value of an image, or of several.

    Attributes:
      value: in [0, MOST].
      fractional: whether values are floats in [0, 1].
    """

    value: float
    fractional: bool


def peak_of(values: np.ndarray) -> Peak:
    """The peak of an image.

    Raises:
      ValueError: a value is no brightness: negative, above `MOST`, infinite or NaN.
    """
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= MOST):  # of NaN and numbers both are NaN
        raise ValueError(f"has values in [{low:g}, {high:g}]: must be in [0, {MOST}]")
    return Peak(high, values.dtype.kind == "f" and high <= 1)


def of_peaks(peaks: Iterable[Peak]) -> int | None:
    """The white level of images: the least 2**bits - 1, for even bits, that holds all.

    It is 1 where all values are floats in [0, 1], and None where there is no image.
    """
    peaks = list(peaks)
    if not peaks:
        return None
    if all(peak.fractional for peak in peaks):
        return 1
    bits, top = 8, max(peak.value for peak in peaks)
    while 2**bits - 1 < top:
        bits += 2
    return 2**bits - 1


def to_8_bits(values: np.ndarray, white_level: int) -> np.ndarray:
    """Values to uint8: of 2**bits - 1 the upper 8 bits, of 1 the nearest.

    Args:
      values: integers or floats in [0, white_level], of any shape.
      white_level: becomes 255.

    Raises:
      ValueError: a value is larger, or none; or values are floats in [0, 1] where the
        white level is that of integers.
    """
    peak = peak_of(values)
    if peak.value > white_level:
        raise ValueError(
            f"has values up to {peak.value:g}, above the white level {white_level}"
        )
    if white_level == 1:
        return np.rint(values * np.float64(255)).astype(np.uint8)
    if peak.fractional and peak.value > 0:
        raise ValueError(
            f"has float values in [0, {peak.value:g}], where the white level is "
            f"{white_level}"
        )
    steps = values.astype(np.float64 if values.dtype.kind == "f" else np.uint64)
    return (steps * 256 // (white_level + 1)).astype(np.uint8)
