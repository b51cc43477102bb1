"""Compares the features of an exported encoder with those of the original."""

import dataclasses
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from simclr_jax.data.image_files import open_image
from simclr_jax.data.sources import photographs
from simclr_jax.errors import DataError, ExportFailed
from simclr_jax.models.resnet import strides
from simclr_jax.weights import jax_formats, load, torch_peers
from simclr_jax.weights.encoder import PretrainedEncoder, settings_of
from simclr_jax.weights.formats import FORMATS
from simclr_jax.weights.load import EncoderProgram

_LOG = logging.getLogger(__name__)

# As a share of the largest feature, in float32.
TOLERANCE = 1e-4
_NUM_IMAGES = 16
_KINDS = ("features", "logits")


@dataclasses.dataclass(frozen=True)
class Samples:
    """Images to compare features on.

    Attributes:
      images: uint8 [H, W, 3] of any sizes, at most 16.
      description: for the model card.
    """

    images: list[np.ndarray]
    description: str


@dataclasses.dataclass(frozen=True)
class Parity:
    """Differences between the features of an export and those of the original.

    Attributes:
      images: description of the images.
      scale: the largest absolute value among the original's features.
      comparisons: one for each library that opened the export: its name and version,
        the largest and the mean absolute difference, and the largest as a share of
        `scale`.
      not_compared: why the library of the format did not open the export; None if it
        did, or if the format is for this package or JAX.
    """

    images: str
    scale: float
    comparisons: tuple[dict[str, Any], ...]
    not_compared: str | None

    def as_json(self) -> dict[str, Any]:
        """The content of `parity.json`."""
        reference = (
            f"float32 with products at the highest precision, JAX {jax.__version__} on "
            f"{jax.default_backend()}"
        )
        return {
            **dataclasses.asdict(self),
            "reference": reference,
            "tolerance": TOLERANCE,
        }

    def lines(self) -> list[str]:
        """One readable line for each comparison."""
        lines = [
            f"{c['output']} in {c['library']}: largest difference {c['max_abs']:.1e}, "
            f"mean {c['mean_abs']:.1e}; largest of them {c['scale']:.2g}; "
            f"on {self.images}"
            for c in self.comparisons
        ]
        if self.not_compared:
            lines.append(f"not compared: {self.not_compared}")
        return lines


def measure(
    name: str, folder: pathlib.Path, original: PretrainedEncoder, samples: Samples
) -> Parity:
    """Opens an exported folder and compares its features with the original's.

    Args:
      name: of the format.
      folder: the export.
      original: from `encoder.without_heads`.
      samples: the images.

    Raises:
      ExportFailed: features differ by more than the tolerance, or are not finite.
    """
    inputs = original.preprocessing(samples.images)
    references = outputs(original, inputs)
    results: dict[str, Sequence[np.ndarray]] = {}
    library, not_compared = FORMATS[name].library, None
    if library and (package := torch_peers.missing(library)):
        not_compared = f"{package} is not installed"
    elif library:
        settings = settings_of(original.encoder)
        classes = original.model.num_classes
        by = torch_peers.version(library)
        if classes is None:
            results[by] = [torch_peers.features(library, folder, settings, inputs)]
        else:
            results[by] = torch_peers.features_and_logits(
                library, folder, settings, inputs, num_classes=classes
            )
    opened = load.read_export(folder)
    if isinstance(opened, EncoderProgram):
        results["jax.export"] = [
            np.asarray(output) for output in opened.outputs(jnp.asarray(inputs))
        ]
    else:
        results["simclr_jax.load"] = outputs(opened, inputs)
    comparisons = [
        compare(reference, output, by, kind)
        for by, found in results.items()
        for kind, reference, output in zip(_KINDS, references, found, strict=False)
    ]
    if (folder / jax_formats.PYRAMID).exists():
        comparisons.append(_compare_pyramid(folder, original, inputs))
    scale = float(np.abs(references[0]).max())
    return Parity(samples.description, scale, tuple(comparisons), not_compared)


