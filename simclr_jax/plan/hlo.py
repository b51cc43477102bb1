"""Reads the text of a compiled XLA program."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# An integer, a function from index to element for a tuple, or None where the text does
# not tell.
Value = Any

_BITS = re.compile(r"(?:pred|token|opaque)|[a-z]+?(\d+)")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](\{[^{}]*\})?")
_INSTRUCTION = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = (.*)")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(
    r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=(%?[\w.\-]+))"
)
_TRIP_COUNT = re.compile(r'known_trip_count[^}]*?"n":"(\d+)"')
_LARGEST_TRIP_COUNT = 1 << 40
_SAME_VALUE = {"copy", "bitcast", "convert", "reshape", "copy-start", "copy-done"}
_BINARY: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "maximum": max,
    "minimum": min,
}
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: a != b,
}


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's result.

    Attributes:
      dtype: XLA's name, such as 'bf16'.
      dims: sizes; of a device's part.
      on_chip: in a memory other than HBM, such as VMEM.
    """

    dtype: str
    dims: tuple[int, ...]
    on_chip: bool

    @property
    def bytes(self) -> float:
        """Size without the padding of its layout."""
        if self.dtype in ("token", "opaque"):
            return 0.0
        match = _BITS.match(self.dtype)
        bits = int(match[1]) if match and match[1] else 8
        return math.prod(self.dims) * bits / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `%name = results opcode(operands), attributes`."""

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    literal: str  # the text between the parentheses
    attributes: str

    @functools.cached_property
    def called(self) -> str | None:
        """The computation that a fusion or call runs."""
        match = _CALLED.search(self.attributes)
        return match[1] if match else None

    def attribute(self, name: str) -> str | None:
        """The name after `name=`, such as a loop's body."""
        match = re.search(rf'\b{name}=[%"]?([\w.\-]+)', self.attributes)
        return match[1] if match else None

    @property
    def branches(self) -> list[str]:
        """The computations that a conditional chooses from."""
        names = []
        for several, one in _BRANCHES.findall(self.attributes):
            names += [n.strip().lstrip("%") for n in (several or one).split(",")]
        return names


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions in the order of the text."""

    name: str
    instructions: Mapping[str, Instruction]
    root: Instruction

    @functools.cached_property
    def users(self) -> Mapping[str, list[Instruction]]:
        """Who reads an instruction's result."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                found[operand].append(instruction)
        return found

    @functools.cached_property
    def parameters(self) -> Mapping[int, Instruction]:
        """By number."""
        return {
            int(instruction.literal): instruction
            for instruction in self.instructions.values()
            if instruction.opcode == "parameter"
        }


@dataclasses.dataclass(frozen=True)
class Module:
    """A whole program."""

    computations: Mapping[str, Computation]
    entry: Computation


def parse(text: str) -> Module:
    """Reads what `jax.stages.Compiled.as_text` returns.

    Raises:
      ValueError: it holds no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry = None
    for header, lines in _split(text):
        computation = _parse_computation(header[2], lines)
        computations[computation.name] = computation
        if header[1]:
            entry = computation
    if entry is None:
        raise ValueError("no ENTRY computation in the program's text")
    return Module(computations, entry)


def _split(text: str) -> Iterator[tuple[re.Match, list[str]]]:
    header: re.Match | None = None
    lines: list[str] = []
    for line in text.splitlines():
        if header is None:
            header, lines = _COMPUTATION.match(line), []
        elif line.startswith("}"):
            yield header, lines
            header = None
        else:
            lines.append(line)


def _parse_computation(name: str, lines: list[str]) -> Computation:
    instructions, root = {}, None
    for line in lines:
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        instruction = _parse_instruction(match[2], match[3])
        instructions[instruction.name] = instruction
        if match[1]:
            root = instruction
    if root is None:
        raise ValueError(f"computation {name} has no ROOT")
    return Computation(name, instructions, root)


def _parse_instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    results = tuple(
        Array(
            dtype,
            tuple(int(d.lstrip("<=")) for d in dims.split(",") if d),
            # S(n): memory space n, where 0 is HBM and not written.
            "S(" in layout,
        )
        for dtype, dims, layout in _ARRAY.findall(text[:end])
    )
    opening = text.index("(", end)
    closing = _closing(text, opening)
    literal = text[opening + 1 : closing]
    return Instruction(
        name=name,
        opcode=text[end:opening].strip(),
        results=results,
        operands=tuple(re.findall(r"%([\w.\-]+)", literal)),
        literal=literal,
        attributes=text[closing + 1 :],
    )


def _closing(text: str, opening: int) -> int:
    """The index of the parenthesis that closes the one at `opening`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced parentheses in {text[:200]!r}")


