"""Real images to compare an exported encoder with its original on."""

import logging
import pathlib
from typing import Any

import numpy as np
from ml_collections import config_dict
from PIL import Image, UnidentifiedImageError

from simclr_jax.data.sources import photographs
from simclr_jax.errors import DataError

_LOG = logging.getLogger(__name__)
_COUNT = 16


def of_folder(folder: str) -> tuple[list[np.ndarray], str]:
    """The first images of a folder.

    Args:
      folder: searched with everything below it.

    Returns:
      (uint8 images [H, W, 3] of any sizes, 16 at most; what they are).

    Raises:
      DataError: no such folder, or no image in it.
    """
    root = pathlib.Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"--images={folder}: no such folder")
    images: list[np.ndarray] = []
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        try:
            with Image.open(path) as file:
                images.append(np.asarray(file.convert("RGB")))
        except (UnidentifiedImageError, OSError, ValueError):
            continue
        if len(images) == _COUNT:
            break
    if not images:
        raise DataError(f"--images={folder}: holds no image")
    return images, f"{len(images)} images of a folder"


def of_run(config: dict[str, Any]) -> tuple[list[np.ndarray], str]:
    """Images from all over the test split of a run, or else photographs.

    Photographs are those of scikit-image; the description says why it was they.

    Args:
      config: of the run.

    Returns:
      As `of_folder`.

    Raises:
      DataError: neither can be read.
    """
    dataset = config["data"]["dataset"]
    split = config["evaluation"]["test_split"]
    try:
        images = _of_split(config_dict.ConfigDict(config), split)
    # Without TensorFlow, without the dataset, with files that TensorFlow cannot decode.
    except Exception as error:
        _LOG.info("Comparing on photographs: %s", error)
        images = photographs.load_whole()[:_COUNT]
        return images, (
            f"{len(images)} photographs of scikit-image (split {split} of {dataset} "
            "could not be read)"
        )
    return images, f"{len(images)} images of {dataset}, split {split}"


def _of_split(config: config_dict.ConfigDict, split: str) -> list[np.ndarray]:
    # Needs TensorFlow, which an export does not.
    from simclr_jax.data.sources import base
    from simclr_jax.training import input_pipeline

    source = input_pipeline.open_source(config, split)
    count = min(_COUNT, source.num_examples)
    indices = np.linspace(0, source.num_examples - 1, count).astype(np.int64)
    pairs = zip(*source.read(indices), strict=True)
    return [np.asarray(base.decode(source, *pair)[0]) for pair in pairs]
