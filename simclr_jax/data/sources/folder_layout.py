"""What a tree of files means: its images, splits and classes, and what is left out.

Pure: from paths alone, so that a disk, a store and an archive are understood alike.
"""

import collections
import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from simclr_jax.data.image_files import HOW_TO_CONVERT
from simclr_jax.data.sources import folder_reading
from simclr_jax.data.sources.base import NO_LABEL
from simclr_jax.data.sources.folder_reading import AUTO, Hints, Place
from simclr_jax.errors import printable

# Why files are left out.
HIDDEN = "hidden or of a system"
NO_IMAGE = "not named as an image"
OUTSIDE = "outside of the splits"
LINK = "a link to nothing, or to a folder around it"
HEIF = f"HEIC, HEIF or AVIF, which are not decoded here: {HOW_TO_CONVERT}"
# Of systems and tools, in lower case; beside whatever begins with a dot or '@'.
_SYSTEM = frozenset(
    {
        *("__macosx", "__pycache__", "icon\r", "network trash folder"),
        *("temporary items", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db"),
        *("desktop.ini", "$recycle.bin", "recycler", "recycled", "found.000"),
        *("system volume information", "lost+found", "lost.dir", "#recycle"),
        *("#snapshot", "~snapshot", "thumbnails", "thumbnail", "thumbs", "_thumbs"),
        *("_thumbnails", "_vti_cnf"),
    }
)
_NUM_NAMED = 3
_MOST_CLASSES_SHOWN = 10
_CONFIG_HINTS = Hints("config.data.split='.'", "config.data.split=NAME")


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name belongs to a system or a tool.

    Such as `.ipynb_checkpoints`, `._x.jpg`, `@eaDir`, `__MACOSX` and `Thumbs.db`.
    """
    return name[:1] in (".", "@") or name[:2] == "~$" or name.lower() in _SYSTEM


@dataclasses.dataclass
class LeftOut:
    """Files, or whole folders, that are no images of a dataset.

    Attributes:
      count: how many.
      names: the first of them; those of folders end in '/'.
    """

    count: int = 0
    names: list[str] = dataclasses.field(default_factory=list)

    def add(self, name: str, count: int = 1) -> None:
        """Counts one more, or all files of a folder."""
        self.count += count
        if len(self.names) < _NUM_NAMED:
            self.names.append(name)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A tree of files, understood.

    Attributes:
      numbers: of the paths that are images, ascending, int64 [n].
      labels: of each, int32 [n], -1 without one.
      class_names: in the order of their numbers, of all splits together; None where
        there are fewer than two.
      splits: names with their meanings, see `split_names`; {} where there are none.
      split: of each image, its position in `splits`, int32 [n].
      base: the folder around the splits; '' for the root.
      split_folders: whether splits are folders in `base`, not in folders of classes.
      left_out: by reason.
      remarks: which reading was taken where another one is possible.
    """

    numbers: np.ndarray
    labels: np.ndarray
    class_names: list[str] | None
    splits: dict[str, str | None]
    split: np.ndarray
    base: str
    split_folders: bool
    left_out: dict[str, LeftOut]
    remarks: list[str]

    def leave_out(self, reason: str, name: str) -> None:
        """Counts one more file that is left out."""
        self.left_out.setdefault(reason, LeftOut()).add(name)

    def names_left_out(self) -> list[str]:
        """The first of the files that are left out."""
        return [name for left in self.left_out.values() for name in left.names]

    def of_splits(self, names: Iterable[str]) -> np.ndarray:
        """Which images are in some splits, bool [n]."""
        order = list(self.splits)
        return np.isin(self.split, [order.index(name) for name in names])

    def class_counts(self, chosen: np.ndarray) -> dict[str, int]:
        """How many of some images, bool [n], are in each class."""
        labels = self.labels[chosen]
        names = self.class_names or []
        counts = np.bincount(labels[labels >= 0], minlength=len(names))
        return dict(zip(names, counts.tolist(), strict=True))

    def left_out_in_words(self) -> list[str]:
        """A line for each reason, with the names of the first files."""
        lines = []
        for reason, left in sorted(self.left_out.items()):
            named = ", ".join(map(printable, left.names))
            if named:
                more = ", ..." if left.count > len(left.names) else ""
                named = f" ({named}{more})"
            lines.append(f"left out: {left.count:,} {printable(reason)}{named}")
        return lines

    def table(self) -> str:
        """Splits, classes, images in each, and what was left out by reason."""
        rows = [("split", "images", "classes")]
        groups = {name: self.of_splits([name]) for name in self.splits}
        for name, chosen in (groups or {"-": self.split >= 0}).items():
            classes = _described(self.class_counts(chosen))
            rows.append((printable(name), f"{chosen.sum():,}", classes))
        widths = [max(len(row[i]) for row in rows) for i in range(2)]
        lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c}" for a, b, c in rows]
        lines += self.left_out_in_words()
        lines += [f"note: {printable(remark)}" for remark in self.remarks]
        return "\n".join(f"  {line}" for line in lines)


