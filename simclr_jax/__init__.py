"""SimCLR pretraining in JAX.

Dimension letters used in every docstring of the package:

    B  images in the global batch (over all devices and hosts)
    V  views of each image (2)
    H, W, C  image height, width and channels (RGB)
    D  width of the representation h = f(x)
    K  width of the projection z = g(h)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simclr_jax.weights.encoder import PretrainedEncoder
    from simclr_jax.weights.load import EncoderProgram

_SUBPACKAGES = (
    "config",
    "data",
    "evaluation",
    "losses",
    "models",
    "optim",
    "parallel",
    "runs",
    "training",
    "weights",
)


def load(path: str, *, step: int | None = None) -> "PretrainedEncoder | EncoderProgram":
    """Opens a pretrained encoder.

    Args:
      path: a run directory, written by `simclr_jax.pretrain` or `simclr_jax.convert`;
        one of its checkpoints, `RUN/checkpoints/STEP`; or a folder that
        `simclr_jax.export` wrote, in any format.
      step: the checkpoint of a run to read; the newest if None.

    Returns:
      An object with `encode(images) -> h [N, D]` float32, `variables`, `encoder`,
      `preprocessing` and `config`. For the format `stablehlo`, whose weights are inside
      a compiled function, `variables` and `encoder` raise AttributeError.

    Raises:
      CheckpointNotFound: `path` is none of these.
      DataError, CheckpointError: the files are damaged.
      ConfigError: `step` is given, and `path` is not a run directory.
    """
    from simclr_jax.weights import load

    return load.load(path, step=step)


def __getattr__(name: str) -> Any:
    """Imports a subpackage on first use."""
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
