"""Names of classes and images, which may hold any characters, as a page shows them.

Templates escape what HTML would obey. Here, control characters and marks that turn the
direction of a line become visible, as everywhere in this package.
"""

import html
from collections.abc import Sequence

from simclr_jax.data.sources.base import Source
from simclr_jax.errors import InvalidInput, printable
from simclr_jax.runs import dataset_record

_LONGEST = 400  # characters of a name in a page


def shown(name: str) -> str:
    """A name as text of a page, in one line."""
    text = printable(name)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def short(name: str, length: int = 24) -> str:
    """`shown`, of at most so many characters."""
    text = shown(name)
    return text if len(text) <= length else text[: length - 1] + "…"


def plot_label(name: str, length: int = 60) -> str:
    """A name for a label of Plotly, which would obey tags and entities in it.

    It must not be a part of a `hovertemplate`, which has a language of its own.
    """
    return html.escape(short(name, length), quote=False)


def of_classes(source: Source, workdir: str) -> tuple[str, ...] | None:
    """Names of a source's classes by number; None where it has no labels.

    Where the source has numbers alone, as TFDS's have, the run's record of its dataset
    may have names; otherwise they are the numbers.
    """
    count = source.num_classes
    if count is None:
        return None
    return named(source.class_names or [], count) or (
        recorded(workdir, count) or tuple(str(number) for number in range(count))
    )


def recorded(workdir: str, count: int) -> tuple[str, ...] | None:
    """The names in a run's record of its dataset, if it has so many."""
    try:
        return named(dataset_record.class_names(workdir) or [], count)
    except InvalidInput:  # damaged: the numbers are good enough
        return None


def named(names: Sequence[str], count: int) -> tuple[str, ...] | None:
    """`shown` names, if there are as many as classes."""
    # A class without a name is still one.
    found = tuple(shown(name) or "''" for name in names)
    return found if len(names) == count else None
