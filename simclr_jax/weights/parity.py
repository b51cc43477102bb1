"""Does an exported encoder give the features of the original?"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.errors import ExportFailed
from simclr_jax.weights import export_folder as folders
from simclr_jax.weights import load, torch_peers
from simclr_jax.weights.encoder import PretrainedEncoder
from simclr_jax.weights.formats import FORMATS
from simclr_jax.weights.load import EncoderProgram

# Of the largest feature, in float32.
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Parity:
    """Features of an export against those of the original.

    Attributes:
      images: what they are of.
      scale: the largest absolute value among the original's.
      comparisons: for each library that opened the export: its name and version, the
        largest and the mean absolute difference, and the former as a share of `scale`.
      not_compared: why the library that the export is for did not open it; None where
        it did, or where that is this package or JAX.
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
        """For people to read, a comparison a line."""
        found = [
            f"features in {c['library']}: largest difference {c['max_abs']:.1e}, mean "
            f"{c['mean_abs']:.1e}; largest feature {self.scale:.2g}; on {self.images}"
            for c in self.comparisons
        ]
        return found + (
            [f"not compared: {self.not_compared}"] * bool(self.not_compared)
        )


def measure(
    name: str,
    folder: pathlib.Path,
    original: PretrainedEncoder,
    images: list[np.ndarray],
    about: str,
) -> Parity:
    """Opens an export in the library that it is for and here, and compares features.

    Args:
      name: of the format.
      folder: the export.
      original: from `folder.exact`.
      images: uint8 [H, W, 3] of any sizes.
      about: what the images are.

    Raises:
      ExportFailed: features differ by more than the tolerance, or are not finite.
    """
    inputs = original.preprocessing(images)
    reference = folders.features(original, inputs)
    found = {}
    library, not_compared = FORMATS[name].library, None
    if library and (package := torch_peers.missing(library)):
        not_compared = f"{package} is not installed"
    elif library:
        settings = folders.settings_of(original.encoder)
        h = torch_peers.features(library, folder, settings, inputs)
        found[torch_peers.version(library)] = h
    opened = load.read_export(folder)
    if isinstance(opened, EncoderProgram):
        found["jax.export"] = np.asarray(opened.program.call(jnp.asarray(inputs)))
    else:
        found["simclr_jax.load"] = folders.features(opened, inputs)
    comparisons = [compare(reference, h, by) for by, h in found.items()]
    return Parity(
        about, float(np.abs(reference).max()), tuple(comparisons), not_compared
    )


def compare(reference: np.ndarray, h: np.ndarray, library: str) -> dict[str, Any]:
    """The differences of features [N, D]; raises ExportFailed if they are too large."""
    if h.shape != reference.shape:
        raise ExportFailed(
            f"the export gives features of shape {h.shape} in {library}, and the "
            f"encoder of shape {reference.shape}"
        )
    difference = np.abs(h.astype(np.float64) - reference)
    scale = float(np.abs(reference).max())
    largest = float(difference.max())
    # Also where one is not finite.
    if not largest <= TOLERANCE * scale:
        raise ExportFailed(
            f"the export gives other features in {library}: they differ by up to "
            f"{largest:.2g}, and the largest is {scale:.2g}; must be within "
            f"{TOLERANCE:g} of it"
        )
    return {
        "library": library,
        "max_abs": largest,
        "mean_abs": float(difference.mean()),
        "relative": largest / scale if scale else 0.0,
    }
