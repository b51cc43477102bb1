"""The work of a compiled program on one device: arithmetic, traffic, collectives.

XLA's own cost analysis counts the body of a loop once and on-chip buffers as memory
traffic; here both are put right, from the program's text.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator

from simclr_jax.plan import cycles, hlo
from simclr_jax.plan.traffic import traffic

_MATMULS = ("convolution", "dot")
_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
# Passes through the matrix unit, which multiplies bfloat16, that a float32 product
# takes: its inputs are split into three parts, and 1, 3 or 6 of the products are made.
_PASSES = {"default": 1, "high": 3, "highest": 6}


@dataclasses.dataclass(frozen=True)
class Collective:
    """Equal transfers between devices.

    Attributes:
      kind: such as 'all-reduce'.
      dtype: of what is sent; 'f32+bf16' where several arrays go together.
      count: in one run of the program, so times the trips of the loops around it.
      bytes: of one: the whole array, before a reduce-scatter or after an all-gather.
      devices: that take part in one.
      dims: sizes of its largest array.
    """

    kind: str
    dtype: str
    count: int
    bytes: float
    devices: int
    dims: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Program:
    """What one device does in one run.

    Attributes:
      flops: of convolutions and matrix products; the rest is little.
      mxu_flops: the same, times the passes that precise float32 products take.
      hbm_bytes: read from and written to HBM, arrays without padding.
      all_bytes: the same, with buffers that stay on the chip counted too.
      collectives: largest total first.
      trip_counts: of the loops, in the order of the text, outer before inner.
      unknown_loops: loops whose bodies were counted once, since the text does not tell
        how often they run.
      costs: the compiler's own estimate of time, by place; empty where it gives none.
    """

    flops: float
    mxu_flops: float
    hbm_bytes: float
    all_bytes: float
    collectives: tuple[Collective, ...]
    trip_counts: tuple[int, ...]
    unknown_loops: int
    costs: tuple[cycles.Cost, ...] = ()

    @property
    def cycles(self) -> int | None:
        """Of all places together; None where the compiler gives no estimate."""
        return sum(cost.cycles for cost in self.costs) or None

    @property
    def collective_bytes(self) -> float:
        """Of all collectives together."""
        return sum(c.bytes * c.count for c in self.collectives)


def analyse(text: str, *, num_devices: int) -> Program:
    """Reads a compiled program.

    Args:
      text: of `jax.stages.Compiled.as_text`, so of one device's part.
      num_devices: that the program runs on.
    """
    module = hlo.parse(text)
    flops = mxu_flops = hbm_bytes = all_bytes = 0.0
    trip_counts: list[int] = []
    unknown_loops = 0
    collectives: Counter[Collective] = Counter()
    steps = list(_steps(module))
    for step in steps:
        instruction, computation = step.instruction, step.computation
        if instruction.opcode == "while":
            unknown_loops += step.trips is None
            trip_counts += [] if step.trips is None else [step.trips]
        elif instruction.opcode in _MATMULS:
            products = step.times * _matmul_flops(instruction, computation)
            flops += products
            mxu_flops += products * _passes(instruction, computation)
        if step.collective:
            made = _collective(instruction, computation, num_devices)
            collectives[made] += step.times
        if not step.fused:
            hbm, everything = traffic(module, instruction, computation)
            hbm_bytes += step.times * hbm
            all_bytes += step.times * everything
    found = [dataclasses.replace(c, count=count) for c, count in collectives.items()]
    found.sort(key=lambda c: -c.bytes * c.count)
    return Program(
        flops=flops,
        mxu_flops=mxu_flops,
        hbm_bytes=hbm_bytes,
        all_bytes=all_bytes,
        collectives=tuple(found),
        trip_counts=tuple(trip_counts),
        unknown_loops=unknown_loops,
        costs=cycles.estimate(
            module, ((s.instruction, s.times) for s in steps if not s.fused)
        ),
    )


@dataclasses.dataclass(frozen=True)
class _Step:
    instruction: hlo.Instruction
    computation: hlo.Computation
    times: int
    fused: bool
    collective: bool
    trips: int | None


def _steps(module: hlo.Module) -> Iterator[_Step]:
    """All instructions that run, with how often."""
    # A collective that overlaps computation appears in several fusions: where it
    # starts, where it proceeds and where it ends.
    channels: set[str] = set()

    def walk(computation: hlo.Computation, times: int, fused: bool) -> Iterator[_Step]:
        for instruction in computation.instructions.values():
            opcode = instruction.opcode
            is_loop = opcode == "while"
            trips = hlo.trip_count(module, computation, instruction) if is_loop else 0
            collective = opcode.removesuffix("-start") in _COLLECTIVES
            if collective and fused:
                channel = instruction.attribute("channel_id")
                collective = channel is None or channel not in channels
                channels.add(channel or "")
            yield _Step(instruction, computation, times, fused, collective, trips)
            if is_loop:
                inner = times * (1 if trips is None else trips)
                body = module.computations[instruction.attribute("body") or ""]
                yield from walk(body, inner, fused)
            elif opcode in ("fusion", "call", "async-start") and instruction.called:
                called = module.computations[instruction.called]
                yield from walk(called, times, fused or opcode == "fusion")
            for branch in instruction.branches:
                yield from walk(module.computations[branch], times, fused)

    yield from walk(module.entry, 1, False)


def _matmul_flops(instruction: hlo.Instruction, computation: hlo.Computation) -> float:
    """Two for each product that enters the result; those with padding do not count."""
    lhs, rhs = (_array(computation, name).dims for name in instruction.operands[:2])
    outputs = instruction.results[0].dims
    if instruction.opcode == "dot":
        match = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        contracted = [int(i) for i in match[1].split(",") if i] if match else []
        return 2.0 * math.prod(outputs) * math.prod(lhs[i] for i in contracted)
    match = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if match is None:
        raise ValueError(f"convolution {instruction.name} without dim_labels")
    in_labels, kernel_labels, out_labels = match.groups()
    window = _window(instruction.attributes)
    products = rhs[kernel_labels.index("i")]
    products *= outputs[out_labels.index("b")] * outputs[out_labels.index("f")]
    for dimension in (label for label in in_labels if label.isdecimal()):
        products *= _valid_positions(
            lhs[in_labels.index(dimension)],
            rhs[kernel_labels.index(dimension)],
            outputs[out_labels.index(dimension)],
            {key: values[int(dimension)] for key, values in window.items()},
        )
    return 2.0 * products


def _window(attributes: str) -> dict[str, list[str]]:
    """Settings of a convolution's window, each by spatial dimension."""
    match = re.search(r"window=\{([^}]*)\}", attributes)
    pairs = [item.split("=") for item in match[1].split()] if match else []
    return {key: value.split("x") for key, value in pairs}


