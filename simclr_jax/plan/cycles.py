"""The TPU compiler's own estimate of a program's time, and where it goes.

After optimisation fusions, convolutions and copies of a TPU program carry the cycles
that the compiler's cost model gives them. It is an estimate, no measurement, but the
one by which the compiler chooses layouts and fusions: it sees padding and vector work,
which peak rates do not. What overlaps computation (loads, collectives) carries none.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable

from simclr_jax.plan import hlo

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_GROUP = re.compile(r"/encoder/(stem|group\d+)/")
_CONVOLUTIONS = ("convolution", "dot")
# The head is a module; the others are names that `jax.named_scope` gives in the step.
_SCOPES = ("head", "views", "optimizer", "diagnostics")
_COPIES = ("copy", "transpose", "reshape", "bitcast", "slice", "concatenate", "pad")


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one place of a program takes, on one device.

    Attributes:
      part: stem, group1, ..., head, loss, views, optimizer, diagnostics, or other.
      phase: forward, backward, recomputed (for the backward pass), or '' outside of the
        network and its loss.
      kind: convolution (dot too), copy, or element-wise (reductions too).
      cycles: the compiler's, in one run of the program.
    """

    part: str
    phase: str
    kind: str
    cycles: int


def estimate(
    module: hlo.Module, runs: Iterable[tuple[hlo.Instruction, int]]
) -> tuple[Cost, ...]:
    """Sums the cycles that instructions carry; empty if none does.

    Args:
      module: the program.
      runs: the instructions outside of fusions, each with how often it runs.

    Returns:
      A cost for each place that has one, the dearest first.
    """
    cycles: Counter[tuple[str, str, str]] = Counter()
    for instruction, times in runs:
        if match := _CYCLES.search(instruction.attributes):
            cycles[_place(module, instruction)] += times * int(match[1])
    return tuple(Cost(*place, count) for place, count in cycles.most_common())


def by(costs: Iterable[Cost], attribute: str) -> dict[str, int]:
    """Cycles for each value of one attribute of `Cost`, the dearest first."""
    sums: Counter[str] = Counter()
    for cost in costs:
        sums[getattr(cost, attribute)] += cost.cycles
    return dict(sums.most_common())


def _place(module: hlo.Module, instruction: hlo.Instruction) -> tuple[str, str, str]:
    match = _OP_NAME.search(instruction.attributes)
    name = match[1] if match else ""
    part = _part(name)
    if "rematted_computation" in name:
        phase = "recomputed"
    elif "transpose(jvp(" in name:
        phase = "backward"
    elif "jvp(" in name or part == "head" or _GROUP.search(name):
        # The first pass over micro-batches is not differentiated.
        phase = "forward"
    else:
        phase = ""
    return part, phase, _kind(module, instruction)


def _part(name: str) -> str:
    if match := _GROUP.search(name):
        return match[1]
    for part in _SCOPES:
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
        if instruction.opcode == "fusion" and instruction.called:
            found |= _opcodes(module, instruction.called)
        else:
            found.add(instruction.opcode)
    return found