def _described(counts: dict[str, int]) -> str:
    """The classes of a split and how many images each has."""
    sizes = [count for count in counts.values() if count]
    if not sizes:
        return "no labels"
    if len(counts) <= _MOST_CLASSES_SHOWN:
        each = ", ".join(f"{printable(name)} {n:,}" for name, n in counts.items())
        return f"{len(sizes)}: {each}"
    text = f"{len(sizes):,} of {min(sizes):,} to {max(sizes):,} images"
    if missing := [printable(name) for name, count in counts.items() if not count]:
        more = ", ..." if len(missing) > _NUM_NAMED else ""
        text += f"; none of {', '.join(missing[:_NUM_NAMED])}{more}"
    return text


def understand(
    paths: Sequence[str],
    suffixes: Sequence[str],
    *,
    top_folders: str = AUTO,
    hints: Hints = _CONFIG_HINTS,
) -> Layout:
    """Finds images, splits and classes in a tree of files.

    Args:
      paths: with '/', in the order of their parts. One that ends in '/' is a hidden
        folder or a link that leads nowhere, which was not entered.
      suffixes: of images, in lower case.
      top_folders: what the top folders are, one of `folder_reading.TOP_FOLDERS`.
      hints: for remarks.
    """
    left_out: dict[str, LeftOut] = collections.defaultdict(LeftOut)
    numbers, of_folder, folders = _find_images(paths, frozenset(suffixes), left_out)
    if not numbers:
        nothing = np.zeros(0, np.int32)
        return Layout(nothing, nothing, None, {}, nothing, "", False, {**left_out}, [])
    place_of = np.array(of_folder)
    sizes = np.bincount(place_of).tolist()
    places = [
        Place(tuple(folder.split("/")) if folder else (), size)
        for folder, size in zip(folders, sizes, strict=True)
    ]
    reading = folder_reading.read(places, top_folders, hints)
    for n, (folder, size) in enumerate(zip(folders, sizes, strict=True)):
        if reading.split[n] is None:
            first = paths[numbers[of_folder.index(n)]]
            left_out[OUTSIDE].add(f"{folder}/" if folder else first, size)
    order = {name: i for i, name in enumerate(reading.splits or [""])}
    label_of = {name: i for i, name in enumerate(reading.class_names or [])}
    split_of = np.array([-1 if s is None else order[s] for s in reading.split])
    labels = [NO_LABEL if c is None else label_of[c] for c in reading.class_name]
    keep = split_of[place_of] >= 0
    place_of = place_of[keep]
    return Layout(
        np.array(numbers)[keep],
        np.array(labels, np.int32)[place_of],
        reading.class_names,
        reading.splits,
        split_of[place_of].astype(np.int32),
        reading.base,
        reading.split_folders,
        dict(left_out),
        reading.remarks,
    )


def _find_images(
    paths: Sequence[str], suffixes: frozenset[str], left_out: dict[str, LeftOut]
) -> tuple[list[int], list[int], list[str]]:
    """(numbers of the images, the number of each one's folder, the folders)."""
    numbers: list[int] = []
    of_folder: list[int] = []
    folders: dict[str, int] = {}
    last: str | None = None
    around, place = "", -1  # the hidden folder around, and the number, of the last one
    seen = set()
    for number, path in enumerate(paths):
        folder, _, name = path.rpartition("/")
        if folder != last:
            last, place = folder, -1
            around = _hidden_part(folder)
        if around:
            if around not in seen:
                seen.add(around)
                left_out[HIDDEN].add(around)
        elif not name:
            left_out[LINK].add(path)
        elif is_hidden(name):
            left_out[HIDDEN].add(path)
        elif name[name.rfind(".") :].lower() not in suffixes:
            left_out[NO_IMAGE].add(path)
        else:
            if place < 0:
                place = folders.setdefault(folder, len(folders))
            numbers.append(number)
            of_folder.append(place)
    return numbers, of_folder, list(folders)


def _hidden_part(folder: str) -> str:
    """The path of the outermost hidden folder, with '/' at its end; '' for none."""
    parts = folder.split("/") if folder else []
    for n, part in enumerate(parts):
        if is_hidden(part):
            return "/".join(parts[: n + 1]) + "/"
    return ""
