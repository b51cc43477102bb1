"""The TPU compiler's own estimate of a program's time, and where it goes.

After optimisation fusions, convolutions and copies of a TPU program carry the cycles
that the compiler's cost model gives them. It is an estimate, no measurement, but the one
by which the compiler chooses layouts and fusions: it sees padding and vector work, which
peak rates do not. What overlaps computation (loads, collectives) carries none.
"""

import dataclasses
import re
from collections import Counter
from typing import NamedTuple

from simclr_jax.plan import hlo

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_GROUP = re.compile(r"/encoder/(stem|group\d+)/")
_CONVOLUTIONS = ("convolution", "dot")
_COPIES = ("copy", "transpose", "reshape", "bitcast", "slice", "concatenate", "pad")


class Place(NamedTuple):
    """Where cycles go.

    Attributes:
      part: stem, group1, ..., head, loss, views, optimizer, or other.
      phase: forward, backward, recomputed (for the backward pass), or '' outside of the
        network and its loss.
      kind: convolution, element-wise (reductions too) or copy.
    """

    part: str
    phase: str
    kind: str


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The compiler's cycles of one run of a program, on one device.

    Attributes:
      cycles: of each place, the dearest first.
    """

    cycles: dict[Place, int]

    @property
    def total(self) -> int:
        """Of all places."""
        return sum(self.cycles.values())

    def by(self, name: str) -> dict[str, int]:
        """Summed over all but one attribute of `Place`, the dearest first."""
        sums: Counter[str] = Counter()
        for place, cycles in self.cycles.items():
            sums[getattr(place, name)] += cycles
        return dict(sums.most_common())


def estimate(module: hlo.Module, runs: list[tuple[hlo.Instruction, int]]) -> Estimate:
    """Sums the cycles that instructions carry.

    Args:
      module: the program.
      runs: the instructions outside of fusions, each with how often it runs.
    """
    cycles: Counter[Place] = Counter()
    for instruction, times in runs:
        if match := _CYCLES.search(instruction.attributes):
            cycles[_place(module, instruction)] += times * int(match[1])
    return Estimate(dict(cycles.most_common()))


def _place(module: hlo.Module, instruction: hlo.Instruction) -> Place:
    match = _OP_NAME.search(instruction.attributes)
    name = match[1] if match else ""
    part = _part(name)
    in_network = "jvp(" in name
    if "rematted_computation" in name:
        phase = "recomputed"
    elif "transpose(jvp(" in name:
        phase = "backward"
    else:
        phase = "forward" if in_network else ""
    return Place(part, phase, _kind(module, instruction))


def _part(name: str) -> str:
    if match := _GROUP.search(name):
        return match[1]
    for part in ("head", "views", "optimizer"):
        if f"/{part}/" in name:
            return part
    return "loss" if "jvp(" in name else "other"


def _kind(module: hlo.Module, instruction: hlo.Instruction) -> str:
    opcodes = {instruction.opcode}
    if instruction.called:
        opcodes = _opcodes(module, instruction.called)
    if opcodes.intersection(_CONVOLUTIONS):
        return "convolution"
    moves = opcodes - {"parameter", "constant", "tuple", "get-tuple-element"}
    return "copy" if moves and moves.issubset(_COPIES) else "element-wise"


def _opcodes(module: hlo.Module, name: str) -> set[str]:
    """Of a computation and of those that it calls."""
    found = set()
    for instruction in module.computations[name].instructions.values():
        found.add(instruction.opcode)
        if instruction.opcode == "fusion" and instruction.called:
            found |= _opcodes(module, instruction.called)
    return found
