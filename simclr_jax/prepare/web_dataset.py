"""Sets of .tar files, with labels beside the images as in WebDataset, or without.

The files of a sample have one name up to the first dot: `0001.jpg` and `0001.cls`.
Format: https://github.com/webdataset/webdataset#the-webdataset-format.
"""

import collections
import dataclasses
import json
import logging
import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from simclr_jax.data.sources import split_names, storage
from simclr_jax.errors import DataError
from simclr_jax.prepare import archives, classes
from simclr_jax.prepare.entries import SUFFIXES, Entry, Input, list_images

_LOG = logging.getLogger(__name__)
# The first of these that the samples have is their label.
_JSON_KEYS = ("label", "cls", "class", "class_name")
_LABELS = (".cls", *(f".json {key!r}" for key in _JSON_KEYS), ".txt")
_SIDE_SUFFIXES = (".cls", ".json", ".txt")
_LONGEST_LABEL = 100  # characters
_THREADS = 8


@dataclasses.dataclass
class _Sample:
    """The files of one name.

    Attributes:
      images: what lies behind the first dot of their names, and the files.
      labels: by the members of `_LABELS` that it has.
    """

    images: list[tuple[str, Entry]] = dataclasses.field(default_factory=list)
    labels: dict[str, str] = dataclasses.field(default_factory=dict)


