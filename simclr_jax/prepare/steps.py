"""The steps from a listing of images to the files of a dataset.

They work in a separate folder; finished parts of the long ones are reused by the
same command after a kill.
"""

import dataclasses
import json
import logging
import pathlib
from typing import Any

import numpy as np

from simclr_jax.data.progress import Progress
from simclr_jax.data.sources import split_names, storage
from simclr_jax.data.sources.prepared import MEANINGS, read_index
from simclr_jax.data.white_level import FULL, of_peaks
from simclr_jax.errors import DataError
from simclr_jax.prepare import files, layout
from simclr_jax.prepare.entries import Input, Listing
from simclr_jax.prepare.image_check import Encoding
from simclr_jax.prepare.layout import Shard
from simclr_jax.prepare.parts import Part, Table, divide, write_part
from simclr_jax.prepare.workers import Run

_LOG = logging.getLogger(__name__)
PARTS, RECEIPTS, FINAL = "parts", "receipts", "final"


@dataclasses.dataclass(frozen=True)
class Images:
    """All images of an input, and which of them go where.

    Attributes:
      listing: the images.
      table: what is known of each.
      first: the number of the first image with the same content, for each.
      splits: the shards of each split.
    """

    listing: Listing
    table: Table
    first: np.ndarray
    splits: dict[str, list[Shard]]


def read_parts(
    source: Input,
    listing: Listing,
    encoding: Encoding,
    work: pathlib.Path,
    *,
    white_level: int | None,
    run: Run,
) -> tuple[list[Part], int | None]:
    """Reads and checks all images, except those of parts that are done.

    Parts with images of more than 8 bits are read again where these use another range
    than that of 16 bits.

    Args:
      source: of the images.
      listing: the images.
      encoding: how they are stored.
      work: the folder of work.
      white_level: of images of more than 8 bits; measured where it is None.
      run: applies functions to tasks.

    Returns:
      (the parts, the white level, None where there is no such image).
    """
    parts = [
        Part(
            source,
            listing.entries[images],
            listing.labels[images],
            encoding,
            str(work / PARTS / f"{number:07}"),
        )
        for number, images in enumerate(divide(listing.entries))
    ]
    _write_parts(parts, run)
    tables = [Table.load(part.table) for part in parts]
    peaks = [peak for table in tables for peak in table.peaks()]
    level = white_level or of_peaks(peaks)
    if level is None or not peaks:
        return parts, level
    _LOG.info(
        "%d images have more than 8 bits: white level %d, by their largest value, %g",
        len(peaks),
        level,
        max(peak.value for peak in peaks),
    )
    # As which the parts have been written.
    if level == FULL and not any(peak.fractional for peak in peaks):
        return parts, level
    encoding = dataclasses.replace(encoding, white_level=level)
    anew = [number for number, table in enumerate(tables) if table.peaks()]
    for number in anew:
        part = parts[number]
        part.records.unlink(missing_ok=True)
        stem = f"{part.stem}-{level}"
        parts[number] = dataclasses.replace(part, encoding=encoding, stem=stem)
    _write_parts([parts[number] for number in anew], run)
    return parts, level


def _write_parts(parts: list[Part], run: Run) -> None:
    """Writes those parts that are not there."""
    todo = [part for part in parts if not part.table.exists()]
    total = sum(len(part.entries) for part in parts)
    done = total - sum(len(part.entries) for part in todo)
    if done:
        _LOG.info("Resuming: %s of %s files are done", f"{done:,}", f"{total:,}")
    progress = Progress(_LOG, total, "files", done=done)
    num_broken = 0
    for _, (count, broken) in run(write_part, todo):
        num_broken += broken
        progress.add(count, f" | {num_broken:,} broken")


