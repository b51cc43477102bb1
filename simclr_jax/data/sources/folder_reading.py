"""Which folders are splits, and which are classes."""

import collections
import dataclasses
from collections.abc import Set
from typing import NamedTuple

from simclr_jax.data.sources import split_names

AUTO, CLASSES, SPLITS = TOP_FOLDERS = ("auto", "classes", "splits")
# A smaller share of images beside class folders has no label; with more of them the
# folders are no classes.
_MOST_LOOSE = 0.1
_NUM_NAMED = 3


class Place(NamedTuple):
    """A folder with images directly in it.

    Attributes:
      parts: of its path; () for the root.
      size: how many images.
    """

    parts: tuple[str, ...]
    size: int


class Hints(NamedTuple):
    """How to choose another reading, for remarks.

    Attributes:
      classes: that takes all top folders as classes.
      split: that takes a top folder as a split.
    """

    classes: str
    split: str


@dataclasses.dataclass(frozen=True)
class Reading:
    """What the folders of some images are.

    Attributes:
      splits: names with their meanings, see `split_names`; {} where there are none.
      base: the folder around the splits; '' for the root.
      split_folders: whether splits are folders in `base`, not in folders of classes.
      split: of each place: its name; '' where there are no splits; None outside.
      class_names: of all splits together, sorted; None where there are fewer than two.
      class_name: of each place; None without one.
      remarks: which reading was taken where another one is possible.
    """

    splits: dict[str, str | None]
    base: str
    split_folders: bool
    split: list[str | None]
    class_names: list[str] | None
    class_name: list[str | None]
    remarks: list[str]


def read(places: list[Place], top_folders: str, hints: Hints) -> Reading:
    """Finds splits and classes.

    Splits are folders that all have names of splits, or some with names of at least
    two, below any number of folders around everything; or such folders in each class.
    Classes are the folders in a split, likewise, and are the same in all splits.

    Args:
      places: all folders with images.
      top_folders: one of `TOP_FOLDERS`; the last two whatever the folders' names.
      hints: for remarks.
    """
    remarks: list[str] = []
    found = _Splits((), 0, {})
    if top_folders == AUTO:
        found = _find_splits(places, remarks, hints)
    elif top_folders == SPLITS:
        tops, _ = _tops(places, 0)
        found = _Splits((), 0, {top: split_names.meaning(top) for top in tops})
    split, inner = zip(*map(found.separate, places), strict=True)
    groups: dict[str, list[Place]] = collections.defaultdict(list)
    for name, place in zip(split, inner, strict=True):
        if name is not None and found.names.get(name) != split_names.UNLABELED:
            groups[name].append(place)
    if top_folders == CLASSES:
        starts: dict[str, int | None] = dict.fromkeys(groups, 0)
    else:
        starts = _find_classes(groups, remarks, hints)
        if not found.names:
            _note_split_among_classes(inner, starts[""], remarks, hints)
    class_name = []
    for name, place in zip(split, inner, strict=True):
        start = None if name is None else starts.get(name)
        class_name.append(_part(place, start))
        if top_folders == AUTO and not found.names and _is_unlabelled(class_name[-1]):
            class_name[-1] = None
    names = sorted({name for name in class_name if name is not None})
    _note_cases(names, remarks)
    is_labelled = len(names) > 1
    return Reading(
        found.names,
        "/".join(found.base),
        found.at == len(found.base),
        list(split),
        names if is_labelled else None,
        class_name if is_labelled else [None] * len(class_name),
        remarks,
    )


class _Splits(NamedTuple):
    """Where splits lie: the folders around them, which part of a path, and names."""

    base: tuple[str, ...]
    at: int
    names: dict[str, str | None]

    def separate(self, place: Place) -> tuple[str | None, Place]:
        """(split of a place, the place in it)."""
        parts = place.parts
        if not self.names:
            return "", place
        if len(parts) <= self.at or parts[self.at] not in self.names:
            return None, place
        rest = parts[len(self.base) : self.at] + parts[self.at + 1 :]
        return parts[self.at], Place(rest, place.size)


def _tops(places: list[Place], depth: int) -> tuple[list[str], int]:
    """(the names at a depth, the number of images above it)."""
    tops = sorted({parts[depth] for parts, _ in places if len(parts) > depth})
    return tops, sum(size for parts, size in places if len(parts) <= depth)


def _part(place: Place, depth: int | None) -> str | None:
    within = depth is not None and len(place.parts) > depth
    return place.parts[depth] if within and depth is not None else None


