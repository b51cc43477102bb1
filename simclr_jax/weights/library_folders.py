"""Folders of Hugging Face and timm: weights with a config and preprocessing."""

import dataclasses
import pathlib
import re
from typing import Any

from simclr_jax.errors import DataError
from simclr_jax.models import normalization as normalizations
from simclr_jax.weights import descriptions

_CONFIG, _PROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# Values that this package's ResNet has; a file that lacks them has the same.
_MUST_BE: dict[str, Any] = {
    "num_channels": 3,
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
}


@dataclasses.dataclass(frozen=True)
class LibraryFolder:
    """What a folder says of its weights.

    Attributes:
      file: with the weights.
      normalization: of pixels in [0, 1]; None if the folder does not record it.
      image_size: side of the encoder's input; None if it is not recorded.
      crop_proportion: as in `data.preprocessing`; None if it is not recorded.
    """

    file: str
    normalization: str | None = None
    image_size: int | None = None
    crop_proportion: float | None = None


def find(path: str) -> LibraryFolder | None:
    """The folder of Hugging Face or timm at a path, or around a weight file.

    Raises:
      DataError: its network is no ResNet that this package has, or a description is
        damaged.
    """
    given = pathlib.Path(path)
    folder = given.parent if given.name in WEIGHTS else given
    if not (folder / _CONFIG).is_file():
        return None
    config = descriptions.read_json(folder / _CONFIG)
    if "model_type" not in config and "architecture" not in config:
        return None
    files = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not files:
        raise DataError(f"folder {folder}: has none of the files {', '.join(WEIGHTS)}")
    file = path if given.is_file() else str(files[0])
    if "model_type" in config:
        return _hugging_face(folder, config, file)
    return _timm(folder, config, file)


def _hugging_face(
    folder: pathlib.Path, config: dict[str, Any], file: str
) -> LibraryFolder:
    if config["model_type"] != "resnet":
        raise DataError(
            f"file {folder / _CONFIG}: model_type is {config['model_type']!r}: must be "
            "'resnet'"
        )
    for key, value in _MUST_BE.items():
        if config.get(key, value) != value:
            raise DataError(
                f"file {folder / _CONFIG}: {key} is {config[key]!r}: must be {value!r}"
            )
    processor = folder / _PROCESSOR
    if not processor.is_file():
        return LibraryFolder(file)
    content = descriptions.read_json(processor)
    shorter, size = (_side(content.get(key)) for key in ("size", "crop_size"))
    proportion = content.get("crop_pct")
    if size and shorter and content.get("do_center_crop"):
        proportion = min(size / shorter, 1.0)
    else:
        size = shorter
    normalization = "none"
    if content.get("do_normalize", True):
        moments = content.get("image_mean"), content.get("image_std")
        normalization = _normalization(*moments, file=processor)
    return LibraryFolder(file, normalization, size, proportion)


def _timm(folder: pathlib.Path, config: dict[str, Any], file: str) -> LibraryFolder:
    name = str(config["architecture"])
    if not re.fullmatch(r"resnet\d+(\..*)?", name):
        raise DataError(
            f"file {folder / _CONFIG}: architecture is {name!r}: must be a resnet "
            "without variations, such as resnet50"
        )
    content = config.get("pretrained_cfg") or {}
    normalization = _normalization(
        content.get("mean"), content.get("std"), file=folder / _CONFIG
    )
    size = (content.get("input_size") or [None])[-1]
    return LibraryFolder(file, normalization, size, content.get("crop_pct"))


def _side(size: Any) -> int | None:
    """The side that an image processor writes as a number or in a dict."""
    if isinstance(size, dict):
        size = size.get("shortest_edge") or size.get("height")
    return size if isinstance(size, int) else None


def _normalization(mean: Any, std: Any, *, file: pathlib.Path) -> str:
    """The value of `encoder.normalization` for a mean and a standard deviation."""
    if mean is None or std is None:
        raise DataError(f"file {file}: lacks the mean or the standard deviation")
    try:
        return normalizations.canonical((mean, std))
    except ValueError as error:
        raise DataError(f"file {file}: mean={mean!r} std={std!r}: {error}") from error
