"""Results of a part, on disk as soon as they are there, and what all parts share."""

import dataclasses
import json
import os
import pathlib
import time
from typing import Any

import cifar_npz
import numpy as np


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the command was told.

    Attributes:
      workdir: of results, runs and data.
      toy: sizes that one CPU core handles in seconds.
      cifar: a file that `cifar_npz.py` wrote; None for generated images.
      deadline: of the part, in seconds of `time.monotonic`.
    """

    workdir: pathlib.Path
    toy: bool
    cifar: pathlib.Path | None
    deadline: float

    @property
    def secs_left(self) -> float:
        """Until the deadline."""
        return self.deadline - time.monotonic()

    def data(self) -> str:
        """The dataset `npz:FILE` of small images, unpacked at the first use."""
        folder = self.workdir / "data"
        if not (folder / "test.npz").exists():
            folder.mkdir(parents=True, exist_ok=True)
            splits = cifar_npz.read(self.cifar) if self.cifar else _generated(self.toy)
            for split, (images, labels) in splits.items():
                partial = folder / f"partial-{split}.npz"
                np.savez(partial, images=images, labels=labels)
                partial.rename(folder / f"{split}.npz")
        return f"npz:{folder}/{{split}}.npz"


def _generated(toy: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Noise around a colour for each of ten classes."""
    generator = np.random.default_rng(0)
    result = {}
    for split, count in (("train", 160 if toy else 50_000), ("test", 80)):
        labels = np.arange(count, dtype=np.int32) % 10
        images = generator.integers(0, 100, (count, 32, 32, 3), np.uint8)
        images += (15 * labels[:, None, None, None]).astype(np.uint8)
        result[split] = images, labels
    return result


class Record:
    """The rows of a part by name, in a file that is written at every change."""

    def __init__(self, path: pathlib.Path) -> None:
        """Opens the file, or starts a new one."""
        self._path = path
        self.content: dict[str, Any] = {"rows": {}, "finished": False, "error": None}
        if path.exists():
            self.content = json.loads(path.read_text())

    @property
    def rows(self) -> dict[str, Any]:
        """Results so far."""
        return self.content["rows"]

    def __contains__(self, name: str) -> bool:
        return name in self.rows

    def __setitem__(self, name: str, row: Any) -> None:
        self.rows[name] = row
        self.save()
        print(f"  {name}: {json.dumps(row)}", flush=True)

    def save(self, **changes: Any) -> None:
        """Writes the file, atomically."""
        self.content |= changes
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self.content, indent=1) + "\n")
        os.replace(partial, self._path)
