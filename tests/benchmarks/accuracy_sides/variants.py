"""What both sides train, and the changes of one thing at a time."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

PACKAGE, LIGHTLY = "package", "lightly"


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is equal on both sides.

    Attributes:
      images: the first ones of CIFAR-10's training images.
      test_images: the first ones of its test images.
    """

    images: int = 15_000
    test_images: int = 10_000
    epochs: float = 15.0
    batch_size: int = 256
    width: float = 0.25  # of ResNet-18's filters
    output_dim: int = 128
    learning_rate: float = 0.06
    momentum: float = 0.9
    weight_decay: float = 5e-4
    temperature: float = 0.5
    jitter: float = 0.5
    area_min: float = 0.08

    @property
    def steps(self) -> int:
        """Updates of a run; an epoch's last images that fill no batch are left out."""
        return round(self.epochs * (self.images // self.batch_size))


@dataclasses.dataclass(frozen=True)
class Variant:
    """One side with some changes.

    Attributes:
      side: PACKAGE or LIGHTLY.
      name: in tables; unique on its side.
      changes: config keys of the package, or fields of `lightly_side.Options`.
    """

    side: str
    name: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def slug(self) -> str:
        """A name for files and the command line."""
        return re.sub(r"[^a-z0-9]+", "_", f"{self.side} {self.name}".lower()).strip("_")


BASE = "as it is"
# As `configs/base.py` and Google's code have it.
_REFERENCE = {
    "encoder.zero_init_residual": True,
    "encoder.kernel_init": "truncated_normal",
    "head.kernel_init": "normal",
    "optimizer.decayed": "kernels",
    "batch.norm_parts": 1,
}
_REFERENCE_IN_PYTORCH = {
    "zero_init_residual": True,
    "conv_init": "truncated_normal",
    "head_init": "normal",
    "decayed": "kernels",
}
# A rate that suits LARS; its start is what the folder config chooses.
_LARS = {"optimizer.name": "lars", "optimizer.learning_rate": 1.0}

# The most telling ones first; then each thing alone.
VARIANTS = (
    Variant(PACKAGE, BASE),
    Variant(LIGHTLY, BASE),
    Variant(PACKAGE, "the reference's start, decay and BatchNorm", _REFERENCE),
    Variant(LIGHTLY, "the reference's start and decay", _REFERENCE_IN_PYTORCH),
    Variant(LIGHTLY, "the package's views", {"views": "package"}),
    Variant(LIGHTLY, "both views in one pass", {"passes": 1}),
    Variant(PACKAGE, "BatchNorm over all views", {"batch.norm_parts": 1}),
    Variant(LIGHTLY, "pixels not normalized", {"normalized": False}),
    Variant(PACKAGE, "pixels normalized", {"encoder.normalization": "imagenet"}),
    Variant(PACKAGE, "last gammas at zero", {"encoder.zero_init_residual": True}),
    Variant(LIGHTLY, "last gammas at zero", {"zero_init_residual": True}),
    Variant(PACKAGE, "kernels alone decay", {"optimizer.decayed": "kernels"}),
    Variant(LIGHTLY, "kernels alone decay", {"decayed": "kernels"}),
    Variant(PACKAGE, "truncated normal", {"encoder.kernel_init": "truncated_normal"}),
    Variant(LIGHTLY, "truncated normal", {"conv_init": "truncated_normal"}),
    Variant(PACKAGE, "the reference's head", {"head.kernel_init": "normal"}),
    Variant(LIGHTLY, "the reference's head", {"head_init": "normal"}),
    Variant(LIGHTLY, "no last offset", {"last_offset": False}),
    Variant(LIGHTLY, "bicubic crops", {"interpolation": "bicubic"}),
    Variant(LIGHTLY, "the package's colour operations", {"colours": "package"}),
    Variant(PACKAGE, "reference's crops", {"augment.crop.sampler": "reference"}),
    Variant(PACKAGE, "antialiased crops", {"augment.crop.antialias": True}),
    Variant(PACKAGE, "LARS", _LARS),
    Variant(
        PACKAGE,
        "LARS, the reference's start, decay and BatchNorm",
        {**_LARS, **_REFERENCE},
    ),
)


def chosen(names: str) -> list[Variant]:
    """The variants of a comma-separated list of slugs; 'all', or 'base' for two.

    Raises:
      ValueError: a slug that is none.
    """
    if names == "all":
        return list(VARIANTS)
    if names == "base":
        return [variant for variant in VARIANTS if variant.name == BASE]
    by_slug = {variant.slug: variant for variant in VARIANTS}
    for name in names.split(","):
        if name not in by_slug:
            raise ValueError(
                f"--variants={name}: must be all, base or some of {', '.join(by_slug)}"
            )
    return [by_slug[name] for name in names.split(",")]


def package_overrides(setting: Setting, variant: Variant, seed: int) -> dict[str, Any]:
    """Config keys that turn `cifar10:200epochs` into the setting."""
    return {
        "seed": seed,
        "batch.batch_size": setting.batch_size,
        "augment.crop.sampler": "torchvision",
        "augment.crop.area_min": setting.area_min,
        "augment.color_jitter.strength": setting.jitter,
        "encoder.width": setting.width,
        "head.output_dim": setting.output_dim,
        "loss.temperature": setting.temperature,
        "optimizer.learning_rate": setting.learning_rate,
        "optimizer.scaling": "none",
        "optimizer.momentum": setting.momentum,
        "optimizer.weight_decay": setting.weight_decay,
        "schedule.train_epochs": setting.epochs,
        "probe.enabled": False,
        "checkpoint.every_steps": 10**6,  # the last one alone
        **variant.changes,
    }
