"""Metrics to files and to the terminal; process 0 writes, the others do nothing."""

import contextlib
import json
import math
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

from etils import epath

from simclr_jax import paths
from simclr_jax.errors import RunFailed
from simclr_jax.runs.atomic import write_file
from simclr_jax.runs.mirror import Mirror

FILE_NAME = "metrics.jsonl"
# Metrics of the progress line, by its words for them.
_SHARES = (
    ("contrastive_accuracy", "accuracy"),
    ("accuracy", "accuracy"),
    ("teacher_agreement", "as teacher"),
    ("probe_accuracy", "probe"),
)


class MetricsWriter:
    """Appends to `metrics.jsonl` and, optionally, to TensorBoard event files.

    On a local disk each line is written at once. On a store or a mounted bucket the
    files grow in a temporary folder and are copied every half minute and when
    `copy_soon` is called, see `Mirror`.
    """

    def __init__(
        self, workdir: str, *, resume_step: int, tensorboard: bool, active: bool = True
    ) -> None:
        """Opens the files, and drops steps after `resume_step` of an earlier start.

        Args:
          workdir: the run directory.
          resume_step: number of updates so far; each step is in the file once.
          tensorboard: write event files too.
          active: False writes nothing, for processes other than 0.
        """
        self._file = None
        self._events = None
        self._mirror = None
        if not active:
            return
        folder = paths.as_path(workdir)
        lines = _lines_up_to(folder / FILE_NAME, resume_step)
        if paths.is_store(workdir) or paths.is_mounted_bucket(workdir):
            local = pathlib.Path(tempfile.mkdtemp(prefix="simclr_jax-metrics-"))
            self._mirror = Mirror(local, folder)
        else:
            local = pathlib.Path(folder)
        write_file(local / FILE_NAME, lines)
        self._file = (local / FILE_NAME).open("a", encoding="utf-8")
        if tensorboard:
            # Imported here: not needed where `tensorboard` is False.
            import tensorboardX

            self._events = tensorboardX.SummaryWriter(
                str(local), purge_step=resume_step + 1
            )

    def write(self, step: int, metrics: Mapping[str, float | str]) -> None:
        """Writes one object, with its step, and flushes."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in metrics.items():
                if not isinstance(value, str):
                    self._events.add_scalar(name, value, step)
            self._events.flush()

    def copy_soon(self) -> None:
        """Starts to copy what was written to a store or a mounted bucket."""
        if self._mirror is not None:
            self._mirror.copy_soon()

    def close(self) -> None:
        """Closes the files.

        Raises:
          RunFailed: the last copy to a store or a mounted bucket failed.
        """
        for file in (self._file, self._events):
            if file is not None:
                file.close()
        if self._mirror is not None:
            self._mirror.close()
            shutil.rmtree(self._mirror.source, ignore_errors=True)


def read_metrics(path: pathlib.Path | epath.Path) -> list[dict[str, Any]]:
    """The objects of a metrics file; a line cut short by a kill is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def _lines_up_to(path: epath.Path, step: int) -> str:
    """The lines of a metrics file up to a step; empty where there is no file.

    Raises:
      RunFailed: it cannot be read.
    """
    try:
        records = read_metrics(path)
    except FileNotFoundError:
        return ""
    except Exception as error:
        if not paths.is_failure(error):
            raise
        raise RunFailed(f"file {path}: cannot be read ({error})") from error
    return "".join(json.dumps(r) + "\n" for r in records if r["step"] <= step)


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