class TarsInput:
    """Several .tar files, or one with labels beside its images.

    Attributes beside those of `Input`:
      left_out: how many files are no images of the dataset, by reason.
    """

    packed = False

    def __init__(
        self, paths: Sequence[str], *, name: str, root: str, scratch: str
    ) -> None:
        """Lists the archives.

        Args:
          paths: of the archives, local or on a store.
          name: for messages.
          root: the folder that their names are relative to.
          scratch: a local folder for what has to be unpacked first.

        Raises:
          DataError: one is no whole .tar file, or they hold no image.
        """
        self.name = name
        start = len(root.rstrip("/")) + 1 if root else 0
        self._names = [path[start:] for path in paths]
        self._splits = _splits(self._names)
        self.left_out: collections.Counter[str] = collections.Counter()
        # Those that are not compressed stay where they are.
        with ThreadPoolExecutor(_THREADS) as pool:
            folders = [os.path.join(scratch, "tars", str(i)) for i in range(len(paths))]
            self._paths = list(
                pool.map(
                    lambda path, folder: archives.locate_tar(path, scratch=folder),
                    paths,
                    folders,
                )
            )
            scanned = list(pool.map(self._scan, range(len(paths))))
        samples = [sample for found, _ in scanned for sample in found]
        for _, left_out in scanned:
            self.left_out.update(left_out)
        source = _source_of_labels(samples)
        self._entries: list[Entry] = []
        self.class_names: list[str] = []
        if source is None:
            self._label_by_folders(self._chosen(samples))
        else:
            self._label(samples, source)
        self._say(len(samples), source)

    def entries(self) -> list[Entry]:
        """See `Input`."""
        return self._entries

    def read(self, entry: Entry) -> bytes:
        """See `Input`."""
        tar, offset = entry.place
        return storage.read_range(self._paths[tar], offset, entry.size)

    def __getstate__(self) -> dict:
        """For other processes, which have the entries that they read."""
        return {**self.__dict__, "_entries": []}

    def _scan(self, tar: int) -> tuple[list[_Sample], collections.Counter[str]]:
        """The samples of an archive, and how many files are none of theirs."""
        samples: dict[str, _Sample] = collections.defaultdict(_Sample)
        left_out: collections.Counter[str] = collections.Counter()
        for entry, content in archives.members(
            self._paths[tar], name=self._names[tar], wanted=_is_beside
        ):
            folder, base = posixpath.split(entry.path)
            key, _, rest = base.partition(".")
            suffix = os.path.splitext(base)[1].lower()
            if _is_hidden(entry.path):
                left_out["hidden"] += 1
            elif suffix in SUFFIXES:
                placed = entry._replace(place=(tar, entry.place))
                sample = samples[posixpath.join(folder, key)]
                sample.images.append((f".{rest.lower()}", placed))
            elif content is not None:
                labels, problem = _read_labels(suffix, content)
                samples[posixpath.join(folder, key)].labels.update(labels)
                if problem:
                    left_out[problem] += 1
            else:
                left_out[suffix] += 1
        return [sample for sample in samples.values() if sample.images], left_out

    def _chosen(self, samples: list[_Sample]) -> list[Entry]:
        """The image of each sample, or all where no file lies beside any."""
        if not any(sample.labels for sample in samples):
            return [entry for sample in samples for _, entry in sample.images]
        found = []
        for sample in samples:
            # 0001.jpg rather than 0001.mask.png.
            _, entry = min(sample.images, key=_order_of_images)
            found.append(entry)
            if len(sample.images) > 1:
                self.left_out["further images of a sample"] += len(sample.images) - 1
        return found

    def _label(self, samples: list[_Sample], source: str) -> None:
        labels = [sample.labels.get(source) for sample in samples]
        numbers, self.class_names = classes.number(labels)
        self._entries = [
            entry._replace(
                path=self._path(entry), label=label, split=self._splits[entry.place[0]]
            )
            for entry, label in zip(self._chosen(samples), numbers, strict=True)
        ]

    def _label_by_folders(self, chosen: list[Entry]) -> None:
        """Takes the folders inside the archives for what they are in a folder."""
        folders = [entry.path.split("/")[:-1] for entry in chosen]
        while all(folders) and len({parts[0] for parts in folders}) == 1:
            folders = [parts[1:] for parts in folders]
        if not chosen or not all(folders):
            self._entries = [
                entry._replace(
                    path=self._path(entry), split=self._splits[entry.place[0]]
                )
                for entry in chosen
            ]
            return
        # Files of several archives may have one path.
        numbered = [
            entry._replace(
                path=f"{'/'.join(parts)}/{number}/{posixpath.basename(entry.path)}",
                place=entry,
            )
            for number, (entry, parts) in enumerate(zip(chosen, folders, strict=True))
        ]
        listing = list_images(_Folders(self.name, numbered))
        self.left_out.update(listing.counts_left_out())
        self.class_names = listing.class_names or []
        splits = listing.splits or [None] * len(listing.entries)
        for entry, label, split in zip(
            listing.entries, listing.labels.tolist(), splits, strict=True
        ):
            inner = entry.place
            split = self._splits[inner.place[0]] or split
            path = self._path(inner)
            self._entries.append(inner._replace(path=path, label=label, split=split))

    def _path(self, entry: Entry) -> str:
        if len(self._names) == 1:
            return entry.path
        return f"{self._names[entry.place[0]]}/{entry.path}"

    def _say(self, num_samples: int, source: str | None) -> None:
        of_labels = f"labels from {source}" if source else "no labels beside images"
        if not source and self.class_names:
            of_labels = "classes from folders inside"
        splits = sorted({split for split in self._splits if split})
        _LOG.info(
            "%s: %d .tar files with %d samples, %d images; %s (%d classes)%s",
            self.name,
            len(self._names),
            num_samples,
            len(self._entries),
            of_labels,
            len(self.class_names),
            f"; splits by the names of files: {', '.join(splits)}" if splits else "",
        )
        unlabelled = sum(entry.label < 0 for entry in self._entries)
        if self.class_names and unlabelled:
            _LOG.warning("%s: %d images have no label", self.name, unlabelled)
        if splits and not all(self._splits):
            tars = [n for n, s in zip(self._names, self._splits, strict=True) if not s]
            _LOG.warning(
                "%s: the names of %d files, such as %s, tell no split: theirs is "
                "--split",
                self.name,
                len(tars),
                tars[0],
            )


