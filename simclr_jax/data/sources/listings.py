"""What a dataset consists of, to tell it from another one without reading all of it."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Larger folders are listed by sub-folder.
MOST_FILES = 4096
# Of larger arrays, equally spaced parts are hashed.
_HASHED_BYTES = 64 * 2**20
_NUM_NAMED = 3


@dataclasses.dataclass(frozen=True)
class Listing:
    """The content of a dataset, as far as it is known without reading the images.

    Attributes:
      num_examples: number of images.
      num_classes: None for unlabelled images.
      class_names: in the order of their numbers; None where they have none.
      unit: what the entries are: 'file', 'folder', 'shard' or 'array'.
      entries: by name, which says nothing of where the dataset lies: what is known of
        the content, such as a size.
    """

    num_examples: int
    num_classes: int | None
    class_names: list[str] | None
    unit: str
    entries: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """16 hex digits that two different datasets do not share."""
        # In the order of the entries, which is that of the images.
        content = json.dumps(self.as_json())
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def as_json(self) -> dict[str, Any]:
        """The inverse of `from_json`."""
        return {**dataclasses.asdict(self), "entries": dict(self.entries)}


def from_json(content: Any) -> Listing:
    """The listing of an object from JSON, which may have further keys.

    Raises:
      ValueError: it is none.
    """
    fields = [field.name for field in dataclasses.fields(Listing)]
    if not isinstance(content, dict) or not content.keys() >= {*fields}:
        raise ValueError(f"must be an object with the keys {', '.join(fields)}")
    if not isinstance(content["entries"], dict):
        raise ValueError("entries must be an object")
    return Listing(**{name: content[name] for name in fields})


def differences(old: Listing, new: Listing) -> list[str]:
    """How two datasets differ, in words; empty where they are the same."""
    found = []
    if old.num_examples != new.num_examples:
        found.append(f"{old.num_examples} -> {new.num_examples} examples")
    found += _of_classes(old, new)
    if old.unit == new.unit:
        found += _of_entries(old, new)
    elif not found:
        found.append(f"a list by {old.unit} -> by {new.unit}")
    return found


def _of_classes(old: Listing, new: Listing) -> list[str]:
    before, after = old.class_names or [], new.class_names or []
    if before and after:
        lost = [name for name in before if name not in set(after)]
        added = [name for name in after if name not in set(before)]
        found = [f"classes removed: {_listed(lost)}"] if lost else []
        found += [f"classes added: {_listed(added)}"] if added else []
        if not found and before != after:
            found = ["classes in another order"]
        return found
    if old.num_classes != new.num_classes:
        return [f"{old.num_classes or 'no'} -> {new.num_classes or 'no'} classes"]
    return []


def _of_entries(old: Listing, new: Listing) -> list[str]:
    names = {**new.entries, **old.entries}
    found = []
    for name in sorted(names):
        before, after = old.entries.get(name), new.entries.get(name)
        if after is None:
            found.append(f"{name} removed")
        elif before is None:
            found.append(f"{name} added")
        elif before != after:
            found.append(f"{name}: {before} -> {after}")
    if found:
        return [f"{old.unit} {_listed(found)}"]
    if [*old.entries] != [*new.entries]:
        return [f"{old.unit}s in another order"]
    return []


def _listed(items: Sequence[str]) -> str:
    more = len(items) - _NUM_NAMED
    return ", ".join(items[:_NUM_NAMED]) + (f" and {more} more" if more > 0 else "")


def of_files(paths: Sequence[str], sizes: np.ndarray) -> tuple[str, dict[str, str]]:
    """(unit, entries) of files below a folder.

    Args:
      paths: relative to it, in the order of their parts.
      sizes: in bytes.
    """
    if len(paths) <= MOST_FILES:
        pairs = zip(paths, sizes.tolist(), strict=True)
        return "file", {path: f"{size} bytes" for path, size in pairs}
    sizes = np.asarray(sizes, "<i8")
    entries = {}
    start = 0
    for top, group in itertools.groupby(paths, _top):
        names = [*group]
        stop = start + len(names)
        digest = hashlib.sha256("\0".join(names).encode(errors="surrogateescape"))
        digest.update(sizes[start:stop].tobytes())
        entries[top] = f"{len(names)} files {digest.hexdigest()[:16]}"
        start = stop
    return "folder", entries


def _top(path: str) -> str:
    folder, slash, _ = path.partition("/")
    return folder + slash if slash else "./"


def of_array(array: np.ndarray) -> str:
    """Shape, dtype and a hash of an array; of parts of a large one."""
    row_bytes = max(1, array.nbytes // max(1, len(array)))
    spacing = max(1, -(-array.nbytes // _HASHED_BYTES))
    digest = hashlib.sha256()
    chunk = max(1, 2**22 // row_bytes)
    chosen = array[::spacing]
    for start in range(0, len(chosen), chunk):
        digest.update(np.ascontiguousarray(chosen[start : start + chunk]).tobytes())
    shape = "x".join(map(str, array.shape))
    return f"{shape} {array.dtype} {digest.hexdigest()[:16]}"
