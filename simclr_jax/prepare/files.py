"""The files of a prepared dataset: shards, index, what TFDS wants, lists, manifest."""

import dataclasses
import hashlib
import io
import json
import pathlib
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from simclr_jax.data.image_files import open_image
from simclr_jax.data.sources import storage
from simclr_jax.data.tf_cpu import tf
from simclr_jax.errors import printable
from simclr_jax.prepare.entries import Listing
from simclr_jax.prepare.layout import Run, Shard
from simclr_jax.prepare.parts import FOOTER, HEADER, Table, replace

# As part of file names, it is the same for all datasets: so are their files then.
DATASET = "images"
_PREVIEW_COLUMNS, _PREVIEW_ROWS, _PREVIEW_SIDE = 8, 5, 112


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """A shard to be put together.

    Attributes:
      path: of the file.
      receipt: where what is known of it goes; once this is there the shard is done.
      runs: what it consists of, and the files of the parts that these are in, local
        or on a store.
    """

    path: pathlib.Path
    receipt: pathlib.Path
    runs: list[tuple[str, Run]]


def write_shard(task: ShardTask) -> dict[str, Any]:
    """Copies a shard's records together."""
    digest, size = hashlib.sha256(), 0
    unfinished = task.path.with_name(f"{task.path.name}.unfinished")
    with open(unfinished, "wb") as output:
        for part, run in task.runs:
            content = storage.read_range(part, run.start, run.size)
            output.write(content)
            digest.update(content)
            size += run.size
    replace(unfinished, task.path)
    receipt = {"bytes": size, "sha256": digest.hexdigest()}
    write_text(task.receipt, json.dumps(receipt))
    return receipt


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file, at once or not at all."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text, errors="surrogateescape")
    replace(unfinished, path)


def write_index(
    path: pathlib.Path, shards: list[Shard], table: Table, labels: np.ndarray
) -> dict[str, Any]:
    """Writes where every record of a split is; returns the file's name and checksum."""
    sizes = [table.size[shard.images].astype(np.int64) for shard in shards]
    frame = HEADER + FOOTER
    offsets = [np.cumsum(size + frame) - size - FOOTER for size in sizes]
    counts = [len(size) for size in sizes]
    images = np.concatenate([shard.images for shard in shards])
    buffer = io.BytesIO()
    np.savez(
        buffer,
        shard=np.repeat(np.arange(len(shards), dtype=np.int32), counts),
        offset=np.concatenate(offsets),
        length=np.concatenate(sizes),
        image_offset=np.concatenate(offsets) + table.image_start[images],
        image_length=table.image_size[images].astype(np.int64),
        label=labels[images],
    )
    path.write_bytes(buffer.getvalue())
    return {
        "file": path.name,
        "bytes": len(buffer.getvalue()),
        "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
    }


