"""A picture of the first views of a run, for the writers of its log."""

import logging

import jax
import numpy as np
from ml_collections import config_dict

from simclr_jax.data.sampling import draws, order
from simclr_jax.data.views import resident
from simclr_jax.errors import first_line
from simclr_jax.runs.writers import Writers, pictures
from simclr_jax.training.device_views import make_composition
from simclr_jax.training.objectives import Batch

_LOG = logging.getLogger(__name__)
_IMAGES, _COLUMNS, _GAP = 16, 8, 2


def write(
    config: config_dict.ConfigDict, writers: Writers, num_views: int, batch: Batch
) -> None:
    """Writes the views of the first images of the first step as one picture.

    The batch stays as it is. Where it cannot be done that is a warning.

    Args:
      config: resolved.
      writers: that get the picture `views`, at step 0.
      num_views: V.
      batch: the first step's input, as `input_pipeline.global_batches` has it.
    """
    try:
        views = of_batch(config, num_views, batch)
        columns = _COLUMNS // num_views * num_views or num_views
        tiles = views.reshape(-1, *views.shape[2:])
        writers.image(0, "views", pictures.grid(tiles, columns, gap=_GAP))
    # A run does not end because of a picture.
    except Exception as error:
        _LOG.warning("No picture of the first views: %s", first_line(error))


def of_batch(
    config: config_dict.ConfigDict, num_views: int, batch: Batch
) -> np.ndarray:
    """Views of the first images of the first step, uint8 [n, V, S, S, 3].

    Only this process's first device works. Of views that accelerators make, rounding
    may differ by a level.

    Args:
      config: resolved.
      num_views: V.
      batch: as in `write`.
    """
    images = batch["images"].addressable_data(0)
    placement = config.augment.placement
    if placement == "host":
        return np.asarray(images[:_IMAGES])
    composition = make_composition(config)
    views = jax.jit(resident.in_parts(composition, 1))
    if placement == "host_crop":
        crops = np.asarray(images[:_IMAGES])
        uniform = np.asarray(batch["draws"].addressable_data(0)[:_IMAGES])
        return np.asarray(views(crops, uniform, None))
    indices, epochs = order.batch_indices(
        0,
        seed=config.seed,
        num_examples=len(images),
        batch_size=config.batch.batch_size,
    )
    first = indices[:_IMAGES]
    key = order.view_keys(
        first.astype(np.uint32),
        epochs[:_IMAGES].astype(np.uint32),
        seed=config.seed,
        num_views=num_views,
    )
    uniform = draws.view_draws(key, composition.operations)
    height, width = images.shape[1:3]
    boxes = composition.draw_boxes(key, (height, width))
    return np.asarray(views(np.asarray(images[first]), uniform, boxes))
