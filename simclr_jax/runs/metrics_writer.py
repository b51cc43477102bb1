"""Metrics to files and to the terminal; process 0 writes, the others do nothing."""

import io
import json
import logging
import math
import operator
import pathlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from simclr_jax import paths
from simclr_jax.errors import RunFailed
from simclr_jax.runs.atomic import write_file
from simclr_jax.runs.mirror import Mirror
from simclr_jax.runs.writers import Writers

_LOG = logging.getLogger(__name__)

FILE_NAME = "metrics.jsonl"
# `bottleneck` of the first step of every start, whose time is mostly compilation.
FIRST_OF_A_START = "too early to tell"
# Metrics of the progress line, by its words for them.
_SHARES = (
    ("contrastive_accuracy", "accuracy"),
    ("accuracy", "accuracy"),
    ("teacher_agreement", "as teacher"),
    ("probe_accuracy", "probe"),
    ("held_out_knn", "held-out knn"),
    ("held_out_probe", "held-out probe"),
)


class MetricsWriter:
    """Appends to `metrics.jsonl` and hands numbers to the writers of `log.writers`.

    On a local disk each line is written at once. On a store or a mounted bucket the
    files grow in a temporary folder and are copied every half minute and when
    `copy_soon` is called, see `Mirror`.

    A training does not end because its log cannot be written: that is one warning, and
    lines are kept until they can be. A writer is given up at its first failure.

    Attributes:
      writers: for pictures, hyper-parameters and embeddings; none where nothing writes.
      skipped_steps: that the last line of an earlier start has counted.
    """

    def __init__(
        self,
        workdir: str,
        *,
        resume_step: int,
        writers: Sequence[str] = (),
        active: bool = True,
    ) -> None:
        """Opens the files, and drops steps after `resume_step` of an earlier start.

        Args:
          workdir: the run directory.
          resume_step: number of updates so far; each step is in the file once.
          writers: names of further ones; see `writers.Writers`.
          active: False writes nothing, for processes other than 0.
        """
        self._file: io.FileIO | None = None
        self._unwritten = b""
        self._is_failing = False
        self._mirror = None
        self.skipped_steps = 0
        folder = paths.as_path(workdir)
        if not active:
            self.writers = Writers((), folder, pathlib.Path(), resume_step=resume_step)
            return
        lines = _lines_up_to(folder / FILE_NAME, resume_step)
        if lines:
            skipped = json.loads(lines.splitlines()[-1]).get("skipped_steps")
            self.skipped_steps = skipped if isinstance(skipped, int) else 0
        if paths.is_store(workdir) or paths.is_mounted_bucket(workdir):
            local = pathlib.Path(tempfile.mkdtemp(prefix="simclr_jax-metrics-"))
            self._mirror = Mirror(local, folder)
        else:
            local = pathlib.Path(folder)
        write_file(local / FILE_NAME, lines)
        # Unbuffered, so that it is known what was written when a disk is full.
        self._file = (local / FILE_NAME).open("ab", buffering=0)
        self.writers = Writers(writers, folder, local, resume_step=resume_step)

    def write(self, step: int, metrics: Mapping[str, float | str]) -> None:
        """Writes one object, with its step, at once."""
        if self._file is None:
            return
        self._unwritten += (json.dumps({"step": step, **metrics}) + "\n").encode()
        self._flush(self._file)
        numbers = {k: v for k, v in metrics.items() if not isinstance(v, str)}
        self.writers.scalars(step, numbers)

    def _flush(self, file: io.RawIOBase) -> None:
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[file.write(self._unwritten) or 0 :]
        except OSError as error:
            if not self._is_failing:
                _LOG.warning(
                    "file %s: cannot be written (%s); its lines are kept in memory "
                    "until it can.",
                    FILE_NAME,
                    error.strerror,
                )
            self._is_failing = True
        else:
            self._is_failing = False

    def copy_soon(self) -> None:
        """Starts to copy what was written to a store or a mounted bucket."""
        if self._mirror is not None:
            self._mirror.copy_soon()

    def close(self) -> None:
        """Closes the files.

        Raises:
          RunFailed: the last copy to a store or a mounted bucket failed.
        """
        if self._file is not None:
            self._flush(self._file)
            self._file.close()
        self.writers.close()
        if self._mirror is not None:
            self._mirror.close()
            shutil.rmtree(self._mirror.source, ignore_errors=True)


def read_metrics(path: pathlib.Path | epath.Path) -> list[dict[str, Any]]:
    """The objects of a metrics file; lines that are damaged or cut short are left out.

    A step that is there twice counts as it was written last.
    """
    return list(_parsed(path.read_bytes())[0].values())


def _parsed(content: bytes) -> tuple[dict[int, dict[str, Any]], list[bytes]]:
    """Objects by step, and the lines that are none."""
    records: dict[int, dict[str, Any]] = {}
    damaged = []
    *lines, last = content.split(b"\n")
    for line in (*lines, last):
        try:
            record = json.loads(line)
            records[operator.index(record["step"])] = record
        except (ValueError, TypeError, KeyError, RecursionError):
            # A kill may cut the last line short, and a crash may leave zeros.
            if line.strip(b"\0 \r\t") and line is not last:
                damaged.append(line)
    return records, damaged


def _lines_up_to(path: epath.Path, step: int) -> str:
    """The lines of a metrics file up to a step; empty where there is no file.

    What is damaged is moved to a file beside it.

    Raises:
      RunFailed: it cannot be read.
    """
    aside = path.with_name(f"{FILE_NAME}.damaged")
    try:
        if path.is_dir() and not paths.is_store(path):
            path.rename(aside)
            _LOG.warning("%s was a folder, which is now %s.", path, aside)
        records, damaged = _parsed(path.read_bytes())
        if damaged:
            aside.write_bytes(b"\n".join(damaged) + b"\n")
            _LOG.warning(
                "file %s: %d lines are damaged and now in %s.",
                path,
                len(damaged),
                aside,
            )
    except FileNotFoundError:
        return ""
    except Exception as error:
        if not paths.is_failure(error):
            raise
        raise RunFailed(f"file {path}: cannot be read ({error})") from error
    return "".join(
        json.dumps(r) + "\n" for n, r in sorted(records.items()) if n <= step
    )


def progress_line(
    step: int,
    total_steps: int,
    metrics: Mapping[str, float],
    *,
    secs_left: float | None,
) -> str:
    """One line for the terminal; no rate and time left where `secs_left` is None."""
    loss = f"loss {metrics['loss']:.3f}"
    if "chance" in metrics:
        share = metrics["loss"] / metrics["chance"]
        loss += f" ({share:.0%} of chance {metrics['chance']:.2f})"
    parts = [f"step {step}/{total_steps}", loss]
    parts += [
        f"{word} {metrics[name]:.1%}" for name, word in _SHARES if name in metrics
    ]
    if "effective_rank_h" in metrics:
        h, z = metrics["effective_rank_h"], metrics["effective_rank_z"]
        parts.append(f"rank h {h:.1f} z {z:.1f}")
    parts.append(f"lr {metrics['learning_rate']:.3g}")
    if secs_left is not None:
        parts += [
            f"{metrics['images_per_sec']:.0f} images/s",
            f"input wait {metrics['input_wait_share']:.0%}",
            f"{format_secs(secs_left)} left",
        ]
    return " | ".join(parts)


def format_secs(secs: float) -> str:
    """Seconds as h:mm:ss."""
    secs = math.ceil(secs)
    return f"{secs // 3600}:{secs // 60 % 60:02d}:{secs % 60:02d}"
