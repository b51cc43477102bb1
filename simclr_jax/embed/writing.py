"""From parts to the files of the command."""

import logging
import tempfile
from collections.abc import Callable, Iterator

import jax
import numpy as np

from simclr_jax import parallel
from simclr_jax.data.sources.base import Source
from simclr_jax.embed import neighbours, outputs
from simclr_jax.embed.parts import Part
from simclr_jax.errors import DataError

_LOG = logging.getLogger(__name__)
# An encoder that tells nothing apart would fill the disk with pairs.
MOST_PAIRS = 1_000_000
_NAMES_AT_A_TIME = 4096

# Begins to read the parts; names an image by its number.
_Parts = Callable[[], Iterator[Part]]
_NameOf = Callable[[int], str]


def write_all(
    output: str, source: Source, parts: _Parts, *, k: int, duplicates_above: float
) -> str:
    """Writes all files; the features come last.

    Args:
      output: the file of the features.
      source: of the images.
      parts: begins to read all parts.
      k: number of neighbours; 0 writes no lists of them.
      duplicates_above: the similarity of near-duplicates.

    Returns:
      What was written, in words.

    Raises:
      DataError: no image could be read; or a part is damaged.
      ConfigError: a file cannot be written.
    """
    broken: dict[int, str] = {}
    num_rows = width = 0
    for part in parts():
        broken |= part.broken
        num_rows += len(part.index)
        width = part.features.shape[1]
    name_of = _names(source)
    if not num_rows:
        first, reason = next(iter(broken.items()))
        raise DataError(
            f"dataset {source.name}: none of its {source.num_examples} images can be "
            f"read, such as {name_of(first)}: {reason}"
        )
    lines = [f"{num_rows:,} images, {width} features each: {output}"]
    lines += _write_broken(output, broken, name_of)
    k = min(k, num_rows - 1)
    lists = [
        outputs.companion(output, name)
        for name in (outputs.NEIGHBOURS, outputs.DUPLICATES)
    ]
    if k > 0:
        with tempfile.TemporaryDirectory(prefix="simclr_jax-") as folder:
            mapped = _mapped(f"{folder}/features", (num_rows, width), parts())
            lines += _write_neighbours(lists, mapped, name_of, k, duplicates_above)
    else:
        for path in lists:
            outputs.remove(path)
    outputs.write_features(
        output, parts, name_of=name_of, class_names=source.listing().class_names or []
    )
    return "\n".join(lines)


def _names(source: Source) -> _NameOf:
    """An image's file, or what tells it from others of its dataset."""
    read = getattr(source, "file_names", None)  # of records that hold names
    if read is None:
        return lambda index: source.describe(index).removeprefix("file ")
    names: list[str] = []
    for start in range(0, source.num_examples, _NAMES_AT_A_TIME):
        stop = min(start + _NAMES_AT_A_TIME, source.num_examples)
        names += read(np.arange(start, stop))
    return names.__getitem__


def _write_broken(output: str, broken: dict[int, str], name_of: _NameOf) -> list[str]:
    path = outputs.companion(output, outputs.BROKEN)
    if not broken:
        outputs.remove(path)  # of what is overwritten
        return []
    with outputs.table(path, ("path", "reason", "index")) as write:
        for index, reason in sorted(broken.items()):
            write(name_of(index), reason, index)
    return [f"{len(broken):,} broken images are left out: {path}"]


def _write_neighbours(
    lists: list[str],
    mapped: tuple[np.ndarray, np.ndarray],
    name_of: _NameOf,
    k: int,
    duplicates_above: float,
) -> list[str]:
    """Writes the lists of neighbours and of near-duplicates.

    Args:
      lists: their paths.
      mapped: features [N, D] and numbers of the images [N].
      name_of: names an image by its number.
      k: number of neighbours, less than N.
      duplicates_above: the similarity of near-duplicates.
    """
    num_pairs = 0
    features, index = mapped
    keys = ("path", "rank", "neighbour", "similarity", "index", "neighbour_index")
    pair_keys = ("path", "duplicate", "similarity", "index", "duplicate_index")
    mesh = parallel.create_mesh(jax.local_devices())
    with (
        outputs.table(lists[0], keys) as write,
        outputs.table(lists[1], pair_keys) as write_pair,
    ):
        for found in neighbours.search(
            features, k, duplicates_above=duplicates_above, mesh=mesh
        ):
            numbers = index[found.indices].tolist()
            for row, others in enumerate(numbers):
                own = int(index[found.first + row])
                for rank, other in enumerate(others):
                    similarity = f"{found.similarities[row, rank]:.6f}"
                    cells = name_of(own), rank + 1, name_of(other), similarity
                    write(*cells, own, other)
            room = max(0, MOST_PAIRS - num_pairs)
            num_pairs += len(found.pairs)
            pairs = index[found.pairs[:room]].tolist()
            for (one, other), similarity in zip(
                pairs, found.pair_similarities[:room].tolist(), strict=True
            ):
                names = name_of(one), name_of(other)
                write_pair(*names, f"{similarity:.6f}", one, other)
    if num_pairs > MOST_PAIRS:
        _LOG.warning(
            "%s has the first %d of %d pairs; raise --duplicates_above.",
            *(lists[1], MOST_PAIRS, num_pairs),
        )
    return [
        f"the {k} nearest of each: {lists[0]}",
        f"{num_pairs:,} pairs of similarity {duplicates_above:g} or more: {lists[1]}",
    ]


def _mapped(
    path: str, shape: tuple[int, int], parts: Iterator[Part]
) -> tuple[np.ndarray, np.ndarray]:
    """(features [N, D], index [N]) of all parts; the former in a file, not memory."""
    features = np.memmap(path, np.float32, "w+", shape=shape)
    index = np.empty(shape[0], np.int64)
    first = 0
    for part in parts:
        rows = slice(first, first + len(part.index))
        features[rows], index[rows] = part.features, part.index
        first += len(part.index)
    return features, index
