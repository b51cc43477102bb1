"""Sources of images, the order they come in, augmentations and the input pipeline.

The only package that imports TensorFlow, and it does so when a module that needs it is
imported: `order`, `preprocessing` and `photographs` work without.
"""

import importlib
from typing import Any

_MODULES = (
    "augment",
    "augment_jax",
    "pipeline",
    "preprocessing",
    "sampling",
    "sources",
)


def __getattr__(name: str) -> Any:
    """Imports `simclr_jax.data.augment` and its like on first use."""
    if name in (
        "augment",
        "augment_jax",
        "pipeline",
        "preprocessing",
        "sampling",
        "sources",
    ):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