def choose(
    listing: Listing,
    parts: list[Part],
    *,
    split: str,
    val_fraction: float,
    drop_duplicates: bool,
    shard_bytes: int,
    name: str,
) -> Images:
    """Decides which images are kept, and divides them among splits and shards.

    Raises:
      DataError: there is none to keep.
    """
    table = Table.join([Table.load(part.table) for part in parts])
    first = layout.first_of_each(table)
    keep = table.reason == ""
    if not keep.any():
        raise DataError(
            f"--input={name}: all {len(keep)} files are broken, such as "
            f"{listing.entries[0].path}: {table.reason[0]}"
        )
    if drop_duplicates:
        keep &= first == np.arange(len(first))
    splits = layout.choose_splits(
        table, listing.splits, name=split, val_fraction=val_fraction
    )
    shards = layout.lay_out(
        table,
        divide(listing.entries),
        keep,
        splits,
        dataset=files.DATASET,
        shard_bytes=shard_bytes,
    )
    return Images(listing, table, first, shards)


def write_shards(
    images: Images, parts: list[Part], work: pathlib.Path, *, run: Run
) -> dict[str, dict[str, Any]]:
    """Puts the shards together; returns what is known of each, by its name."""
    records = [str(part.records) for part in parts]
    shards = [shard for group in images.splits.values() for shard in group]
    tasks = [
        files.ShardTask(
            work / FINAL / shard.name,
            work / RECEIPTS / f"{shard.name}.json",
            [(records[piece.part], piece) for piece in shard.runs],
        )
        for shard in shards
    ]
    users: dict[str, set[str]] = {}
    for task in tasks:
        for path, _ in task.runs:
            users.setdefault(path, set()).add(task.path.name)
    receipts = {
        task.path.name: json.loads(task.receipt.read_text())
        for task in tasks
        if task.receipt.exists()
    }
    _LOG.info("Writing %d shards, %d of them are done", len(shards), len(receipts))
    todo = [task for task in tasks if task.path.name not in receipts]
    for task, receipt in run(files.write_shard, todo):
        receipts[task.path.name] = receipt
        # So that the disk need not hold everything twice.
        for path in {path for path, _ in task.runs}:
            if users[path] <= receipts.keys():
                pathlib.Path(path).unlink(missing_ok=True)
    return receipts


def write_rest(
    images: Images,
    receipts: dict[str, dict[str, Any]],
    output: str,
    work: pathlib.Path,
) -> dict[str, Any]:
    """Writes all files but the shards and the manifest; returns what that one says.

    Args:
      images: all of them.
      receipts: of the shards.
      output: where an earlier start may have put shards already.
      work: the folder of work.
    """
    final = work / FINAL
    listing, table = images.listing, images.table
    splits: dict[str, Any] = {}
    places = []
    for name, shards in images.splits.items():
        index = final / f"index-{name}.npz"
        description = files.write_index(index, shards, table, listing.labels)
        chosen = np.concatenate([shard.images for shard in shards])
        splits[name] = {
            "num_images": len(chosen),
            "images_per_class": files.images_per_class(listing, chosen),
            "index": description,
            "shards": [
                {"file": s.name, "records": len(s.images), **receipts[s.name]}
                for s in shards
            ],
        }
        arrays = read_index(index.read_bytes())
        for number in files.preview_places(len(chosen)):
            shard = shards[arrays["shard"][number]].name
            places.append((shard, arrays["offset"][number], arrays["length"][number]))
    records = []
    for number in files.preview_places(len(places)):
        shard, offset, length = places[number]
        # A start before this one may have moved it already.
        path = f"{final if (final / shard).exists() else output}/{shard}"
        records.append(storage.read_range(path, int(offset), int(length)))
    files.write_preview(final / "preview.jpg", records)
    files.write_tfds_files(final, splits, listing.class_names)
    files.write_lists(final, listing, table, images.first)
    return {
        **files.statistics(listing, table, images.first, images.splits),
        "class_names": listing.class_names,
        "dataset_sha256": files.dataset_checksum(listing, table, images.splits),
        MEANINGS: {
            name: listing.meanings.get(name, split_names.meaning(name))
            for name in splits
        },
        "splits": splits,
    }
