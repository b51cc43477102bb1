"""The layers of an encoder, in the order in which they are called.

Other codebases name layers by counters or by paths; both follow from this order. Names
are those of the modules in `simclr_jax.models`.
"""

import dataclasses
from collections.abc import Iterator

from simclr_jax.models import DEPTHS

CONV, NORM = "conv", "norm"
# What a layer holds, by our names.
LEAVES = {CONV: ("kernel",), NORM: ("scale", "bias", "mean", "var")}


@dataclasses.dataclass(frozen=True)
class Structure:
    """What decides which layers there are; widths and kernel sizes do not.

    Attributes:
      depth: of the ResNet.
      selective: with selective kernels (and ResNet-D's shortcuts).
      deep_stem: ResNet-D's three convolutions; only selective nets have it.
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
    """(layer, CONV or NORM) of an encoder, in call order; shortcuts come first."""
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
