"""Grids of images, and the files of TensorBoard's embedding projector."""

import math
import pathlib

import numpy as np
from PIL import Image

from simclr_jax.runs.writers.protocol import Points

PROJECTOR = "projector"


def grid(images: np.ndarray, columns: int, *, gap: int = 0) -> np.ndarray:
    """Images beside and below each other.

    Args:
      images: uint8 [N, S, S, 3].
      columns: images in a row; what the last row lacks is black.
      gap: white pixels after each image, and below it.

    Returns:
      uint8 [rows * (S + gap), columns * (S + gap), 3].
    """
    rows = math.ceil(len(images) / columns)
    missing = rows * columns - len(images)
    images = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
    images = np.pad(images, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    side = images.shape[1]
    tiles = images.reshape(rows, columns, side, side, 3).swapaxes(1, 2)
    return tiles.reshape(rows * side, columns * side, 3)


def write_projector(folder: pathlib.Path, points: Points) -> pathlib.Path:
    """Writes what TensorBoard's projector, or projector.tensorflow.org, opens.

    Args:
      folder: gets `projector_config.pbtxt`, and a folder `projector` with the vectors,
        a table of labels and a square sprite of the thumbnails.
      points: of some images.

    Returns:
      The folder `projector`.
    """
    data = folder / PROJECTOR
    data.mkdir(parents=True, exist_ok=True)
    np.savetxt(data / "tensors.tsv", points.h, fmt="%.6g", delimiter="\t")
    rows = ["label\timage"]
    for label, image in zip(points.labels, points.images, strict=True):
        rows.append(f"{' '.join(label.split())}\t{image}")
    (data / "metadata.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    columns = math.ceil(math.sqrt(len(points.thumbnails)))
    sprite = grid(points.thumbnails, columns)
    square = np.zeros((sprite.shape[1], sprite.shape[1], 3), np.uint8)
    square[: len(sprite)] = sprite
    Image.fromarray(square).save(data / "sprite.png")
    side = points.thumbnails.shape[1]
    (folder / "projector_config.pbtxt").write_text(
        "embeddings {\n"
        '  tensor_name: "h"\n'
        f'  tensor_path: "{PROJECTOR}/tensors.tsv"\n'
        f'  metadata_path: "{PROJECTOR}/metadata.tsv"\n'
        "  sprite {\n"
        f'    image_path: "{PROJECTOR}/sprite.png"\n'
        f"    single_image_dim: {side}\n"
        f"    single_image_dim: {side}\n"
        "  }\n"
        "}\n"
    )
    return data
