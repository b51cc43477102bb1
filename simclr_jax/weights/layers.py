"""The layers of an encoder, in call order.

Other codebases name layers by counters or by paths, which follow from this order. The
names here are those of the modules in `simclr_jax.models`.
"""

import dataclasses
from collections.abc import Iterator

from simclr_jax.models import DEPTHS

CONV, NORM = "conv", "norm"
# The variables of a layer by kind.
LEAVES = {CONV: ("kernel",), NORM: ("scale", "bias", "mean", "var")}


@dataclasses.dataclass(frozen=True)
class Structure:
    """The settings that decide which layers exist.

    Attributes:
      depth: of the ResNet.
      selective: with selective kernels (and ResNet-D's shortcuts).
      deep_stem: with ResNet-D's stem of three convolutions; needs `selective`.
      first_group_projection: as in `models.create_encoder`.
    """

    depth: int
    selective: bool = False
    deep_stem: bool = False
    first_group_projection: bool = True

    @property
    def bottleneck(self) -> bool:
        """Whether blocks have three convolutions."""
        return DEPTHS[self.depth][0]

    def __str__(self) -> str:
        return f"ResNet-{self.depth}" + (
            " with selective kernels" if self.selective else ""
        )


def encoder_layers(structure: Structure) -> Iterator[tuple[str, str]]:
    """(layer, CONV or NORM) in call order; a block's shortcut comes first."""
    for i in range(1, 4 if structure.deep_stem else 2):
        yield from ((f"stem/conv{i}", CONV), (f"stem/bn{i}", NORM))
    for group, num_blocks in enumerate(DEPTHS[structure.depth][1], start=1):
        projects = group > 1 or structure.bottleneck or structure.first_group_projection
        for block in range(1, num_blocks + 1):
            yield from _block(
                f"group{group}/block{block}", structure, projects and block == 1
            )


def _block(
    prefix: str, structure: Structure, projects: bool
) -> Iterator[tuple[str, str]]:
    if projects:
        yield from ((f"{prefix}/shortcut/conv", CONV), (f"{prefix}/shortcut/bn", NORM))
    for i in range(1, 4 if structure.bottleneck else 3):
        if structure.selective and structure.bottleneck and i == 2:
            inner = f"{prefix}/conv2_sk"
            yield from ((f"{inner}/conv", CONV), (f"{inner}/bn", NORM))
            yield from ((f"{inner}/fc1", CONV), (f"{inner}/fc1_bn", NORM))
            yield (f"{inner}/fc2", CONV)
        else:
            yield from ((f"{prefix}/conv{i}", CONV), (f"{prefix}/bn{i}", NORM))
