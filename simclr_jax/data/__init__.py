"""Sources of images, their order, augmentations and the input pipeline.

TensorFlow is imported with the modules that need it: `sampling`, `preprocessing`,
`augment_jax` and `views.resident` work without it.
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
    """Imports modules such as `simclr_jax.data.augment` on first use."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