class _Folders:
    """Files of archives, to be labelled as those of a folder are."""

    packed = False
    class_names = None

    def __init__(self, name: str, entries: list[Entry]) -> None:
        self.name = name
        self._entries = entries

    def entries(self) -> list[Entry]:
        """See `Input`."""
        return self._entries

    def read(self, entry: Entry) -> bytes:
        """Nobody reads from it."""
        raise NotImplementedError


def open_tar(path: str, *, scratch: str) -> Input:
    """One .tar file: a folder in an archive, or samples of WebDataset."""
    plain = archives.TarInput(path, scratch=scratch)
    located = archives.locate_tar(path, scratch=scratch)
    found = archives.members(located, name=path)
    if not _has_samples(member.entry.path for member in found):
        return plain
    folder = path.rpartition("/")[0]
    return TarsInput([path], name=path, root=folder, scratch=scratch)


def _has_samples(names: Iterable[str]) -> bool:
    """Whether files that may be labels have the names of images beside them."""
    images, beside = set(), set()
    for name in names:
        folder, base = posixpath.split(name)
        key = posixpath.join(folder, base.partition(".")[0])
        if os.path.splitext(base)[1].lower() in SUFFIXES:
            images.add(key)
        elif _is_beside(name):
            beside.add(key)
        if key in images and key in beside:
            return True
    return False


def _is_beside(path: str) -> bool:
    return path.lower().endswith(_SIDE_SUFFIXES)


def _is_hidden(path: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.split("/"))


def _order_of_images(image: tuple[str, Entry]) -> tuple[bool, int, str]:
    suffix, entry = image
    plain = suffix in SUFFIXES
    return not plain, SUFFIXES.index(suffix) if plain else 0, entry.path


def _read_labels(suffix: str, content: bytes) -> tuple[dict[str, str], str | None]:
    """(what a file beside an image may mean as a label, why it means none)."""
    try:
        text = content.decode("utf-8-sig").strip()
        if suffix != ".json":
            return {suffix: text}, None
        described = json.loads(text)
    except (ValueError, RecursionError):
        return {}, f"{suffix} that cannot be read"
    if not isinstance(described, dict):
        described = {"label": described}
    labels = {}
    for key in _JSON_KEYS:
        value = described.get(key)
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            labels[f".json {key!r}"] = str(value).strip()
    # An empty one says that a file is there.
    return labels or {".json": ""}, None


def _source_of_labels(samples: list[_Sample]) -> str | None:
    """The member of `_LABELS` that labels samples; None if there is none.

    Raises:
      DataError: a label of `.cls` or `.json` is no name.
    """
    for source in _LABELS:
        texts = [s.labels[source] for s in samples if s.labels.get(source)]
        if not texts:
            continue
        named = all(len(t) <= _LONGEST_LABEL and "\n" not in t for t in texts)
        if source == ".txt":
            # Labels repeat; captions hardly do.
            if named and 2 * len(set(texts)) <= len(texts):
                return source
            _LOG.info(
                "%d .txt files hold captions, which are left out (labels would be a "
                "short line each, and repeat)",
                len(texts),
            )
            continue
        if not named:
            bad = next(t for t in texts if len(t) > _LONGEST_LABEL or "\n" in t)
            raise DataError(
                f"--input: a label of {source} is {bad[:40]!r}...: must be one line of "
                f"at most {_LONGEST_LABEL} characters"
            )
        return source
    return None


def _splits(names: list[str]) -> list[str | None]:
    """The split that each file's name says, such as 'train-0001.tar' or 'val/1.tar'."""
    found: list[str | None] = []
    for name in names:
        parts = name.lower().split("/")
        split = None
        for part in parts:  # the last one counts
            words = [w for w in re.split(r"[^a-z]+", part) if split_names.meaning(w)]
            split = words[0] if words else split
        found.append(split)
    return found
