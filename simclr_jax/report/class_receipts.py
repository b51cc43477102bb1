"""Figures of each class that evaluations of a run have written; see `receipts.py`."""

import csv
import dataclasses
import json
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from simclr_jax import paths
from simclr_jax.errors import first_line
from simclr_jax.report import names

_LOG = logging.getLogger(__name__)
# The first one that a run has is shown.
PROTOCOLS = ("linear", "classifier", "linear_sgd", "knn", "linear_10pct", "linear_1pct")
# What reading a damaged file raises.
_DAMAGE = (
    *(KeyError, TypeError, ValueError, OverflowError, RecursionError),
    csv.Error,
)


@dataclasses.dataclass(frozen=True)
class Judged:
    """Predictions for test images, counted by class.

    Attributes:
      names: of the classes, printable.
      pairs: int64 [P, 3]: label, predicted class, number of images; ascending.
      origin: where they are from, in words.
    """

    names: tuple[str, ...]
    pairs: np.ndarray
    origin: str


def read(workdir: str) -> Judged | None:
    """The predictions of the first of `PROTOCOLS` that a run has; None without one.

    A file that cannot be read, or does not fit to its receipt, is passed over with a
    warning.
    """
    folder = paths.as_path(workdir) / "eval"
    for protocol in PROTOCOLS:
        path = folder / f"{protocol}.json"
        try:
            return _read(path, workdir)
        except FileNotFoundError:
            continue
        except _DAMAGE as error:
            _LOG.warning("file %s: is passed over (%s)", path, first_line(error))
        except Exception as error:
            if not paths.is_failure(error):
                raise
            _LOG.warning("file %s: cannot be read (%s)", path, first_line(error))
    return None


def _read(path: epath.Path, workdir: str) -> Judged:
    receipt = json.loads(path.read_text(encoding="utf-8"))
    by_class = receipt["by_class"]
    found = [str(one["class"]) for one in by_class]
    matrix = path.with_name(f"{path.stem}.confusion.csv")
    rows = csv.reader(matrix.read_text(encoding="utf-8").splitlines())
    pairs = _pairs(rows, found)
    counts = np.bincount(pairs[:, 0], weights=pairs[:, 2], minlength=len(found))
    if counts.astype(int).tolist() != [one["num_test"] for one in by_class]:
        raise ValueError(f"{matrix.name} counts other images than {path.name}")
    return Judged(_names(found, workdir), pairs, _origin(receipt))


def _pairs(rows: Any, found: Sequence[str]) -> np.ndarray:
    """What `ClassFigures.as_csv` wrote, as `Judged.pairs`."""
    header = next(rows, None)
    if header is None:
        raise ValueError("the matrix is empty")
    if header == ["label", "predicted", "images"]:
        number = {name: i for i, name in enumerate(found)}
        listed = [(number[a], number[b], int(count)) for a, b, count in rows]
        return np.array(listed, np.int64).reshape(-1, 3)
    matrix = np.array([[int(cell) for cell in row[1:]] for row in rows], np.int64)
    if matrix.shape != (len(found), len(found)):
        raise ValueError(f"the matrix has the shape {matrix.shape}")
    labels, predicted = np.nonzero(matrix)
    return np.stack([labels, predicted, matrix[labels, predicted]], axis=1)


def _names(found: Sequence[str], workdir: str) -> tuple[str, ...]:
    """Those of the receipt; for numbers, those that the run recorded."""
    numbers = [str(number) for number in range(len(found))]
    recorded = names.recorded(workdir, len(found)) if [*found] == numbers else None
    return recorded or names.named(found, len(found)) or ()


def _origin(receipt: dict[str, Any]) -> str:
    return names.shown(
        f"{receipt['protocol']} evaluation of the checkpoint of step "
        f"{receipt['checkpoint_step']}, {receipt['num_test']:,} images of "
        f"{receipt['test_split']}"
    )
