"""Names of inputs: several ones, globs, and braces `{a,b}`, `{0000..0099}`."""

import glob
import itertools
import os
import re
from collections.abc import Iterable, Iterator

from simclr_jax.data.sources import object_store, storage
from simclr_jax.errors import DataError

_MOST_NAMES = 1_000_000
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def split_inputs(text: str) -> list[str]:
    """The inputs of `--input`, with commas between them.

    Commas within braces, and of a file or folder of that very name, part nothing.
    """
    if "," not in text or (not storage.is_remote(text) and os.path.lexists(text)):
        return [text]
    found, depth = [""], 0
    for character in text:
        depth = max(0, depth + {"{": 1, "}": -1}.get(character, 0))
        if character == "," and not depth:
            found.append("")
        else:
            found[-1] += character
    return [name.strip() for name in found if name.strip()] or [text]


def absolute(text: str) -> str:
    """Inputs with absolute paths, so that a later command knows them again."""
    return ",".join(
        name if storage.is_remote(name) else os.path.abspath(os.path.expanduser(name))
        for name in split_inputs(text)
    )


def is_pattern(path: str) -> bool:
    """Whether a name has wildcards or braces."""
    return glob.has_magic(path) or _first_braces(path) is not None


def expand_braces(pattern: str) -> list[str]:
    """All names that the braces of one stand for, as in a shell.

    Args:
      pattern: such as 'shard-{0000..0099}.tar' or 'images/{cat,dog}/*.jpg'. Numbers of
        ranges keep their leading zeros; braces may be nested.

    Raises:
      DataError: there would be more than a million.
    """
    found = list(itertools.islice(_expanded(pattern), _MOST_NAMES + 1))
    if len(found) > _MOST_NAMES:
        raise _too_many(pattern)
    return found


def _expanded(text: str) -> Iterator[str]:
    place = _first_braces(text)
    if place is None:
        yield text
        return
    start, stop, choices = place
    for choice in choices:
        yield from _expanded(text[:start] + choice + text[stop:])


def _too_many(pattern: str) -> DataError:
    return DataError(f"--input={pattern}: stands for more than {_MOST_NAMES:,} names")


def _first_braces(text: str) -> tuple[int, int, list[str]] | None:
    """(start, stop, choices) of the first braces that stand for several names."""
    for start in (i for i, character in enumerate(text) if character == "{"):
        depth, choices = 0, [""]
        for stop in range(start, len(text)):
            character = text[stop]
            depth += {"{": 1, "}": -1}.get(character, 0)
            if depth == 0:
                match = _RANGE.fullmatch(choices[0])
                if len(choices) == 1 and match:
                    choices = _numbers(text, match)
                if len(choices) > 1:
                    return start, stop + 1, choices
                break
            if character == "," and depth == 1:
                choices.append("")
            elif stop > start:
                choices[-1] += character
    return None


def _numbers(text: str, match: re.Match[str]) -> list[str]:
    """What a range stands for, such as '08..10': 08, 09, 10."""
    first, last = match.groups()
    a, b = int(first), int(last)
    if abs(b - a) >= _MOST_NAMES:
        raise _too_many(text)
    padded = any(len(n) > 1 and n.startswith("0") for n in (first, last))
    width = max(len(first), len(last)) if padded else 0
    step = 1 if b >= a else -1
    return [f"{number:0{width}d}" for number in range(a, b + step, step)]


def root_of(pattern: str) -> str:
    """The folders before the first wildcard or braces."""
    return re.split(r"[^/]*[*?\[{]", pattern, maxsplit=1)[0].rstrip("/")


def matches(pattern: str) -> list[str]:
    """The files and folders that a pattern stands for; on stores files only.

    Raises:
      DataError: a name that braces spell out is not there.
      StoreFailed: a store does not answer.
    """
    names = expand_braces(pattern)
    if storage.is_remote(pattern):
        return _matching_objects(pattern, names)
    found: dict[str, None] = {}
    for name in names:
        if glob.has_magic(name) and not os.path.lexists(name):
            found |= dict.fromkeys(
                sorted(glob.iglob(name, recursive=True, include_hidden=True))
            )
        elif os.path.lexists(name):
            found[name] = None
        else:
            _refuse(pattern, name, len(names))
    return list(found)


def _matching_objects(pattern: str, names: list[str]) -> list[str]:
    listed = {item.path for item in objects_below(root_of(pattern))}
    folders: set[str] = set()
    found: dict[str, None] = {}
    for name in names:
        if glob.has_magic(name):
            expression = re.compile(as_expression(name))
            found |= dict.fromkeys(sorted(filter(expression.fullmatch, listed)))
            continue
        if name in listed:
            found[name] = None
            continue
        if not folders:
            folders = {path[:i] for path in listed for i in _slashes(path)}
        if name.rstrip("/") not in folders:
            _refuse(pattern, name, len(names))
    return list(found)


def _slashes(path: str) -> Iterator[int]:
    return (i for i, character in enumerate(path) if character == "/")


def _refuse(pattern: str, name: str, count: int) -> None:
    among = f", one of {count} that --input={pattern} names" if count > 1 else ""
    raise DataError(f"--input={name}: no such file or folder{among}")


def objects_below(root: str) -> list[object_store.Object]:
    """All objects below a folder of a store."""
    return storage.retried(root, lambda: list(object_store.list_below(root)))


def files_below(tops: Iterable[str]) -> Iterator[str]:
    """All files among some files and folders and below them, in any order."""
    for top in tops:
        if storage.is_remote(top):
            if storage.file_size(top) is not None:
                yield top
            else:
                yield from (item.path for item in object_store.list_below(top))
        elif os.path.isdir(top):
            for place, _, names in os.walk(top, followlinks=False):
                yield from (os.path.join(place, name) for name in names)
        else:
            yield top


def as_expression(pattern: str) -> str:
    """A glob as a regular expression: only `**` matches `/`."""
    parts = re.split(r"(\*\*/|\*|\?|\[[^]]+\])", pattern)
    special = {"**/": "(?:[^/]+/)*", "*": "[^/]*", "?": "[^/]"}
    found = []
    for number, part in enumerate(parts):
        if number % 2 == 0:
            found.append(re.escape(part))
        else:
            found.append(special.get(part) or part.replace("[!", "[^"))
    return "".join(found)
