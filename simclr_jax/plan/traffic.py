"""Memory traffic of an instruction of a compiled program."""

import math

from simclr_jax.plan import hlo

# Instructions that move no data, or whose parts are counted separately.
_FREE = {
    "parameter",
    "constant",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "while",
    "call",
    "conditional",
    "async-start",
    "async-update",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
}
_SLICES = {"dynamic-slice", "slice", "slice-start", "gather"}
_FREE_TARGETS = ("AllocateBuffer", "AsyncCollective", "Sharding")


def traffic(
    module: hlo.Module, instruction: hlo.Instruction, computation: hlo.Computation
) -> tuple[float, float]:
    """Bytes that an instruction reads and writes: (in HBM, anywhere).

    Arrays count without padding. A fusion that takes slices of an operand reads those
    only, one that changes part of an array in place writes that part.

    Args:
      module: the program.
      instruction: not inside a fusion.
      computation: that it is in.
    """
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done") or _is_free_call(instruction):
        return 0.0, 0.0
    if opcode == "fusion":
        inner = module.computations[instruction.called or ""]
        # It only starts or ends a collective.
        if any(_is_free_call(part) for part in inner.instructions.values()):
            return 0.0, 0.0
    moved: list[tuple[hlo.Array, float]] = []
    for index, name in enumerate(instruction.operands):
        results = computation.instructions[name].results
        if len(results) == 1:
            size = min(_read(module, instruction, index), results[0].bytes)
            moved.append((results[0], size))
    moved += _written(module, instruction, computation)
    in_hbm = sum(size for array, size in moved if not array.on_chip)
    return in_hbm, sum(size for _, size in moved)


def _is_free_call(instruction: hlo.Instruction) -> bool:
    target = instruction.attribute("custom_call_target") or ""
    return target.startswith(_FREE_TARGETS)


def _read(module: hlo.Module, user: hlo.Instruction, index: int) -> float:
    """Bytes of its operand number `index` that an instruction reads."""
    if user.opcode == "tuple":
        return 0.0  # passed on unread
    if user.opcode in _SLICES and index == 0:
        return sum(array.bytes for array in user.results)
    if user.opcode == "dynamic-update-slice" and index == 0:
        return 0.0  # changed in place
    if user.opcode != "fusion" or user.called is None:
        return math.inf
    inner = module.computations[user.called]
    return _read_by_users(module, inner, inner.parameters[index])


def _read_by_users(
    module: hlo.Module, computation: hlo.Computation, value: hlo.Instruction
) -> float:
    """Bytes of a fusion's parameter that are read, at most its size."""
    read = 0.0
    for user in computation.users[value.name]:
        if user.opcode == "bitcast":
            read += _read_by_users(module, computation, user)
            continue
        for index, name in enumerate(user.operands):
            if name == value.name:
                read += _read(module, user, index)
    return min(read, sum(array.bytes for array in value.results))


def _written(
    module: hlo.Module, instruction: hlo.Instruction, computation: hlo.Computation
) -> list[tuple[hlo.Array, float]]:
    """(array, bytes written into it) for the results of an instruction."""
    results, elements = instruction.results, [instruction.name]
    if instruction.opcode == "copy-start":
        results = results[:1]  # then the source and a semaphore
    elif instruction.opcode.endswith("-start"):
        results = results[1:2]  # between the source and a semaphore
    elif instruction.opcode == "fusion":
        computation = module.computations[instruction.called or ""]
        root = computation.root
        elements = list(root.operands) if root.opcode == "tuple" else [root.name]
    if len(elements) != len(results):
        return [(array, array.bytes) for array in results]
    written = []
    for name, array in zip(elements, results, strict=True):
        source = computation.instructions[name]
        while source.opcode == "bitcast":
            source = computation.instructions[source.operands[0]]
        size = array.bytes
        if source.opcode == "dynamic-update-slice":
            size = computation.instructions[source.operands[1]].results[0].bytes
        elif source.opcode == "parameter":
            size = 0.0  # passed on
        written.append((array, size))
    return written
