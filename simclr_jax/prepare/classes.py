"""Numbers for classes that an input names."""

import math
from collections.abc import Iterable, Sequence

from simclr_jax.data.sources.base import NO_LABEL


def in_order(names: Iterable[str]) -> list[str]:
    """Names of classes as they are numbered: numbers by value, others by letters."""
    distinct = set(names)
    try:
        values = {name: float(name) for name in distinct}
    except ValueError:
        return sorted(distinct)
    if not all(map(math.isfinite, values.values())):
        return sorted(distinct)
    return sorted(distinct, key=lambda name: (values[name], name))


def number(labels: Sequence[str | None]) -> tuple[list[int], list[str]]:
    """(the number of each label, the names of classes); -1 where there is none."""
    names = in_order(label for label in labels if label)
    numbers = {name: i for i, name in enumerate(names)}
    return [numbers[label] if label else NO_LABEL for label in labels], names
