"""Plans as a table, as notes in words, and as JSON."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from simclr_jax.plan import cycles
from simclr_jax.plan.plans import PartCost, Plan, Range

_GIB, _GIGA, _MEGA, _TERA = 2**30, 1e9, 1e6, 1e12

# Config keys that make a program need less memory, and what each costs.
REMEDIES = (
    ("batch.micro_batch_size", "a second forward pass, BatchNorm over micro-batches"),
    ("parallel.remat", "'auto', 'wide' or 'blocks': more arithmetic"),
    ("parallel.shard_state", "True: more traffic between chips"),
    ("loss.form", "'streaming', where similarities take the memory"),
)

NOTE = (
    "Nothing was run: memory, arithmetic and collectives are the compiler's, times "
    "follow from them and from published peak rates (low: everything overlaps; high: "
    "nothing stays on the chip, collectives overlap nothing; latency is in neither). "
    "The estimate sums the cycles that the compiler's cost model gives the program."
)


def table(plans: Sequence[Plan], *, markdown: bool = False) -> str:
    """A row for each plan.

    Args:
      plans: one or more, all of the same program.
      markdown: a Markdown table, else aligned text.
    """
    columns = [
        "slice",
        "chips",
        "batch",
        "GiB a device",
        "TFLOP",
        "HBM GB",
        "collectives",
        "step ms",
        "estimate ms",
    ]
    if plans[0].program_name == "train step":
        columns += ["images/s", "hours", "chip-hours"]
    if any(plan.largest_batch for plan in plans):
        columns.append("largest batch")
    rows = [columns, *([_cells(plan)[name] for name in columns] for plan in plans)]
    if markdown:
        rows.insert(1, ["---"] * len(columns))
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return "\n".join(_aligned(rows))


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line for each row, in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _cells(plan: Plan) -> dict[str, str]:
    memory = plan.memory
    needed = "?" if memory.peak is None else _number(memory.peak / _GIB)
    amount = f"{needed} of {memory.available / _GIB:.4g}"
    names = ("TFLOP", "HBM GB", "collectives", "step ms", "estimate ms")
    cells = dict.fromkeys((*names, "images/s", "hours", "chip-hours"), "-") | {
        "slice": plan.topology,
        "chips": str(plan.chips),
        "batch": str(plan.batch_size),
        "GiB a device": amount if plan.fits else f"does not fit: needs {amount}",
        "largest batch": _largest_batch(plan),
    }
    if plan.program and plan.step_seconds:
        count = sum(c.count for c in plan.program.collectives)
        size = plan.program.collective_bytes / _MEGA
        cells |= {
            "TFLOP": _number(plan.program.flops / _TERA),
            "HBM GB": _number(plan.program.hbm_bytes / _GIGA),
            "collectives": f"{count}, {_number(size)} MB",
            "step ms": _range(plan.step_seconds, 1e3),
        }
    if plan.estimated_seconds:
        cells["estimate ms"] = _number(plan.estimated_seconds * 1e3)
    if plan.training:
        cells |= {
            "images/s": _range(plan.training.images_per_second),
            "hours": _range(plan.training.hours),
            "chip-hours": _range(plan.training.chip_hours),
        }
    return cells


def _largest_batch(plan: Plan) -> str:
    found = plan.largest_batch
    if found is None:
        return "-"
    if found.batch_size is None:
        return f"below {found.too_large}"
    if found.too_large is None:
        return f"{found.batch_size} (the whole dataset)"
    return f"{found.batch_size} ({found.too_large} does not fit)"


def notes(plan: Plan) -> str:
    """What the table has no room for, a few lines."""
    if not plan.fits:
        remedies = "".join(
            f"\n  --config.{key} ({cost})"
            for key, cost in REMEDIES
            if key.startswith("loss.") or plan.program_name == "train step"
        )
        return (
            f"{plan.topology}: does not fit. The compiler: {plan.verdict}\n"
            "  What helps: more chips, a smaller --config.batch.batch_size, or"
            f"{remedies}"
        )
    lines = [f"{plan.topology}: compiled in {plan.compile_seconds or 0:.0f} s"]
    memory, program, times = plan.memory, plan.program, plan.roofline
    parts = (
        f"{name} {_number(size / _GIB)}"
        for name, size in (
            ("state", memory.state),
            ("batch", memory.batch),
            ("temporaries", memory.temporaries),
            ("code", memory.code),
        )
        if size is not None
    )
    lines.append(f"memory, GiB a device: {', '.join(parts)}")
    if plan.remat:
        lines.append(_remat(plan))
    if program is None or times is None:
        return "\n  ".join(lines)
    lines.append(
        f"time, ms: arithmetic {_number(times.compute * 1e3)}, HBM "
        f"{_range((times.memory, times.memory_if_all), 1e3)}, collectives "
        f"{_number(times.collectives * 1e3)}; latency of collectives, in none of them: "
        f"{_number(times.latency * 1e3)} if nothing overlaps"
    )
    lines.append(_estimate(plan))
    lines += [
        f"{c.count} {c.kind} of {_number(c.bytes / _MEGA)} MB {c.dtype}"
        for c in program.collectives[:3]
    ]
    if plan.views:
        lines.append(f"of which the views: {_part(plan.views)}")
    if plan.diagnostics:
        lines.append(
            "steps that are logged, on top: "
            f"{_part(plan.diagnostics)}; {plan.diagnostics.collectives} collectives, "
            f"{_number(plan.diagnostics.collective_bytes / _MEGA)} MB"
        )
    if plan.moves_images:
        lines.append("images are sent between devices")
    if program.trip_counts:
        lines.append(f"loops run {', '.join(map(str, program.trip_counts))} times")
    if program.unknown_loops:
        lines.append(
            f"{program.unknown_loops} loops of unknown length, counted as run once"
        )
    if plan.training:
        shares = plan.training.model_flops_utilisation
        lines.append(
            f"{plan.training.epochs:.4g} epochs, {plan.training.steps} steps; "
            f"{_range(shares, 100)} % of the chips' peak"
        )
    return "\n  ".join(lines)


def _remat(plan: Plan) -> str:
    """The level of rematerialisation, and why no lower one."""
    tried = ", ".join(
        f"{level} " + (f"needs {_number(size / _GIB)} GiB" if size else "does not fit")
        for level, size in plan.too_large.items()
    )
    reason = f", the least that fits ({tried})" if tried else ""
    if plan.verdict:
        tried = ", ".join(filter(None, (tried, f"{plan.remat} needs {plan.verdict}")))
        reason = f", the last; no step fits ({tried}): training warns, and runs it"
    return f"parallel.remat: {plan.remat}{reason}"


def _estimate(plan: Plan) -> str:
    """The compiler's estimate, as a table of where the time goes."""
    assert plan.program is not None
    costs = plan.program.costs
    if not costs:
        return "the compiler's program for these chips carries no estimate of time"
    unit = "ms"
    seconds = plan.estimated_seconds
    if seconds is None:  # the clock is not known
        unit, seconds = "million cycles", sum(cost.cycles for cost in costs) / 1e9
    scale = seconds * 1e3 / sum(cost.cycles for cost in costs)
    columns = [
        *(("phase", name) for name in ("forward", "backward", "recomputed")),
        *(("kind", name) for name in ("convolution", "element-wise", "copy")),
    ]
    rows = [["", "all", *(name for _, name in columns)]]
    for part in (*cycles.by(costs, "part"), "all"):
        own = [cost for cost in costs if part in (cost.part, "all")]
        row = [sum(cost.cycles for cost in own)]
        row += [cycles.by(own, kind).get(name, 0) for kind, name in columns]
        rows.append([part, *(_number(count * scale) for count in row)])
    return "\n    ".join([f"the compiler's estimate, {unit}:", *_aligned(rows)])


def _part(part: PartCost) -> str:
    return (
        f"{_range(part.seconds, 1e3)} ms, {_number(part.hbm_bytes / _GIGA)} GB of HBM "
        f"traffic, {_number(part.flops / _TERA)} TFLOP; compiled in "
        f"{_number(part.compile_seconds)} s by itself"
    )


def as_json(plans: Sequence[Plan], about: dict[str, Any]) -> str:
    """Everything, in bytes, seconds and FLOPs.

    Args:
      plans: of one config.
      about: config, dataset and versions.
    """
    described = [dataclasses.asdict(plan) for plan in plans]
    return json.dumps({"note": NOTE, **about, "plans": described}, indent=2) + "\n"


def _number(value: float) -> str:
    """Three digits, without an exponent."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if value >= 1e-3 or value == 0 else f"{value:.1g}"


def _range(values: Range, factor: float = 1.0) -> str:
    low, high = (_number(value * factor) for value in values)
    return low if low == high else f"{low} to {high}"
