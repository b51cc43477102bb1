"""Where a run's log goes beside `metrics.jsonl`: the writers of `log.writers`.

Each is a module of its name with `open_writer(place)`; `config/log_writers.py` lists
them. Files: `protocol.py` (what a writer is), `tensorboard.py`, `wandb.py`,
`mlflow.py`, `pictures.py` (grids, and the files of the embedding projector).
"""

import contextlib
import importlib
import json
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from simclr_jax.errors import first_line
from simclr_jax.runs.atomic import write_file
from simclr_jax.runs.writers.protocol import Place, Points, Writer

_LOG = logging.getLogger(__name__)
# The names that services have given to the run, by writer.
RUN_IDS = "writers.json"

__all__ = ["RUN_IDS", "Place", "Points", "Writer", "Writers"]


class Writers:
    """Several writers; one that fails is given up, with a warning."""

    def __init__(
        self,
        names: Sequence[str],
        workdir: epath.Path,
        local: pathlib.Path,
        *,
        resume_step: int,
    ) -> None:
        """Opens them.

        Args:
          names: keys of `log_writers.WRITERS`.
          workdir: the run directory.
          local: where files may grow: the run directory, or a folder that is copied.
          resume_step: number of updates so far.
        """
        self._open: dict[str, Writer] = {}
        ids = _read_ids(workdir / RUN_IDS) if names else {}
        for name in names:
            run_name, run_id = workdir.name or "run", ids.get(name)
            place = Place(local, workdir, run_name, resume_step, run_id)
            with self._giving_up(name):
                module = importlib.import_module(f"{__name__}.{name}")
                writer = self._open[name] = module.open_writer(place)
                if writer.run_id is not None and writer.run_id != run_id:
                    ids[name] = writer.run_id
                    write_file(workdir / RUN_IDS, json.dumps(ids) + "\n")

    def __bool__(self) -> bool:
        """Whether any is open."""
        return bool(self._open)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, by name."""
        self._each(lambda writer: writer.scalars(step, values))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """A picture, uint8 [H, W, 3]."""
        self._each(lambda writer: writer.image(step, name, image))

    def hparams(self, values: Mapping[str, Any]) -> None:
        """The config by dotted key, as in `config.json`."""
        self._each(lambda writer: writer.hparams(values))

    def embeddings(self, step: int, points: Points) -> None:
        """Representations of some images."""
        self._each(lambda writer: writer.embeddings(step, points))

    def close(self) -> None:
        """Closes them; returns when what was written is there."""
        self._each(lambda writer: writer.close())
        self._open.clear()

    def _each(self, write: Callable[[Writer], None]) -> None:
        for name, writer in [*self._open.items()]:
            with self._giving_up(name):
                write(writer)

    @contextlib.contextmanager
    def _giving_up(self, name: str) -> Iterator[None]:
        try:
            yield
        # Of any library: a training does not end because of its log.
        except Exception as error:
            writer = self._open.pop(name, None)
            with contextlib.suppress(Exception):
                if writer is not None:
                    writer.close()  # its threads
            _LOG.warning(
                "config.log.writers: %r cannot write (%s) and ends here; the training "
                "and metrics.jsonl go on.",
                name,
                first_line(error),
            )


def _read_ids(path: epath.Path) -> dict[str, str]:
    try:
        ids = json.loads(path.read_text())
        return {name: run_id for name, run_id in ids.items() if isinstance(run_id, str)}
    except FileNotFoundError:
        return {}
    # Damaged, or of a store's library.
    except Exception as error:
        _LOG.warning(
            "file %s: cannot be read (%s); writers begin new runs.",
            path,
            first_line(error),
        )
        return {}
