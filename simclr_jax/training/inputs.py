"""Sources and views, made from a config."""

import numpy as np
from ml_collections import config_dict
from PIL import Image

from simclr_jax.data import augment, pipeline, sources
from simclr_jax.data.records import Source
from simclr_jax.errors import InvalidInput

_GAP = 2  # white pixels between the tiles of a preview
_SMALLEST_TILE = 64  # smaller views are enlarged


def open_source(config: config_dict.ConfigDict, split: str) -> Source:
    """Opens a split of the config's dataset; see `sources.open_source`."""
    return sources.open_source(
        config.data.dataset,
        split=split,
        data_dir=config.data.data_dir,
        image_key=config.data.image_key,
        label_key=config.data.label_key,
    )


def make_view(config: config_dict.ConfigDict) -> pipeline.View:
    """The function that makes one view of an image; see `augment.compose`."""
    operations = tuple(config.augment.operations)
    settings = {name: dict(config.augment[name]) for name in operations}
    return augment.compose(operations, settings, image_size=config.image_size)


def write_preview(
    config: config_dict.ConfigDict, path: str, *, num_images: int, num_views: int
) -> None:
    """Draws images and their training views, an image a row.

    Args:
      config: valid.
      path: of the picture; its suffix is the format.
      num_images: rows.
      num_views: views in a row; the first column is the image as evaluation sees it.

    Raises:
      DataError: the dataset cannot be read, or has fewer images.
      InvalidInput: the picture cannot be written there.
    """
    source = open_source(config, config.data.split)
    settings = {"seed": config.seed, "batch_size": num_images, "stop_step": 1}
    batches = pipeline.train_batches(
        source, make_view(config), num_views=num_views, **settings
    )
    whole = pipeline.train_batches(
        source,
        lambda image, seed: augment.to_uint8(
            augment.center_crop_and_resize(
                image,
                image_size=config.image_size,
                crop_proportion=config.evaluation.crop_proportion,
                resize=config.evaluation.resize,
            )
        ),
        num_views=1,
        **settings,
    )
    tiles = np.concatenate([next(whole)["images"], next(batches)["images"]], axis=1)
    enlarged = -(-_SMALLEST_TILE // config.image_size)
    tiles = tiles.repeat(enlarged, axis=2).repeat(enlarged, axis=3)
    frame = ((0, 0), (0, 0), (0, _GAP), (0, _GAP), (0, 0))
    tiles = np.pad(tiles, frame, constant_values=255)
    rows, columns, height, width, _ = tiles.shape
    picture = tiles.swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    try:
        Image.fromarray(picture[:-_GAP, :-_GAP]).save(path)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"--output={path}: cannot be written ({error})") from error