def _compare_pyramid(
    folder: pathlib.Path, original: PretrainedEncoder, inputs: np.ndarray
) -> dict[str, Any]:
    """C5, averaged over its positions, is h; on images that the strides divide."""
    last = strides(original.encoder)[-1]
    size = -(-inputs.shape[1] // last) * last
    fill = [(0, 0), *[(0, size - inputs.shape[1])] * 2, (0, 0)]
    inputs = np.pad(inputs, fill)
    program = jax_formats.read_program(folder, jax_formats.PYRAMID)
    *_, c5 = program.call(jnp.asarray(inputs))
    pooled = np.asarray(c5.mean((1, 2)))
    return compare(features(original, inputs), pooled, jax_formats.PYRAMID)


def outputs(pretrained: PretrainedEncoder, inputs: np.ndarray) -> list[np.ndarray]:
    """[h], or [h, logits] with a classifier, as `features`."""
    h = features(pretrained, inputs)
    if pretrained.model.num_classes is None:
        return [h]
    return [h, np.asarray(pretrained.classifier_of_h()(jnp.asarray(h)))]


def features(pretrained: PretrainedEncoder, inputs: np.ndarray) -> np.ndarray:
    """Features [N, D] of preprocessed images, at the highest matmul precision."""
    with jax.default_matmul_precision("highest"):
        return np.asarray(pretrained.layer(0)(jnp.asarray(inputs)))


def compare(
    reference: np.ndarray, h: np.ndarray, library: str, kind: str = "features"
) -> dict[str, Any]:
    """Differences of features or logits; raises ExportFailed if they are too large."""
    if h.shape != reference.shape:
        raise ExportFailed(
            f"the export gives {kind} of shape {h.shape} in {library}, and the "
            f"original of shape {reference.shape}"
        )
    difference = np.abs(h.astype(np.float64) - reference)
    scale = float(np.abs(reference).max())
    largest = float(difference.max())
    # False for NaN too.
    if not largest <= TOLERANCE * scale:
        raise ExportFailed(
            f"the export gives other {kind} in {library}: they differ by up to "
            f"{largest:.2g}, and the largest is {scale:.2g}; must be within "
            f"{TOLERANCE:g} of it"
        )
    return {
        "library": library,
        "output": kind,
        "max_abs": largest,
        "mean_abs": float(difference.mean()),
        "relative": largest / scale if scale else 0.0,
        "scale": scale,
    }


def images_of_folder(folder: str) -> Samples:
    """The first images of a folder and its subfolders.

    Raises:
      DataError: the folder does not exist or holds no image.
    """
    root = pathlib.Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"--images={folder}: no such folder")
    images: list[np.ndarray] = []
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        try:
            with open_image(str(path), num_bytes=path.stat().st_size) as file:
                images.append(np.asarray(file.convert("RGB")))
        except Exception:  # decoders raise anything on what is no image
            continue
        if len(images) == _NUM_IMAGES:
            break
    if not images:
        raise DataError(f"--images={folder}: holds no image")
    return Samples(images, f"{len(images)} images of a folder")


def images_of_run(config: dict[str, Any]) -> Samples:
    """Images from all parts of a run's test split; photographs if it cannot be read.

    The photographs are those of scikit-image.

    Args:
      config: of the run.

    Raises:
      DataError: neither can be read.
    """
    dataset = config["data"]["dataset"]
    split = config["evaluation"]["test_split"]
    try:
        images = _images_of_split(config_dict.ConfigDict(config), split)
    # TensorFlow or the dataset may be missing, or TensorFlow cannot decode its files.
    except Exception as error:
        _LOG.info("Comparing on photographs: %s", error)
        images = photographs.load_whole()[:_NUM_IMAGES]
        return Samples(
            images,
            f"{len(images)} photographs of scikit-image (split {split} of {dataset} "
            "could not be read)",
        )
    return Samples(images, f"{len(images)} images of {dataset}, split {split}")


def _images_of_split(config: config_dict.ConfigDict, split: str) -> list[np.ndarray]:
    # Imported here: exports of a run without images need no input pipeline.
    from simclr_jax.data.sources import pixels
    from simclr_jax.training import input_pipeline

    source = input_pipeline.open_source(config, split)
    count = min(_NUM_IMAGES, source.num_examples)
    indices = np.linspace(0, source.num_examples - 1, count).astype(np.int64)
    return list(pixels.read(source, indices)[0])
