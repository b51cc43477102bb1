"""TensorBoard: an event file for each start, and the projector's files."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorboardX
from tensorboardX import summary

from simclr_jax.runs.writers import pictures
from simclr_jax.runs.writers.protocol import Place, Points, Writer


class _TensorBoard:
    run_id: str | None = None

    def __init__(self, place: Place) -> None:
        self._folder = place.folder
        # Earlier files stay as they are; TensorBoard hides what is purged.
        self._events = tensorboardX.SummaryWriter(
            str(place.folder), purge_step=place.resume_step + 1
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        self._events.add_image(name, image, step, dataformats="HWC")
        self._events.flush()

    def hparams(self, values: Mapping[str, Any]) -> None:
        # Into this run: `add_hparams` begins another one below it.
        simple = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in values.items()
        }
        for part in summary.hparams(simple, {}):
            self._events.file_writer.add_summary(part)
        self._events.flush()

    def embeddings(self, step: int, points: Points) -> None:
        del step  # the projector has the newest
        pictures.write_projector(self._folder, points)

    def close(self) -> None:
        self._events.close()


def open_writer(place: Place) -> Writer:
    """A writer of event files in the folder of a run."""
    return _TensorBoard(place)
