"""A picture of training images, their augmentations and their views."""

import io
import os
from collections.abc import Sequence

from ml_collections import config_dict
from PIL import Image

from simclr_jax import paths
from simclr_jax.errors import ConfigError
from simclr_jax.preview import layout, sections
from simclr_jax.preview.forms import Forms, NotHere
from simclr_jax.runs import atomic
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
      path: of the picture, local or on a store; its suffix is the format.
      show: names in `sections.SECTIONS`.
      num_images: that are shown.
      num_views: views in a row, after the image as evaluation sees it.

    Raises:
      ConfigError: `show` names no section, views cannot be made here, or the picture
        cannot be written to `path`, which is checked first.
      DataError: the dataset cannot be read, or has fewer images.
    """
    check_show(show)
    _encoded(Image.new("RGB", (8, 8)), path)
    atomic.check_output(path, flag="output")
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
    content = _encoded(layout.draw(parts), path)
    with atomic.one_line(f"--output={path}: cannot be written"):
        paths.as_path(path).write_bytes(content)


def _encoded(picture: Image.Image, path: str) -> bytes:
    """The picture in the format of a path; raises ConfigError if there is none."""
    suffix = os.path.splitext(path)[1].lower()
    content = io.BytesIO()
    try:
        picture.save(content, Image.registered_extensions()[suffix])
    except (KeyError, OSError, ValueError) as error:
        raise ConfigError(
            f"--output={path}: must end with the suffix of a format that Pillow can "
            f"write, such as .png ({error})"
        ) from error
    return content.getvalue()


def check_show(show: Sequence[str]) -> None:
    """Raises ConfigError unless all names are of sections."""
    for name in show:
        if name not in sections.SECTIONS:
            known = ", ".join(sections.SECTIONS)
            raise ConfigError(f"--show={name}: must be one or more of {known}")