def _find_splits(places: list[Place], remarks: list[str], hints: Hints) -> _Splits:
    base: tuple[str, ...] = ()
    while True:
        depth = len(base)
        tops, loose = _tops(places, depth)
        names = split_names.meanings(tops)
        different = set(names.values())
        others = [top for top in tops if top not in names]
        alone = bool(names) and not others
        # A folder 'test' beside images may be anything.
        if len(different) > 1 or (
            alone and (split_names.TRAIN in different or not loose)
        ):
            if len(different) == 1 or others:
                remarks.append(
                    f"{_listed(list(names))} {_was(names)} read as a split by name; "
                    f"{hints.classes} takes top folders as classes"
                )
            return _Splits(base, depth, {**names})
        if len(tops) != 1:
            break
        base = (*base, tops[0])
    seconds = {parts[depth + 1] for parts, _ in places if len(parts) > depth + 1}
    names = split_names.meanings(seconds)
    within = all(len(parts) > depth + 1 for parts, _ in places)
    different = set(names.values())
    if within and len(names) == len(seconds) and {*different} > {split_names.TRAIN}:
        remarks.append(
            f"{_listed(sorted(names))} in each of the classes were read as splits by "
            f"name; {hints.classes} takes everything"
        )
        return _Splits(base, depth + 1, {name: names[name] for name in sorted(names)})
    return _Splits((), 0, {})


def _find_classes(
    groups: dict[str, list[Place]], remarks: list[str], hints: Hints
) -> dict[str, int | None]:
    """For each split the part of paths that is the class; None where it has none."""
    known: set[str] = set()
    for places in groups.values():
        start = _class_depth(places, frozenset())
        known |= {*_tops(places, start)[0]} if start is not None else set()
    starts: dict[str, int | None] = {}
    for name, places in groups.items():
        start = starts[name] = _class_depth(places, known)
        where = f"{name}: " if name else ""
        tops, loose = _tops(places, 0 if start is None else start)
        if start is None:
            if loose and len(tops) > 1:
                remarks.append(
                    f"{where}{_count(loose)} beside the folders {_listed(tops)}, which "
                    f"were therefore not read as classes; {_to_classes(name, hints)}"
                )
            continue
        if start:
            around = "/".join(places[0].parts[:start])
            remarks.append(
                f"{where}{around}/ was read as a folder around the classes"
                + ("" if name else f"; {hints.classes} takes it as one class")
            )
        if loose:
            remarks.append(f"{where}{_count(loose)} beside the classes without a label")
    return starts


def _class_depth(places: list[Place], known: Set[str]) -> int | None:
    """Which part of the paths in a split is the class; None where there are none.

    Args:
      places: of the split.
      known: the classes of other splits.
    """
    total = sum(place.size for place in places)
    depth = 0
    last = ""
    while True:
        tops, loose = _tops(places, depth)
        if len(tops) > 1:
            return depth if loose < _MOST_LOOSE * total else None
        if tops and not loose:
            if tops[0] in known:
                return depth
            depth, last = depth + 1, tops[0]
            continue
        # A single folder, beside splits with classes.
        is_class = known and last and not split_names.says_nothing(last)
        return depth - 1 if is_class and not tops else None


def _note_split_among_classes(
    places: tuple[Place, ...], start: int | None, remarks: list[str], hints: Hints
) -> None:
    if start is None:
        return
    for name in split_names.meanings(_tops(list(places), start)[0]):
        what = "images without a label" if _is_unlabelled(name) else "a class"
        remarks.append(
            f"{name} was read as {what}, since folders beside it have no names of "
            f"splits; {hints.split} takes it as a split"
        )


def _note_cases(names: list[str], remarks: list[str]) -> None:
    by_case: dict[str, list[str]] = collections.defaultdict(list)
    for name in names:
        by_case[name.casefold().strip()].append(name)
    remarks += [
        f"{_listed(same)} are different classes, though their names hardly differ"
        for same in by_case.values()
        if len(same) > 1
    ]


def _is_unlabelled(name: str | None) -> bool:
    return name is not None and split_names.meaning(name) == split_names.UNLABELED


def _to_classes(split: str, hints: Hints) -> str:
    if split:
        return "move them elsewhere to have labels"
    return f"{hints.classes} takes them as classes"


def _count(images: int) -> str:
    return f"{images:,} image{' lies' if images == 1 else 's lie'}"


def _was(names: dict[str, str]) -> str:
    return "was" if len(names) == 1 else "were"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    return ", ".join(names[:_NUM_NAMED]) + more