def trip_count(module: Module, caller: Computation, loop: Instruction) -> int | None:
    """How often the body of a `while` runs; None where the text does not show it.

    Optimised TPU programs no longer carry the count, so that the loop's counter is
    followed: from its start, by what the body adds, until the condition fails.
    """
    known = _TRIP_COUNT.search(loop.attributes)
    if known:
        return int(known[1])
    body = module.computations[loop.attribute("body") or ""]
    condition = module.computations[loop.attribute("condition") or ""]
    start = _evaluate(module, caller, loop.operands[0], lambda number: None)
    if not callable(start):
        return None
    after = _evaluate(module, body, body.root.name, lambda number: start)

    def goes_on(iteration: int) -> Value:
        def carried(index: int) -> Value:
            first = start(index)
            second = after(index) if callable(after) else None
            if not isinstance(first, int) or not isinstance(second, int):
                return None
            return first + iteration * (second - first)

        return _evaluate(module, condition, condition.root.name, lambda n: carried)

    return _first_failure(goes_on)


def _first_failure(goes_on: Callable[[int], Value]) -> int | None:
    """The smallest n for which a condition that fails from there on fails."""
    bound = 1
    while True:
        holds = goes_on(bound - 1)
        if not isinstance(holds, int) or bound > _LARGEST_TRIP_COUNT:
            return None
        if not holds:
            break
        bound *= 2
    low, high = bound // 2, bound - 1  # fails at high, holds below low
    while low < high:
        middle = (low + high) // 2
        if goes_on(middle):
            low = middle + 1
        else:
            high = middle
    return high


def _evaluate(
    module: Module,
    computation: Computation,
    name: str,
    argument: Callable[[int], Value],
) -> Value:
    """What an instruction computes, given the computation's arguments by number."""
    instruction = computation.instructions[name]
    opcode = instruction.opcode

    def operand(index: int) -> Value:
        name = instruction.operands[index]
        return _evaluate(module, computation, name, argument)

    if opcode == "constant":
        return _constant(instruction.literal)
    if opcode == "parameter":
        return argument(int(instruction.literal))
    if opcode == "tuple":
        return operand
    if opcode == "get-tuple-element":
        elements = operand(0)
        match = re.search(r"index=(\d+)", instruction.attributes)
        return elements(int(match[1])) if match and callable(elements) else None
    if opcode in _SAME_VALUE:
        return operand(0)
    if opcode in ("fusion", "call") and instruction.called:
        inner = module.computations[instruction.called]
        return _evaluate(module, inner, inner.root.name, operand)
    return _arithmetic(instruction, operand)


def _arithmetic(instruction: Instruction, operand: Callable[[int], Value]) -> Value:
    function = _BINARY.get(instruction.opcode)
    if instruction.opcode == "compare":
        function = _COMPARE[instruction.attribute("direction") or ""]
    if function is None:
        return None
    a, b = operand(0), operand(1)
    known = isinstance(a, int) and isinstance(b, int)
    return int(function(a, b)) if known else None


def _constant(literal: str) -> int | None:
    if literal in ("true", "false"):
        return int(literal == "true")
    return int(literal) if re.fullmatch(r"-?\d+", literal) else None
