"""SimCLR pretraining in JAX: the same code on a laptop and on accelerators.

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
    """Opens a pretrained encoder, ready to turn images into representations.

    Args:
      path: a run directory, as `simclr_jax.pretrain` and `simclr_jax.convert` leave it;
        one checkpoint of it, `RUN/checkpoints/STEP`; or a folder that
        `simclr_jax.export` wrote, in any of its formats.
      step: the checkpoint of a run to read; the newest when None.

    Returns:
      An object with `encode(images) -> h [N, D]`, `variables`, `encoder`,
      `preprocessing` and `config`. Of the format `stablehlo`, whose weights are inside
      a compiled function, the second and third raise AttributeError.

    Raises:
      CheckpointNotFound: there is nothing of the kind at `path`.
      DataError, CheckpointError: it is damaged.
    """
    from simclr_jax.weights import load

    return load.load(path, step=step)


def __getattr__(name: str) -> Any:
    """Imports `simclr_jax.losses` and its like on first use."""
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
