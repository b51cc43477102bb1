"""Training images with the two views that a step makes of each."""

import numpy as np
from ml_collections import config_dict

from simclr_jax.data.sources import pixels
from simclr_jax.errors import BadRecord, DataError
from simclr_jax.report import names, thumbnails
from simclr_jax.report.sections import Section
from simclr_jax.training import input_pipeline, step_views

NAME, TITLE = "pairs", "Positive pairs"
_NUM_IMAGES = 8
_LOSSLESS = 64  # pixels: larger pictures are compressed, and shown at `_LARGEST`
_LARGEST = 128
# Runs of these configs train on single views with labels.
_SINGLE_VIEWS = {"finetune": "fine-tuning", "distill": "distillation"}


def section(
    workdir: str,
    config: config_dict.ConfigDict,
    *,
    step: int = 0,
    num_images: int = _NUM_IMAGES,
) -> Section:
    """The first pairs of a step's batch, computed where the run computes views.

    Args:
      workdir: the run directory, for names of classes.
      config: of the run.
      step: from 0.
      num_images: at most so many.

    Raises:
      ConfigError: views cannot be computed on this machine.
      DataError: the images cannot be read, or the run makes no pairs.
    """
    for key, what in _SINGLE_VIEWS.items():
        if key in config:
            raise DataError(f"a {what} learns from single views, not from pairs")
    source = input_pipeline.open_source(config, config.data.split, to_train=True)
    made = step_views.of_step(
        config,
        source,
        num_images=min(num_images, config.batch.batch_size),
        step=step,
        on_bad_record=_pass_over,
    )
    class_names = names.of_classes(source, workdir)
    originals = pixels.read_each(source, made.indices)
    return Section(
        NAME,
        TITLE,
        "pairs.html",
        {
            "step": step + 1,
            "split": names.shown(source.name),
            "operations": list(config.augment.operations),
            "placement": config.augment.placement,
            "image_size": config.image_size,
            "pairs": [
                {
                    "name": names.shown(source.describe(index)),
                    **_original(config, original, class_names),
                    "views": [_uri(view) for view in views],
                }
                for index, original, views in zip(
                    made.indices.tolist(), originals, made.images, strict=True
                )
            ],
        },
    )


def _pass_over(_error: BadRecord, _step: int) -> None:
    """An `OnBadRecord`: the next image takes the place, as in training."""


def _original(
    config: config_dict.ConfigDict,
    read: tuple[np.ndarray, int] | BadRecord,
    class_names: tuple[str, ...] | None,
) -> dict[str, str | None]:
    """The picture of an image as evaluation sees it and its class, or what is wrong."""
    if isinstance(read, BadRecord):
        return {"original": None, "class": None, "reason": names.shown(read.reason)}
    image, label = read
    as_evaluated = step_views.evaluation_preprocessing(config).levels([image])[0]
    known = class_names is not None and 0 <= label < len(class_names)
    return {
        "original": _uri(as_evaluated),
        "class": class_names[label] if class_names and known else None,
        "reason": None,
    }


def _uri(picture: np.ndarray) -> str:
    if len(picture) <= _LOSSLESS:
        return thumbnails.data_uri(picture, lossless=True)
    side = min(len(picture), _LARGEST)
    return thumbnails.data_uri(thumbnails.of_image(picture, side))
