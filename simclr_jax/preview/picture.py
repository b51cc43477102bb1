"""A picture of training images and their views, one image per row."""

import numpy as np
from ml_collections import config_dict
from PIL import Image

from simclr_jax.data.sources import pixels
from simclr_jax.errors import InvalidInput
from simclr_jax.training import input_pipeline, step_views

_GAP = 2  # white pixels between tiles
_MIN_TILE = 64  # smaller views are enlarged


def write_preview(
    config: config_dict.ConfigDict, path: str, *, num_images: int, num_views: int
) -> None:
    """Draws images and their training views, one image per row.

    Args:
      config: valid.
      path: of the picture; its suffix is the format.
      num_images: rows.
      num_views: views in a row, after the image as evaluation sees it.

    Raises:
      DataError: the dataset cannot be read, or has fewer images.
      InvalidInput: the picture cannot be written to `path`.
    """
    source = input_pipeline.open_source(config, config.data.split, to_train=True)
    source = input_pipeline.hold_in_memory(config, source)
    views = step_views.of_step(
        config,
        source,
        num_images=num_images,
        # More images than a batch are those of a larger one.
        batch_size=num_images,
        num_views=num_views,
    )
    images, _ = pixels.read(source, views.indices)
    originals = step_views.as_evaluated(config, images)
    tiles = np.concatenate([originals[:, None], views.images], axis=1)
    picture = _arrange(tiles, scale=-(-_MIN_TILE // config.image_size))
    try:
        Image.fromarray(picture).save(path)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"--output={path}: cannot be written ({error})") from error


def _arrange(tiles: np.ndarray, *, scale: int) -> np.ndarray:
    """One picture of (rows, columns, height, width, 3) tiles, enlarged by `scale`."""
    tiles = tiles.repeat(scale, axis=2).repeat(scale, axis=3)
    gaps = ((0, 0), (0, 0), (0, _GAP), (0, _GAP), (0, 0))
    tiles = np.pad(tiles, gaps, constant_values=255)
    rows, columns, height, width, _ = tiles.shape
    picture = tiles.swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    return picture[:-_GAP, :-_GAP]
