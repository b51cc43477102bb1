"""Opens exports in PyTorch's libraries, in another process (`torch_process`).

The libraries are not dependencies of this package: `missing` names the one that is not
installed.
"""

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from simclr_jax.errors import ExportFailed
from simclr_jax.models import DEPTHS, normalization
from simclr_jax.weights import torch_formats

_MODULE = "simclr_jax.weights.torch_process"
# The folder that holds the package.
_ROOT = pathlib.Path(__file__).parents[2]


def missing(library: str) -> str | None:
    """The first of a library and PyTorch that is not installed; None if both are."""
    packages = (library, "torch")
    return next((p for p in packages if importlib.util.find_spec(p) is None), None)


def version(library: str) -> str:
    """Name and version of an installed library."""
    return f"{library} {importlib.metadata.version(library)}"


def features(
    library: str, folder: pathlib.Path, settings: dict[str, Any], inputs: np.ndarray
) -> np.ndarray:
    """Features from an exported folder, opened as its model card says.

    Args:
      library: torchvision, timm or transformers; must be installed.
      folder: the export.
      settings: of the encoder.
      inputs: preprocessed images float32 [N, S, S, 3] in [0, 1].

    Returns:
      h [N, D] float32, computed on the CPU.

    Raises:
      ExportFailed: the library cannot open the folder.
    """
    return _outputs(library, folder, settings, inputs, num_classes=None)[0]


def features_and_logits(
    library: str,
    folder: pathlib.Path,
    settings: dict[str, Any],
    inputs: np.ndarray,
    *,
    num_classes: int,
) -> list[np.ndarray]:
    """[h, logits [N, num_classes]] from a folder with a classifier; as `features`."""
    return _outputs(library, folder, settings, inputs, num_classes=num_classes)


def _outputs(
    library: str,
    folder: pathlib.Path,
    settings: dict[str, Any],
    inputs: np.ndarray,
    *,
    num_classes: int | None,
) -> list[np.ndarray]:
    moments = normalization.moments(settings["normalization"])
    if moments is not None:
        mean, std = (np.asarray(values, np.float32) for values in moments)
        inputs = (inputs - mean) / std
    bottleneck, depths = DEPTHS[settings["depth"]]
    names = ["h"] if num_classes is None else ["h", "logits"]
    with tempfile.TemporaryDirectory() as temporary:
        files = {name: f"{temporary}/{name}.npy" for name in ("inputs", *names)}
        np.save(files["inputs"], inputs)
        _run(
            {
                **_request(library, folder),
                **files,
                "bottleneck": bottleneck,
                "depths": depths,
                "num_classes": num_classes,
                "small_stem": settings["stem"] == "cifar",
            }
        )
        return [np.load(files[name]) for name in names]


def write_pickled(folder: pathlib.Path) -> None:
    """Writes the tensors of `model.safetensors` as `model.pth` too."""
    pickled = str(folder / torch_formats.PICKLED_WEIGHTS)
    _run({**_request("torch", folder), "pickled": pickled})


def _request(library: str, folder: pathlib.Path) -> dict[str, Any]:
    weights = str(folder / torch_formats.WEIGHTS)
    return {"library": library, "folder": str(folder), "weights": weights}


def _run(request: dict[str, Any]) -> None:
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.run(
        [sys.executable, "-m", _MODULE],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        # Keeps transformers and timm off the network.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"},
    )
    if process.returncode:
        lines = process.stderr.strip().splitlines() or ["no message"]
        reason = lines[-1][:300]
        if process.returncode < 0:
            reason = f"ended by {signal.Signals(-process.returncode).name}"
        raise ExportFailed(
            f"{version(request['library'])} cannot open the export ({reason})"
        )
