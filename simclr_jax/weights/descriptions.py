"""The descriptions in an exported folder: `encoder.json` and `preprocessing.json`."""

import dataclasses
import json
import pathlib
from typing import Any

from etils import epath

from simclr_jax import paths
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.errors import DataError, first_line
from simclr_jax.models import normalization as normalizations
from simclr_jax.weights import classifiers
from simclr_jax.weights.encoder import PretrainedEncoder, settings_of

ENCODER, PREPROCESSING = "encoder.json", "preprocessing.json"
PARITY, CARD = "parity.json", "README.md"
# Stands for the name of the exported folder in the lines of its model card.
FOLDER = "<folder>"
_RESIZES = {
    "bicubic": "bicubic (Keys, a = -0.5), half-pixel centres, no antialiasing, to a "
    "square of image_size; as tf.image.resize",
    "bicubic_antialias": "bicubic (Keys, a = -0.5), half-pixel centres, antialiased: "
    "the cubic is as much wider as the image shrinks, to a square of image_size; as "
    "Pillow's BICUBIC and torchvision's with antialias=True",
    "bicubic_legacy": "bicubic (a = -0.75), centres at whole pixels, no antialiasing, "
    "to a square of image_size; as TensorFlow 1",
}


def write(
    folder: pathlib.Path, pretrained: PretrainedEncoder, *, name: str, normalizes: bool
) -> None:
    """Writes `encoder.json`, `preprocessing.json` and, if any, the classes' names.

    Args:
      folder: of the export.
      pretrained: from `encoder.without_heads`.
      name: of the format.
      normalizes: whether the exported encoder subtracts the mean and divides by the
        standard deviation.
    """
    encoder = {
        "format": name,
        "encoder": settings_of(pretrained.encoder),
        "feature_width": pretrained.encoder.feature_width,
        "classifier": classifiers.describe(pretrained),
        "step": pretrained.step,
        "config_hash": pretrained.config_hash,
        "config": pretrained.config,
    }
    write_json(folder / ENCODER, encoder)
    classifiers.write_names(folder, pretrained)
    content = describe_preprocessing(pretrained, normalizes=normalizes)
    write_json(folder / PREPROCESSING, content)


def describe_preprocessing(
    pretrained: PretrainedEncoder, *, normalizes: bool
) -> dict[str, Any]:
    """The content of `preprocessing.json`; arguments as for `write`."""
    preprocessing = pretrained.preprocessing
    moments = normalizations.moments(pretrained.encoder.normalization)
    normalization = None
    if moments is not None:
        normalization = {
            "mean": list(moments[0]),
            "std": list(moments[1]),
            "applied_by": "the exported encoder"
            if normalizes
            else "you, after resizing",
        }
    handling = []
    if preprocessing.exif_orientation:
        handling.append("turn the image upright by its EXIF orientation")
    if preprocessing.white_level is not None:
        handling.append(
            "scale images of more than 8 bits to uint8: floor(value * 256 / "
            f"{preprocessing.white_level + 1})"
            if preprocessing.white_level > 1
            else "scale floats in [0, 1] to uint8: round(value * 255)"
        )
    return {
        **dataclasses.asdict(preprocessing),
        "channels": "RGB",
        "input_range": [0, 1],
        "normalization": normalization,
        "steps": [
            *handling,
            "divide uint8 pixels by 255",
            "crop the central square whose side is crop_proportion times the image's "
            "shorter side, rounded to the nearest integer, halves to even",
            f"resize it, unless it has that size: {_RESIZES[preprocessing.resize]}",
            "clip to [0, 1]",
        ],
    }


def is_export(path: str) -> bool:
    """Whether a path is a folder that `simclr_jax.export` wrote."""
    return (paths.as_path(path) / ENCODER).is_file()


def read_preprocessing(folder: pathlib.Path) -> Preprocessing:
    """The preprocessing of an exported folder.

    Raises:
      DataError: `preprocessing.json` is missing or damaged.
    """
    content = read_json(folder / PREPROCESSING)
    # Earlier versions wrote fewer.
    later = {
        field.name: content.get(field.name, field.default)
        for field in dataclasses.fields(Preprocessing)
        if field.default is not dataclasses.MISSING
    }
    names = ("image_size", "crop_proportion", "resize")
    try:
        found = Preprocessing(**later | {name: content[name] for name in names})
    except KeyError as error:
        raise DataError(f"file {folder / PREPROCESSING}: lacks {error}") from error
    size, proportion = found.image_size, found.crop_proportion
    level, upright = found.white_level, found.exif_orientation
    is_valid = (
        isinstance(size, int)
        and size > 0
        and isinstance(proportion, int | float)
        and 0 < proportion <= 1
        and found.resize in _RESIZES
        and (level is None or (isinstance(level, int) and level > 0))
        and isinstance(upright, bool)
    )
    if not is_valid:
        raise DataError(f"file {folder / PREPROCESSING}: has no such {found}")
    return found


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes indented JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: pathlib.Path | epath.Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      DataError: the file is missing, or does not hold a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"file {path}: cannot be read ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise DataError(f"file {path}: must hold a JSON object")
    return content
