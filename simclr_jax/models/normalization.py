"""Mean and standard deviation by which pixels in [0, 1] are normalised.

Configs, flags, weights and exports all hold the text of `canonical`: 'none',
'imagenet', or MEAN/STD with one number for all channels or three, such as '0.5/0.5'.
"""

import numbers
from typing import Any

# (means, standard deviations) of red, green and blue.
Moments = tuple[tuple[float, ...], tuple[float, ...]]

# In a config: measured once from the training images; see `training/pixel_moments.py`.
MEASURED = "dataset"
_NAMES: dict[str, Moments | None] = {
    "none": None,
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
_UNCHANGED: Moments = ((0.0,) * 3, (1.0,) * 3)
RULE = (
    "must be none, imagenet, or MEAN/STD of pixels in [0, 1], each one number or three "
    "(red, green, blue), such as 0.5/0.5 or 0.485,0.456,0.406/0.229,0.224,0.225; means "
    "from 0 to 1, standard deviations above 0 and at most 1"
)


def moments(normalization: Any) -> Moments | None:
    """The numbers of a normalisation; None if it changes nothing.

    Args:
      normalization: the text, in any of its forms, or (mean, std) as numbers. A single
        number, as in '0.5', is both.

    Raises:
      ValueError: it is none of these, or a number is out of range; gives the rule.
    """
    if isinstance(normalization, str):
        if normalization in _NAMES:
            return _NAMES[normalization]
        parts: Any = [part.split(",") for part in normalization.split("/")]
        parts = parts * 2 if len(parts) == 1 and len(parts[0]) == 1 else parts
    else:
        parts = normalization
    try:
        mean, std = map(_of_channels, parts)
    except (TypeError, ValueError) as error:
        raise ValueError(RULE) from error
    # False for NaN too.
    if not all(0 <= m <= 1 for m in mean) or not all(0 < s <= 1 for s in std):
        raise ValueError(RULE)
    return None if (mean, std) == _UNCHANGED else (mean, std)


def canonical(normalization: Any) -> str:
    """The one text of a normalisation, from any form that `moments` takes.

    Raises:
      ValueError: as `moments`.
    """
    values = moments(normalization)
    for name, named in _NAMES.items():
        if values == named:
            return name
    assert values is not None
    return "/".join(
        ",".join(map(repr, part[:1] if len({*part}) == 1 else part)) for part in values
    )


def is_valid(normalization: Any) -> bool:
    """Whether a config may hold this: a text of `moments`, or `MEASURED`."""
    if not isinstance(normalization, str):
        return False
    try:
        moments(normalization)
    except ValueError:
        return normalization == MEASURED
    return True


def _of_channels(part: Any) -> tuple[float, ...]:
    """One number or three, as texts or numbers, as three floats."""
    values = [part] if isinstance(part, str | numbers.Real) else [*part]
    if len(values) not in (1, 3):
        raise ValueError(f"{len(values)} channels")
    return tuple(float(value) for value in (values * 3)[:3])