def _valid_positions(
    size: int, kernel: int, outputs: int, window: dict[str, str]
) -> int:
    """Pairs (output, tap) along one dimension that meet an input and not padding."""
    stride = int(window.get("stride", 1))
    low = int(window.get("pad", "0_0").split("_")[0])
    base, dilation = int(window.get("lhs_dilate", 1)), int(window.get("rhs_dilate", 1))
    last = (size - 1) * base
    # Output o meets an input where o * stride + offset is a multiple of `base`: for
    # every `period`-th o, if any.
    common = math.gcd(stride, base)
    period = base // common
    inverse = pow(stride // common, -1, period)
    count = 0
    for tap in range(kernel):
        offset = tap * dilation - low
        if offset % common:
            continue
        phase = (-offset // common) * inverse % period
        first = max(0, -(offset // stride))
        final = min(outputs - 1, (last - offset) // stride)
        # Numbers phase + k * period from `first` to `final`.
        count += max(0, (final - phase) // period - (first - 1 - phase) // period)
    return count


def _passes(instruction: hlo.Instruction, computation: hlo.Computation) -> int:
    match = re.search(r"operand_precision=\{(\w+),(\w+)\}", instruction.attributes)
    wide = all(
        _array(computation, name).dtype in ("f32", "f64")
        for name in instruction.operands[:2]
    )
    return max(_PASSES.get(name, 1) for name in match.groups()) if match and wide else 1


def _array(computation: hlo.Computation, name: str) -> hlo.Array:
    return computation.instructions[name].results[0]


def _collective(
    instruction: hlo.Instruction, computation: hlo.Computation, num_devices: int
) -> Collective:
    kind = instruction.opcode.removesuffix("-start")
    devices = _group_size(instruction, num_devices)
    arrays = [
        array
        for name in instruction.operands
        for array in computation.instructions[name].results
    ]
    size = sum(array.bytes for array in arrays)
    if kind == "all-gather":
        size *= devices
    elif kind == "all-reduce" and computation.root.opcode == "dynamic-slice":
        # A fusion in which every device keeps its part only.
        kind = "reduce-scatter"
    return Collective(
        kind=kind,
        dtype="+".join(sorted({array.dtype for array in arrays})),
        count=0,
        bytes=size,
        devices=devices,
        dims=max((array.dims for array in arrays), key=math.prod),
    )


def _group_size(instruction: hlo.Instruction, num_devices: int) -> int:
    """How many devices take part in one collective."""
    text = instruction.attributes
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text):
        sizes = dict(item.split("=") for item in match[1].split(","))
        return math.prod(int(sizes[axis]) for axis in match[2].split(",") if axis)
    return num_devices
