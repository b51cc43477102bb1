"""What a writer of a run's log is."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from etils import epath


class Place(NamedTuple):
    """Where a writer writes.

    Attributes:
      folder: a local one for its files, which are kept with the run. Where that is a
        copy, for a store or a mounted bucket, each start has a new, empty one.
      workdir: the run directory, which has the files of earlier starts.
      name: of the run, for people.
      resume_step: updates so far; later steps of an earlier start do not count.
      run_id: the writer's, of an earlier start; None for a new run.
    """

    folder: pathlib.Path
    workdir: epath.Path
    name: str
    resume_step: int
    run_id: str | None


class Points(NamedTuple):
    """Representations of some images, for maps of them.

    Attributes:
      h: float32 [N, D].
      labels: N printable names of classes.
      images: N numbers of the images in their split.
      thumbnails: uint8 [N, s, s, 3].
    """

    h: np.ndarray
    labels: list[str]
    images: list[int]
    thumbnails: np.ndarray


class Writer(Protocol):
    """Takes what `Writers` takes; any method may raise, which ends it.

    Attributes:
      run_id: by which a later start continues; None where files say all.
    """

    run_id: str | None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step; steps rise within a start."""

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """A picture, uint8 [H, W, 3]."""

    def hparams(self, values: Mapping[str, Any]) -> None:
        """JSON values by dotted key; once in every start."""

    def embeddings(self, step: int, points: Points) -> None:
        """Representations; once, after the last step."""

    def close(self) -> None:
        """Waits until everything is written."""
