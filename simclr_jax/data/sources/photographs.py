"""A small real dataset that needs no network: patches of scikit-image's photographs.

Eighteen photographs and micrographs are part of scikit-image's wheel (it lists their
licences). A patch is labelled by the photograph it was cut from. Training
patches come from the left of each photograph and test patches from the right, with a
gap between them, so no test patch shows part of a training patch.
"""

import importlib.util
import pathlib

import numpy as np
from PIL import Image

from simclr_jax.errors import DataError

PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
    "text.png",
)
PATCH_SIZE = 32
# Patches of each photograph, and the part of its width that contains them.
SPLITS = {"train": (400, 0.0, 0.65), "test": (60, 0.7, 1.0)}


def _folder() -> pathlib.Path:
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "dataset 'photographs': needs scikit-image, which contains them; install "
            "it with `pip install scikit-image`, or the extra simclr_jax[smoke]"
        )
    return pathlib.Path(spec.submodule_search_locations[0]) / "data"


def load_whole() -> list[np.ndarray]:
    """All photographs, uint8 [H, W, 3] of different sizes.

    Raises:
      DataError: scikit-image, or a photograph in it, is missing.
    """
    return [_read(name) for name in PHOTOGRAPHS]


def _read(name: str) -> np.ndarray:
    path = _folder() / name
    if not path.exists():
        raise DataError(f"dataset 'photographs': {path} is missing")
    with Image.open(path) as file:
        return np.asarray(file.convert("RGB"))


def load(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Cuts the patches of one split; the same ones each time.

    Args:
      split: 'train' or 'test'.

    Returns:
      (images uint8 [N, 32, 32, 3], labels int32 [N] in [0, 18)).

    Raises:
      KeyError: unknown split.
      DataError: scikit-image, or a photograph in it, is missing.
    """
    count, left, right = SPLITS[split]
    generator = np.random.default_rng(0)
    patches = []
    for name in PHOTOGRAPHS:
        photograph = _read(name)
        height, width = photograph.shape[:2]
        first, last = round(left * width), round(right * width) - PATCH_SIZE
        for _ in range(count):
            y = generator.integers(height - PATCH_SIZE + 1)
            x = generator.integers(first, last + 1)
            patches.append(photograph[y : y + PATCH_SIZE, x : x + PATCH_SIZE])
    labels = np.repeat(np.arange(len(PHOTOGRAPHS), dtype=np.int32), count)
    return np.stack(patches), labels
