"""Builds a dataset from images; the steps of `python -m simclr_jax.prepare`.

1. The input's images are listed, sorted and divided into parts.
2. Worker processes read and check them, a part at a time.
3. What all parts hold decides on duplicates, splits and shards.
4. Workers put the shards together; the files around them are written.
5. All files get their place, the manifest last: it makes the folder a dataset.

After a kill the same command reuses the finished work of steps 2 and 4. Every step's
result depends on the input and the options alone.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from simclr_jax.data import image_traits
from simclr_jax.data.image_files import MAX_PIXELS
from simclr_jax.data.sources.folder_reading import AUTO, TOP_FOLDERS
from simclr_jax.data.sources.prepared import MANIFEST, VERSION, read_manifest
from simclr_jax.data.tf_cpu import tf
from simclr_jax.data.white_level import MOST
from simclr_jax.errors import DataError, RunFailed, StoreFailed, first_line
from simclr_jax.prepare import (
    files,
    layout,
    on_beam,
    outputs,
    patterns,
    steps,
    workers,
)
from simclr_jax.prepare.entries import Input, Listing, list_images
from simclr_jax.prepare.image_check import FILTERS, Encoding
from simclr_jax.prepare.inputs import open_input
from simclr_jax.prepare.outputs import Output

_LOG = logging.getLogger(__name__)
_PLAN = "plan.json"
# What earlier versions did that had no such option.
_BEFORE = {"exif_orientation": False, "top_folders": AUTO}
# What all processes need.
_PRELOAD = "simclr_jax.prepare.parts"
# Of the parts of unfinished work.
_WORK_VERSION = 3


@dataclasses.dataclass(frozen=True)
class Options:
    """What decides on the result; the flags of the command explain each."""

    input: str
    split: str = "train"
    top_folders: str = AUTO
    val_fraction: float = 0.0
    resize_short_side: int | None = None
    resize_filter: str = "lanczos"
    jpeg_quality: int = 95
    drop_duplicates: bool = False
    shard_size_mb: float = 256
    exif_orientation: bool = True
    white_level: int | None = None

    def check(self) -> None:
        """Raises a DataError that names the flag with a value that cannot be."""
        rules = {
            "input": (bool(self.input), "a path"),
            "split": (
                self.split.isidentifier() and self.split != "all",
                "letters, digits and _, and not 'all'",
            ),
            "top_folders": (self.top_folders in TOP_FOLDERS, " or ".join(TOP_FOLDERS)),
            "val_fraction": (0 <= self.val_fraction < 1, "at least 0 and below 1"),
            "resize_short_side": (
                self.resize_short_side is None
                or 1 <= self.resize_short_side <= MAX_PIXELS,
                f"from 1 to {MAX_PIXELS} pixels",
            ),
            "resize_filter": (self.resize_filter in FILTERS, " or ".join(FILTERS)),
            "jpeg_quality": (1 <= self.jpeg_quality <= 100, "from 1 to 100"),
            "white_level": (
                self.white_level is None or 1 <= self.white_level <= MOST,
                f"from 1 to {MOST}",
            ),
            "shard_size_mb": (
                1e-3 <= self.shard_size_mb <= 1e6,
                "between 0.001 and 1000000",
            ),
        }
        for name, (fits, rule) in rules.items():
            if not fits:
                raise DataError(f"--{name}={getattr(self, name)!s}: must be {rule}")
        if self.val_fraction and self.split == layout.VALIDATION_SPLIT:
            raise DataError(
                f"--split={self.split}: must be another with --val_fraction, which "
                "makes a split of this name"
            )


def prepare(
    options: Options,
    output: str,
    *,
    num_workers: int,
    scratch: str | None = None,
    beam: Sequence[str] = (),
) -> dict[str, Any]:
    """Prepares a dataset, or resumes it, or returns if it is finished.

    Args:
      options: what to prepare.
      output: a folder, local or on a store, that is new, empty or of an earlier start.
      num_workers: how many processes work, without `beam`.
      scratch: for an output on a store, see `outputs.open_output`.
      beam: flags of Apache Beam, by which its workers work.

    Returns:
      The manifest.

    Raises:
      DataError: the input, an option or the folder cannot be used.
      RunFailed: the disk is full or the like; the same command resumes.
    """
    options.check()
    if beam:
        on_beam.check(beam)
    options = dataclasses.replace(options, input=patterns.absolute(options.input))
    target = outputs.open_output(output, scratch=scratch)
    try:
        if target.is_finished():
            return _finished(options, target)
        target.claim()
        for name in (steps.PARTS, steps.RECEIPTS, steps.FINAL):
            (target.work / name).mkdir(exist_ok=True)
        with _lock(target):
            try:
                run: workers.Run = functools.partial(
                    workers.run_all, num_workers=num_workers, preload=_PRELOAD
                )
                if beam:
                    run = on_beam.Beam(
                        beam, work=target.work, shared=target.shared, name=target.name
                    )
                manifest = _prepare(options, target, run)
            except DataError:
                if not (target.work / _PLAN).exists():
                    # Nothing was written yet: a mistyped input leaves nothing.
                    target.clean()
                raise
        target.clean()
    except (OSError, tf.errors.OpError, StoreFailed) as error:
        raise RunFailed(
            f"--output={output}: not finished ({first_line(error)}); the same command "
            "resumes"
        ) from error
    return manifest


@contextlib.contextmanager
def _lock(target: Output) -> Iterator[None]:
    """Keeps a second command on this machine away from the same output."""
    with open(target.work / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"--output={target.name}: another command is preparing it now"
            ) from error
        yield


def _finished(options: Options, target: Output) -> dict[str, Any]:
    """The manifest that is there, if it is of this input and these options."""
    manifest = read_manifest(target.name)
    _compare(options, manifest["options"], target, "a dataset prepared")
    try:
        source = _open_input(options, target)
        stamp = list_images(source, options.top_folders).stamp(times=False)
    except DataError:
        # The input need not be kept.
        stamp = manifest["input_sha256"]
    finally:
        shutil.rmtree(target.work, ignore_errors=True)
    if stamp != manifest["input_sha256"]:
        raise DataError(
            f"--output={target.name}: holds a dataset of --input={options.input} as it "
            "was; other files are there now; choose another folder"
        )
    _LOG.info("%s is finished: nothing to do", target.name)
    return manifest


def _open_input(options: Options, target: Output) -> Input:
    return open_input(options.input, scratch=str(target.work), without=target.name)


def _compare(
    options: Options, other: dict[str, Any], target: Output, what: str
) -> None:
    # Earlier versions had fewer options.
    before = {**_BEFORE, **other}
    for name, value in dataclasses.asdict(options).items():
        if before.get(name) != value:
            raise DataError(
                f"--{name}={value}: --output={target.name} holds {what} with "
                f"--{name}={before.get(name)}; choose another folder"
            )


def _prepare(options: Options, target: Output, run: workers.Run) -> dict[str, Any]:
    work = target.work
    _LOG.info("Listing %s", options.input)
    source = _open_input(options, target)
    listing = list_images(source, options.top_folders)
    _LOG.info("%s:\n%s", options.input, listing.table)
    _agree_on_plan(options, listing, target)
    if listing.splits and options.val_fraction:
        names = sorted({split or options.split for split in listing.splits})
        raise DataError(
            f"--val_fraction={options.val_fraction}: must be 0 for {options.input}, "
            f"which has the splits {', '.join(names)}"
        )
    encoding = Encoding(
        options.resize_short_side,
        options.resize_filter,
        options.jpeg_quality,
        options.exif_orientation,
    )
    parts, level = steps.read_parts(
        source,
        listing,
        encoding,
        work,
        white_level=options.white_level,
        run=run,
    )
    images = steps.choose(
        listing,
        parts,
        split=options.split,
        val_fraction=options.val_fraction,
        drop_duplicates=options.drop_duplicates,
        shard_bytes=int(options.shard_size_mb * 1e6),
        name=options.input,
    )
    counts = image_traits.counts(images.table.traits[images.table.reason == ""])
    _LOG.info("%s: %s", options.input, image_traits.in_words(counts))
    receipts = steps.write_shards(images, parts, work, run=run)
    manifest = {
        "format_version": VERSION,
        "options": dataclasses.asdict(options),
        "input_sha256": listing.stamp(times=False),
        "white_level": level,
        **steps.write_rest(images, receipts, target.name, work),
        "handled": counts,
    }
    files.write_text(
        work / steps.FINAL / MANIFEST, json.dumps(manifest, indent=2) + "\n"
    )
    _LOG.info("Moving the files to %s", target.name)
    # With the manifest, which comes last, it is a dataset.
    target.publish(work / steps.FINAL)
    return manifest


def _agree_on_plan(options: Options, listing: Listing, target: Output) -> None:
    """Writes down what is being prepared, or compares it with what was."""
    path = target.work / _PLAN
    plan = {
        "format_version": VERSION,
        "work_version": _WORK_VERSION,
        "options": dataclasses.asdict(options),
        "input": listing.stamp(times=True),
    }
    if not path.exists():
        files.write_text(path, json.dumps(plan))
        return
    try:
        other = json.loads(path.read_text())
        other["options"].items()
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(
            f"file {path}: is damaged ({first_line(error)}); remove the folder "
            f"{target.work} to start again"
        ) from error
    _compare(options, other["options"], target, "unfinished work")
    if other.get("work_version") != _WORK_VERSION:
        raise DataError(
            f"--output={target.name}: holds unfinished work of another version of "
            "simclr_jax; choose another folder"
        )
    if other != plan:
        raise DataError(
            f"--output={target.name}: holds unfinished work on "
            f"--input={options.input} as it was; files have changed since; choose "
            "another folder"
        )
