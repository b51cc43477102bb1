"""Metrics to files and to the terminal; process 0 writes, the others do nothing."""

import contextlib
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from simclr_jax.runs.atomic import write_file

FILE_NAME = "metrics.jsonl"
# Metrics of the progress line, by its words for them.
_SHARES = (
    ("contrastive_accuracy", "accuracy"),
    ("accuracy", "accuracy"),
    ("teacher_agreement", "as teacher"),
    ("probe_accuracy", "probe"),
)


class MetricsWriter:
    """Appends to `metrics.jsonl` and, optionally, to TensorBoard event files."""

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
        if not active:
            return
        path = pathlib.Path(workdir) / FILE_NAME
        _drop_after(path, resume_step)
        self._file = path.open("a", encoding="utf-8")
        if tensorboard:
            # Imported here: not needed where `tensorboard` is False.
            import tensorboardX

            self._events = tensorboardX.SummaryWriter(
                workdir, purge_step=resume_step + 1
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

    def close(self) -> None:
        """Closes the files."""
        for file in (self._file, self._events):
            if file is not None:
                file.close()


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The objects of a metrics file; a line cut short by a kill is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def _drop_after(path: pathlib.Path, step: int) -> None:
    if not path.exists():
        return
    remaining = [record for record in read_metrics(path) if record["step"] <= step]
    write_file(path, "".join(json.dumps(record) + "\n" for record in remaining))


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
