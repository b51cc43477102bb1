"""Which images go into which shard of a prepared dataset, in which order."""

import dataclasses

import numpy as np

from simclr_jax.prepare.parts import FOOTER, HEADER, Table

FRAME = HEADER + FOOTER
VALIDATION_SPLIT = "val"


@dataclasses.dataclass(frozen=True)
class Run:
    """Consecutive records of a part that stay together: some bytes of its file."""

    part: int
    start: int
    size: int


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of the dataset.

    Attributes:
      name: of the file.
      images: numbers of its images among all of the input.
      runs: what it is put together from.
    """

    name: str
    images: np.ndarray
    runs: list[Run]


def first_of_each(table: Table) -> np.ndarray:
    """For every image the number of the first one with the same content.

    Broken images are nobody's duplicates.
    """
    first = np.arange(len(table.reason))
    good = np.flatnonzero(table.reason == "")
    if len(good):
        keys = np.ascontiguousarray(table.source_hash[good]).view("S32").ravel()
        _, earliest, inverse = np.unique(keys, return_index=True, return_inverse=True)
        first[good] = good[earliest[inverse]]
    return first


def choose_splits(
    table: Table, splits: list[str | None] | None, *, name: str, val_fraction: float
) -> np.ndarray:
    """The split of every image.

    Args:
      table: of all images.
      splits: what the input says, None for images of which it says nothing; None if
        it never says anything.
      name: of the split of those.
      val_fraction: of images that go to a split of their own, 'val'. Their content
        decides which: equal images never go to both.
    """
    if splits is not None:
        return np.array([split or name for split in splits])
    chosen = np.full(len(table.reason), name, f"<U{max(len(name), 3)}")
    leading = np.ascontiguousarray(table.source_hash[:, :8]).view(">u8").ravel()
    chosen[leading / 2.0**64 < val_fraction] = VALIDATION_SPLIT
    return chosen


def lay_out(
    table: Table,
    parts: list[slice],
    keep: np.ndarray,
    splits: np.ndarray,
    *,
    dataset: str,
    shard_bytes: int,
) -> dict[str, list[Shard]]:
    """Divides the images to be kept among shards.

    Args:
      table: of all images.
      parts: which images make up which part.
      keep: whether an image is to be in the dataset, bool [n].
      splits: of each image.
      dataset: name that the files begin with.
      shard_bytes: no shard is larger, except with a single image.

    Returns:
      The shards of each split that has images.
    """
    framed = np.where(table.size > 0, table.size + FRAME, 0).astype(np.int64)
    ends = np.cumsum(framed)
    part = np.repeat(np.arange(len(parts)), [p.stop - p.start for p in parts])
    part_starts = np.array([ends[p.start] - framed[p.start] for p in parts])
    starts = ends - framed - part_starts[part]

    shards: dict[str, list[Shard]] = {}
    for split in np.unique(splits[keep]):
        images = np.flatnonzero(keep & (splits == split))
        pieces = _pieces(framed[images], shard_bytes)
        shards[str(split)] = []
        for i, piece in enumerate(pieces):
            own = images[piece]
            name = f"{dataset}-{split}.tfrecord-{i:05}-of-{len(pieces):05}"
            runs = _runs(part[own], starts[own], framed[own])
            shards[str(split)].append(Shard(name, own, runs))
    return shards


def _pieces(sizes: np.ndarray, limit: int) -> list[slice]:
    """Consecutive pieces of at most `limit` together."""
    ends = np.cumsum(sizes)
    pieces, start = [], 0
    while start < len(sizes):
        done = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, done + limit, side="right"))
        stop = max(stop, start + 1)
        pieces.append(slice(start, stop))
        start = stop
    return pieces


def _runs(part: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> list[Run]:
    broken = (part[1:] != part[:-1]) | (starts[1:] != starts[:-1] + sizes[:-1])
    firsts = np.flatnonzero(np.concatenate([[True], broken]))
    lasts = np.append(firsts[1:], len(part)) - 1
    return [
        Run(int(part[a]), int(starts[a]), int(starts[b] + sizes[b] - starts[a]))
        for a, b in zip(firsts, lasts, strict=True)
    ]