def write_tfds_files(
    folder: pathlib.Path, splits: dict[str, Any], class_names: list[str] | None
) -> None:
    """What `tfds.builder_from_directory` reads.

    Args:
      folder: where they go.
      splits: as the manifest describes them.
      class_names: None for unlabelled images.
    """
    package = "tensorflow_datasets.core.features"
    features: dict[str, Any] = {
        "file_name": {"pythonClassName": f"{package}.text_feature.Text", "text": {}},
        "image": {
            "pythonClassName": f"{package}.image_feature.Image",
            "image": {"shape": {"dimensions": ["-1", "-1", "3"]}, "dtype": "uint8"},
        },
    }
    if class_names:
        features["label"] = {
            "pythonClassName": f"{package}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": str(len(class_names))},
        }
        lines = "\n".join(label_lines(class_names))
        write_text(folder / "label.labels.txt", lines + "\n")
    description = {
        "pythonClassName": f"{package}.features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }
    write_text(folder / "features.json", json.dumps(description, indent=2))
    info = {
        "name": DATASET,
        "version": "1.0.0",
        "description": "Images, as python -m simclr_jax.prepare found them.",
        "fileFormat": "tfrecord",
        "moduleName": "simclr_jax",
        "splits": [
            {
                "name": name,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "shardLengths": [str(s["records"]) for s in split["shards"]],
                "numBytes": str(sum(s["bytes"] for s in split["shards"])),
            }
            for name, split in splits.items()
        ],
    }
    write_text(folder / "dataset_info.json", json.dumps(info, indent=2))


def write_lists(
    folder: pathlib.Path, listing: Listing, table: Table, first: np.ndarray
) -> None:
    """The broken files with reasons, and the duplicates with what they are equal to."""
    paths = [_one_line(entry.path) for entry in listing.entries]
    broken = [
        f"{paths[i]}\t{_one_line(str(table.reason[i]))}\n"
        for i in np.flatnonzero(table.reason != "")
    ]
    write_text(folder / "broken.tsv", "".join(broken))
    equal = [
        f"{paths[i]}\t{paths[first[i]]}\n"
        for i in np.flatnonzero(first != np.arange(len(first)))
    ]
    write_text(folder / "duplicates.tsv", "".join(equal))


def _one_line(text: str) -> str:
    r"""A column of a list; `\\` stands for a backslash and `\n` for a line's end."""
    return printable(text.replace("\\", "\\\\"))


def label_lines(class_names: list[str]) -> list[str]:
    """Names of classes as TFDS takes them: a line each, without blanks around it.

    All differ, and common names are themselves; the manifest has them unchanged.
    """
    lines: list[str] = []
    taken = set()
    for number, name in enumerate(class_names):
        line = printable(name).strip() or "_"
        if line in taken:
            line = f"{line}_{number}"
        taken.add(line)
        lines.append(line)
    return lines


def dataset_checksum(
    listing: Listing, table: Table, splits: dict[str, list[Shard]]
) -> str:
    """Of what is in a dataset, however it is divided among shards."""
    digest = hashlib.sha256()
    for name, shards in splits.items():
        for shard in shards:
            for i in shard.images:
                path = listing.entries[i].path
                line = f"{name}\0{path}\0{listing.labels[i]}\0"
                digest.update(line.encode(errors="surrogateescape"))
                digest.update(table.stored_hash[i].tobytes())
    return digest.hexdigest()


def statistics(
    listing: Listing,
    table: Table,
    first: np.ndarray,
    splits: dict[str, list[Shard]],
) -> dict[str, Any]:
    """The images of a manifest, in words."""
    kept = np.concatenate([s.images for shards in splits.values() for s in shards])
    good = table.reason == ""
    formats, counts = np.unique(table.format[good], return_counts=True)
    sizes = {
        "width": table.width,
        "height": table.height,
        "file_bytes": table.source_bytes,
    }
    return {
        "num_files": len(listing.entries),
        "num_images": len(kept),
        "num_broken": int((~good).sum()),
        "num_duplicates": int((first != np.arange(len(first))).sum()),
        "num_resized": int(table.resized[kept].sum()),
        "left_out": {
            reason: dataclasses.asdict(left)
            for reason, left in sorted(listing.left_out.items())
        },
        "formats": {
            str(name): int(count) for name, count in zip(formats, counts, strict=True)
        },
        "sizes": {
            name: {
                "min": int(values[kept].min()),
                "median": float(np.median(values[kept])),
                "max": int(values[kept].max()),
            }
            for name, values in sizes.items()
        },
    }


def images_per_class(listing: Listing, images: np.ndarray) -> dict[str, int] | None:
    """How many of some images are in each class."""
    if listing.class_names is None:
        return None
    labels = listing.labels[images]
    counts = np.bincount(labels[labels >= 0], minlength=len(listing.class_names))
    return dict(zip(listing.class_names, counts.tolist(), strict=True))


def write_preview(path: pathlib.Path, records: list[bytes]) -> None:
    """A grid of a few dozen images, evenly from all of the dataset."""
    side = _PREVIEW_SIDE
    rows = -(-len(records) // _PREVIEW_COLUMNS)
    columns = min(len(records), _PREVIEW_COLUMNS)
    grid = Image.new("RGB", (columns * side, rows * side), "white")
    for i, record in enumerate(records):
        example = tf.train.Example.FromString(record)
        content = example.features.feature["image"].bytes_list.value[0]
        with open_image(io.BytesIO(content), num_bytes=len(content)) as image:
            tile = ImageOps.fit(image.convert("RGB"), (side, side))
        row, column = divmod(i, _PREVIEW_COLUMNS)
        grid.paste(tile, (column * side, row * side))
    grid.save(path, "JPEG", quality=90)


def preview_places(num_images: int) -> np.ndarray:
    """Which images, of so many, the preview shows."""
    count = min(num_images, _PREVIEW_COLUMNS * _PREVIEW_ROWS)
    return np.arange(count) * num_images // max(count, 1)
