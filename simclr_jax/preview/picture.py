"""A picture of training images and their views, one image per row."""

import numpy as np
from ml_collections import config_dict
from PIL import Image

from simclr_jax.data import pipeline
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.data.sampling import order
from simclr_jax.data.sources import bad_records, pixels
from simclr_jax.data.sources.base import Source
from simclr_jax.errors import InvalidInput
from simclr_jax.training import input_pipeline
from simclr_jax.training.device_views import make_composition

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
    views = _training_views(config, source, num_images, num_views)
    originals = _evaluation_images(config, source, num_images)
    tiles = np.concatenate([originals[:, None], views], axis=1)
    picture = _arrange(tiles, scale=-(-_MIN_TILE // config.image_size))
    try:
        Image.fromarray(picture).save(path)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"--output={path}: cannot be written ({error})") from error


def _training_views(
    config: config_dict.ConfigDict, source: Source, num_images: int, num_views: int
) -> np.ndarray:
    """The views of the first training step: (images, views, height, width, 3)."""
    batches = pipeline.train_batches(
        source,
        make_composition(config),
        seed=config.seed,
        batch_size=num_images,
        num_views=num_views,
        stop_step=1,
        compiled=input_pipeline.use_compiled_views(config),
        on_bad_record=bad_records.refuse,
        buffers=input_pipeline.make_buffers(
            config, batch_size=num_images, num_views=num_views
        ),
    )
    return next(batches)["images"]


def _evaluation_images(
    config: config_dict.ConfigDict, source: Source, num_images: int
) -> np.ndarray:
    """The images of the first training step, as evaluation sees them."""
    indices, _ = order.batch_indices(
        0, seed=config.seed, num_examples=source.num_examples, batch_size=num_images
    )
    preprocess = Preprocessing(
        image_size=config.image_size,
        crop_proportion=config.evaluation.crop_proportion,
        resize=config.evaluation.resize,
    )
    images, _ = pixels.read(source, indices)
    return np.rint(preprocess(images) * 255).astype(np.uint8)


def _arrange(tiles: np.ndarray, *, scale: int) -> np.ndarray:
    """One picture of (rows, columns, height, width, 3) tiles, enlarged by `scale`."""
    tiles = tiles.repeat(scale, axis=2).repeat(scale, axis=3)
    gaps = ((0, 0), (0, 0), (0, _GAP), (0, _GAP), (0, 0))
    tiles = np.pad(tiles, gaps, constant_values=255)
    rows, columns, height, width, _ = tiles.shape
    picture = tiles.swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    return picture[:-_GAP, :-_GAP]
