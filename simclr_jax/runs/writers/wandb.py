"""Weights & Biases, set by its own variables: WANDB_MODE, WANDB_PROJECT and others.

Files, and whole runs with WANDB_MODE=offline, lie in the folder `wandb` of the run.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import wandb

from simclr_jax.runs.writers.protocol import Place, Points, Writer

_MOST_COLUMNS = 50  # of a table that its projector takes


class _WandB:
    def __init__(self, place: Place) -> None:
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "simclr_jax"),
            name=os.environ.get("WANDB_NAME", place.name),
            id=place.run_id,
            resume="allow",
            dir=str(place.folder),
            # The log of the terminal stays in the terminal.
            settings=wandb.Settings(console="off", silent=True),
        )
        self.run_id: str | None = self._run.id

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._log(step, dict(values))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        self._log(step, {name: wandb.Image(image)})

    def hparams(self, values: Mapping[str, Any]) -> None:
        self._run.config.update(dict(values), allow_val_change=True)

    def embeddings(self, step: int, points: Points) -> None:
        # The main directions: a table has a cell for each number.
        centred = points.h - points.h.mean(axis=0)
        _, _, directions = np.linalg.svd(centred, full_matrices=False)
        projected = centred @ directions[:_MOST_COLUMNS].T
        names = [f"h{n}" for n in range(projected.shape[1])]
        table = wandb.Table(columns=["label", "image", "thumbnail", *names])
        for label, image, thumbnail, row in zip(*points[1:], projected, strict=True):
            table.add_data(label, image, wandb.Image(thumbnail), *row.tolist())
        self._log(step, {"embeddings": table})

    def _log(self, step: int, values: dict[str, Any]) -> None:
        # Steps cannot be taken back: those that a killed start has logged stay, and a
        # resumed run has the same figures.
        if step >= self._run.step:
            self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


def open_writer(place: Place) -> Writer:
    """A writer of a new run of Weights & Biases, or of the one that it has begun."""
    return _WandB(place)
