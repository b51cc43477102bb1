"""A lower bound of a step's time, from the published figures of the chips."""

import dataclasses
import math

from simclr_jax.plan.program import Collective, Program
from simclr_jax.plan.topologies import Topology

# From one chip to the next. Austin et al., "How to Scale Your Model" (2025), has about
# this much for the links of all generations.
SECS_PER_HOP = 1e-6


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds that parts of a step take at the chip's peak rates. Not measurements.

    Attributes:
      compute: convolutions and matrix products.
      memory: traffic with HBM.
      memory_if_all: the same if buffers that stay on the chip cost as much.
      collectives: transfers between chips over all links at once, without latency.
      latency: of all collectives one after another, which no other time contains.
    """

    compute: float
    memory: float
    memory_if_all: float
    collectives: float
    latency: float

    @property
    def low(self) -> float:
        """No step is faster: everything overlaps at peak rates."""
        return max(self.compute, self.memory, self.collectives)

    @property
    def high(self) -> float:
        """If on-chip buffers cost as much as HBM and collectives overlap nothing.

        Still at peak rates, so a real step may take longer.
        """
        return max(self.compute, self.memory_if_all) + self.collectives


def roofline(program: Program, topology: Topology) -> Roofline:
    """Times of what one device does, at its share of the chip."""
    chip = topology.chip
    compute, memory = chip.bf16_flops / chip.devices, chip.hbm_bandwidth / chip.devices
    return Roofline(
        compute=program.mxu_flops / compute,
        memory=program.hbm_bytes / memory,
        memory_if_all=program.all_bytes / memory,
        collectives=sum(
            collective.count * _sent(collective, topology) / chip.ici_bandwidth
            for collective in program.collectives
        ),
        latency=sum(
            collective.count * latency(collective.kind, collective.devices, topology)
            for collective in program.collectives
        ),
    )


def latency(kind: str, devices: int, topology: Topology) -> float:
    """Seconds until the last chip has the first byte of all others.

    Args:
      kind: of the collective; an all-reduce is a reduce-scatter and an all-gather.
      devices: that take part in one, next to each other in the mesh.
      topology: the slice.
    """
    sides = _sides(devices // topology.chip.devices, topology.shape)
    # Both ways around a ring, from end to end of a row.
    hops = sum(
        side // 2 if side == full and closed else side - 1
        for side, full, closed in zip(
            sides, topology.shape, _are_rings(topology), strict=True
        )
    )
    return SECS_PER_HOP * hops * (2 if kind == "all-reduce" else 1)


def _are_rings(topology: Topology) -> list[bool]:
    """Whether the links along each full side of a slice close to a ring."""
    whole = [side % topology.chip.ring == 0 for side in topology.shape]
    # In three dimensions optical switches close all sides of slices of whole cubes,
    # and none of others: docs.cloud.google.com/tpu/docs/v5p.
    return whole if len(whole) < 3 else [all(whole)] * len(whole)


def _sides(chips: int, shape: tuple[int, ...]) -> list[int]:
    """Chips along each side of so many that follow each other in the mesh.

    Processes are in the order of rows, each with 2 x 2 chips, by the compiler's
    descriptions of slices. Sides are powers of two.
    """
    sides = [1] * len(shape)
    for axis, most in ((0, 2), (1, 2), *enumerate(shape)):
        while sides[axis] < min(most, shape[axis]) and math.prod(sides) < chips:
            sides[axis] *= 2
    return sides


def _sent(collective: Collective, topology: Topology) -> float:
    """Bytes that the links of one chip must carry away, by the best algorithm."""
    per_chip = topology.chip.devices
    chips = max(collective.devices / per_chip, 1.0)
    others = (chips - 1) / chips
    if collective.kind == "all-reduce":
        return 2 * others * collective.bytes
    if collective.kind in ("all-gather", "reduce-scatter"):
        return others * collective.bytes
    # Each device of the chip sends its own array.
    return others * collective.bytes * per_chip
