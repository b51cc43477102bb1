"""A picture of training images, their augmentations and their views."""

from collections.abc import Sequence

from ml_collections import config_dict

from simclr_jax.errors import ConfigError, InvalidInput
from simclr_jax.preview import layout, sections
from simclr_jax.preview.forms import Forms, NotHere
from simclr_jax.training import input_pipeline, step_views
from simclr_jax.training.device_views import make_composition


def write_preview(
    config: config_dict.ConfigDict,
    path: str,
    *,
    show: Sequence[str],
    num_images: int,
    num_views: int,
) -> None:
    """Draws the images of a training and what its augmentations make of them.

    Args:
      config: valid.
      path: of the picture; its suffix is the format.
      show: names in `sections.SECTIONS`.
      num_images: that are shown.
      num_views: views in a row, after the image as evaluation sees it.

    Raises:
      ConfigError: `show` names no section, or views cannot be made here.
      DataError: the dataset cannot be read, or has fewer images.
      InvalidInput: the picture cannot be written to `path`.
    """
    check_show(show)
    input_pipeline.use_compiled_views(config)  # raises where training could not
    source = input_pipeline.open_source(config, config.data.split, to_train=True)
    source = input_pipeline.hold_in_memory(config, source)
    sample = sections.sample(
        source,
        make_composition(config),
        step_views.evaluation_preprocessing(config),
        seed=config.seed,
        num_images=num_images,
        num_views=max(num_views, 2),  # a pair has two
    )
    forms = Forms(config.augment.placement, config.augment.host_views)
    try:
        parts = [sections.SECTIONS[name](sample, forms, num_views) for name in show]
    except NotHere as why:
        raise ConfigError(
            f"config.augment.placement={config.augment.placement!r}: {why}"
        ) from why
    try:
        layout.draw(parts).save(path)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"--output={path}: cannot be written ({error})") from error


def check_show(show: Sequence[str]) -> None:
    """Raises ConfigError unless all names are of sections."""
    for name in show:
        if name not in sections.SECTIONS:
            known = ", ".join(sections.SECTIONS)
            raise ConfigError(f"--show={name}: must be one or more of {known}")
