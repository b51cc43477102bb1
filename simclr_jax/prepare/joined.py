"""Several inputs as one."""

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np

from simclr_jax.data.sources import split_names
from simclr_jax.data.sources.base import NO_LABEL
from simclr_jax.errors import DataError
from simclr_jax.prepare import classes
from simclr_jax.prepare.entries import Entry, Input, Listing, list_images

_LOG = logging.getLogger(__name__)


class JoinedInput:
    """The images of several inputs; classes of one name are one class.

    Attributes beside those of `Input`:
      left_out: how many files of the inputs are no images, by suffix or reason.
    """

    packed = False

    def __init__(self, inputs: Sequence[tuple[str, Input]], *, name: str) -> None:
        """Lists the inputs.

        Args:
          inputs: paths and what is there. The paths tell the images apart; if the last
            part of each is the name of a split, they are splits.
          name: for messages.

        Raises:
          DataError: one of them holds no image, or they have one in common.
        """
        self.name = name
        self._sources = [source for _, source in inputs]
        paths = [path for path, _ in inputs]
        listings = [list_images(source) for source in self._sources]
        self.class_names = _classes(listings)
        self.left_out: Counter[str] = Counter()
        last = [path.rstrip("/").rpartition("/")[2] for path in paths]
        are_splits = all(map(split_names.meaning, last))
        self._entries: list[Entry] = []
        taken: dict[str, int] = {}
        for number, (prefix, listing) in enumerate(
            zip(_prefixes(paths), listings, strict=True)
        ):
            self.left_out.update(listing.counts_left_out())
            labels = _labels(listing, self.class_names)
            default = last[number] if are_splits else None
            splits = listing.splits or [default] * len(labels)
            for entry, label, split in zip(
                listing.entries, labels.tolist(), splits, strict=True
            ):
                path = f"{prefix}/{entry.path.lstrip('/')}"
                if taken.setdefault(path, number) != number:
                    raise DataError(
                        f"--input={name}: {path} is in {paths[taken[path]]} and in "
                        f"{paths[number]}: inputs must not lie in each other"
                    )
                place = number, entry
                self._entries.append(
                    Entry(path, entry.size, entry.time, place, label, split)
                )
            _LOG.info(
                "%s: %d images, %s%s",
                paths[number],
                len(labels),
                f"classes {_few(listing.class_names)}"
                if listing.class_names
                else "no classes of its own",
                f"; split {default}" if default and not listing.splits else "",
            )

    def entries(self) -> list[Entry]:
        """See `Input`."""
        return self._entries

    def read(self, entry: Entry) -> bytes:
        """See `Input`."""
        number, inner = entry.place
        return self._sources[number].read(inner)

    def __getstate__(self) -> dict:
        """For other processes, which have the entries that they read."""
        return {**self.__dict__, "_entries": []}


def check_distinct(paths: Sequence[str], *, name: str) -> None:
    """Raises DataError if an input is named twice."""
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise DataError(f"--input={name}: names {twice[0]} twice, must be once")


def _classes(listings: list[Listing]) -> list[str]:
    named = [listing.class_names for listing in listings if listing.class_names]
    if named and all(names == named[0] for names in named):
        return named[0]  # in their own order
    return classes.in_order(name for names in named for name in names)


def _labels(listing: Listing, names: list[str]) -> np.ndarray:
    """The labels of an input in the numbers of all, int32 [n]."""
    numbers = {name: i for i, name in enumerate(names)}
    if listing.class_names:
        own = np.array([numbers[name] for name in listing.class_names], np.int32)
        return np.where(listing.labels < 0, NO_LABEL, own[listing.labels])
    # A single folder is a class only beside others, which another input may have.
    tops = {
        entry.path.split("/")[0] if "/" in entry.path else None
        for entry in listing.entries
    }
    label = numbers.get(tops.pop() or "", NO_LABEL) if len(tops) == 1 else NO_LABEL
    return np.full(len(listing.entries), label, np.int32)


def _prefixes(paths: Sequence[str]) -> list[str]:
    """What tells inputs apart: their paths below the folder that all lie in."""
    parts = [path.rstrip("/").split("/") for path in paths]
    common = 0
    for level in zip(*(p[:-1] for p in parts), strict=False):
        if len(set(level)) > 1:
            break
        common += 1
    return ["/".join(p[common:]).lstrip("/") for p in parts]


def _few(names: list[str]) -> str:
    more = len(names) - 10
    return ", ".join(names[:10]) + (f" and {more} more" if more > 0 else "")
