"""What every exported folder holds beside the weights, and how it is read again."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.errors import DataError
from simclr_jax.models import ResNet, SimCLR, create_projection_head
from simclr_jax.models.resnet import NORMALIZATIONS
from simclr_jax.training import build
from simclr_jax.weights.encoder import PretrainedEncoder

ENCODER, PREPROCESSING = "encoder.json", "preprocessing.json"
PARITY, CARD = "parity.json", "README.md"
# How an encoder is computed, which weights do not depend on.
_EXECUTION = {
    *("remat", "convolutions", "gradient_dtype", "frozen_through", "frozen_batch_norm"),
    *("parent", "name"),
}
# The sources of resizing, in words.
_RESIZES = {
    "bicubic": "bicubic (Keys, a = -0.5), half-pixel centres, no antialiasing, to a "
    "square of image_size; as tf.image.resize",
    "bicubic_legacy": "bicubic (a = -0.75), centres at whole pixels, no antialiasing, "
    "to a square of image_size; as TensorFlow 1",
}


def settings_of(encoder: ResNet) -> dict[str, Any]:
    """An encoder's arguments of `models.create_encoder` as JSON values, in float32."""
    names = {field.name for field in dataclasses.fields(encoder)} - _EXECUTION
    settings = {name: getattr(encoder, name) for name in sorted(names)}
    return {**settings, "dtype": "float32"}


def exact(pretrained: PretrainedEncoder) -> PretrainedEncoder:
    """The encoder alone, in float32 and in the formulation that every device takes."""
    encoder = build.make_encoder(settings_of(pretrained.encoder))
    return dataclasses.replace(
        pretrained,
        model=SimCLR(encoder, create_projection_head(kind="none")),
        variables=jax.tree.map(np.asarray, pretrained.variables),
        heads={},
    )


def features(pretrained: PretrainedEncoder, inputs: np.ndarray) -> np.ndarray:
    """Features [N, D] of prepared images, with products at the highest precision."""
    with jax.default_matmul_precision("highest"):
        return np.asarray(pretrained.layer(0)(jnp.asarray(inputs)))


def write_descriptions(
    folder: pathlib.Path, pretrained: PretrainedEncoder, *, name: str, inside: bool
) -> None:
    """Writes `encoder.json` and `preprocessing.json`.

    Args:
      folder: of the export.
      pretrained: from `exact`.
      name: of the format.
      inside: whether what is exported takes out mean and standard deviation itself.
    """
    encoder = {
        "format": name,
        "encoder": settings_of(pretrained.encoder),
        "feature_width": pretrained.encoder.feature_width,
        "step": pretrained.step,
        "config_hash": pretrained.config_hash,
        "config": pretrained.config,
    }
    write_json(folder / ENCODER, encoder)
    write_json(folder / PREPROCESSING, preprocessing(pretrained, inside=inside))


def preprocessing(pretrained: PretrainedEncoder, *, inside: bool) -> dict[str, Any]:
    """What `preprocessing.json` says; see `write_descriptions`."""
    own = pretrained.preprocessing
    moments = NORMALIZATIONS[pretrained.encoder.normalization]
    normalization = None
    if moments is not None:
        normalization = {
            "mean": list(moments[0]),
            "std": list(moments[1]),
            "applied_by": "the exported encoder" if inside else "you, after resizing",
        }
    return {
        **dataclasses.asdict(own),
        "channels": "RGB",
        "input_range": [0, 1],
        "normalization": normalization,
        "steps": [
            "divide uint8 pixels by 255",
            "cut out the central square whose side is crop_proportion times the "
            "image's shorter side, rounded to even at halves",
            f"resize it: {_RESIZES[own.resize]}; nothing where it has that size",
            "clip to [0, 1]",
        ],
    }


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes indented JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def is_export(path: str) -> bool:
    """Whether a path is a folder that `simclr_jax.export` wrote."""
    return (pathlib.Path(path) / ENCODER).is_file()


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object of an exported folder.

    Raises:
      DataError: it is missing, or no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"file {path}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"file {path}: must hold a JSON object")
    return content


def read_preprocessing(folder: pathlib.Path) -> Preprocessing:
    """The preprocessing of an exported folder.

    Raises:
      DataError: `preprocessing.json` is missing or damaged.
    """
    content = read_json(folder / PREPROCESSING)
    names = [field.name for field in dataclasses.fields(Preprocessing)]
    try:
        return Preprocessing(**{name: content[name] for name in names})
    except KeyError as error:
        raise DataError(f"file {folder / PREPROCESSING}: lacks {error}") from error
