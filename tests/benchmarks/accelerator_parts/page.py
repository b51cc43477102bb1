"""The page of an accelerator's results; what has not run says so."""

from collections.abc import Iterable
from typing import Any

from accelerator_parts import losses, runs, steps

NOT_RUN = "not run"
Results = dict[str, Any]

_HEAD = """# Accelerators

What was measured on accelerators, and what was not: written by

```bash
python tests/benchmarks/accelerator.py --budget_secs=1500 --cifar=cifar10.npz \\
  --workdir=runs/accelerator --page=docs/accelerators.md
```

It needs JAX for the accelerator and this package's core, so neither TensorFlow nor
Numba (`pip install . "jax[cuda13]"`); rows that need more say what. A second call with
the same `--workdir` continues with what is missing.
`python tests/benchmarks/cifar_npz.py --data_dir=TFDS_DIR --output=cifar10.npz` writes
CIFAR-10 as JPEGs in one file of 40 MB, quality 98, whose pixels differ by 0.45 of 255
levels on average (49.5 dB).

## Without TensorFlow

With the core alone, images that fit in memory are trained on and evaluated: `npz:`,
`folder:` and `prepared:`. Images of one size can have their views computed on the
accelerator (`--config.augment.placement=accelerator`); `pip install numba` adds those
compiled on the host, the same bits as with TensorFlow. Pillow decodes files, to the
same pixels as TensorFlow's. Evaluation prepares images in NumPy, within 3e-6 of what
TensorFlow computes. Everything else, such as datasets of TFDS and files that do not fit
in memory, needs `pip install ".[input]"`.
"""


def _cells(row: Any, *names: str) -> list[str]:
    """The values of a row, or one text for all."""
    if row is None:
        return [NOT_RUN] + [""] * (len(names) - 1)
    if "error" in row:
        return [row["error"].splitlines()[0]] + [""] * (len(names) - 1)
    return [_text(row.get(name)) for name in names]


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    columns = list(columns)
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += [
        "| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows
    ]
    return "\n".join(lines)


def _failure(results: Results, part: str) -> str:
    error = results.get(part, {}).get("error")
    return f"\n\nUnfinished: {error}" if error else ""


def _machine(results: Results) -> str:
    rows = results.get("machine", {}).get("rows", {})
    device = rows.get("device")
    lines = [["device", *_cells(device, "kind")]]
    lines.append(["number", *_cells(device, "count")])
    lines.append(["GiB that JAX may use", *_cells(device, "gib_for_jax")])
    lines.append(["CPU cores", *_cells(device, "cpu_cores")])
    versions = rows.get("versions")
    said = NOT_RUN
    if versions:
        said = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines.append(["versions", said])
    return _table(["machine", ""], lines)


def _equivalence(results: Results) -> str:
    rows = results.get("equivalence", {}).get("rows") or {"one train step": None}
    return _table(
        ["the same as on a CPU, or as on one device", "", ""],
        [[name, *_cells(row, "ok", "said")] for name, row in rows.items()],
    )


def _steps(results: Results) -> str:
    rows = results.get("steps", {}).get("rows", {})
    lines = []
    for name in (*steps.NETS, "resnet50 largest"):
        row = rows.get(name)
        net = steps.NETS[name.split()[0]]
        for side in ("ours", *steps.PEERS):
            cells = row if row is None or "error" in row else row[side]
            size = net.batch_size if "largest" not in name else "largest"
            if row is not None and "batch_size" in row:
                size = row["batch_size"]
            of_ours = "-"
            if cells and "images_per_sec" in cells and side != "ours":
                ours = row["ours"].get("images_per_sec")
                if ours:
                    of_ours = f"{ours / cells['images_per_sec']:.2f}"
            label = f"{name.split()[0]}, {net.side} pixels, batch {size}"
            who = "this package" if side == "ours" else f"PyTorch, {side}"
            rates = _cells(cells, "images_per_sec", "lowest", "highest", "gib")
            lines.append([label, who, *rates, of_ours])
    columns = ["train step, bfloat16", "", "images/s", "lowest", "highest", "GiB"]
    return _table([*columns, "ours over this"], lines)


def _placements(results: Results) -> str:
    rows = results.get("placements", {}).get("rows", {})
    lines = [
        [
            f"{net}, views on: {placement}",
            *_cells(
                rows.get(f"{net}, {placement}"), "images_per_sec", "input_wait_share"
            ),
        ]
        for net in steps.NETS
        for placement in steps.PLACEMENTS
    ]
    return _table(["training with its input", "images/s", "share of waiting"], lines)


def _losses(results: Results) -> str:
    rows = results.get("nt_xent", {}).get("rows", {})
    sides = ("global", "streaming", "PyTorch", "PyTorch compiled", "lightly")
    sizes = sorted({int(name.split(",")[0]) for name in rows} | set(losses.SIZES))
    if rows:
        sizes = [
            size for size in sizes if f"{size}, global" in rows or size in losses.SIZES
        ]
    lines = [
        [f"{size:,}", side, *_cells(rows.get(f"{size}, {side}"), "ms", "gib", "loss")]
        for size in sizes
        for side in sides
    ]
    return _table(["images", "NT-Xent and gradient", "ms", "GiB", "loss"], lines)


def _runs(results: Results) -> str:
    resume = results.get("resume", {}).get("rows", {})
    same, price = resume.get("bit for bit"), resume.get("price")
    loss = results.get("precision", {}).get("rows", {}).get("loss")
    lines = [
        ["killed by SIGKILL after step", *_cells(same, "killed_after_step")],
        ["resumed from step", *_cells(same, "resumed_from_step")],
        ["weights equal those of a run left alone", *_cells(same, "weights_equal")],
        ["metrics too", *_cells(same, "metrics_equal")],
        ["also without `deterministic`", *_cells(same, "without_the_key_equal")],
        ["images/s without `deterministic`", *_cells(price, "images_per_sec")],
        ["images/s with it", *_cells(price, "deterministic_images_per_sec")],
        ["loss after 200 steps, float32", *_cells(loss, "last_float32")],
        ["the same, bfloat16", *_cells(loss, "last_bfloat16")],
        ["mean difference over the steps", *_cells(loss, "mean_difference")],
        ["largest difference", *_cells(loss, "largest_difference")],
    ]
    return _table(["runs of ResNet-18 on CIFAR-10", ""], lines)


def _cifar10(results: Results) -> str:
    rows = results.get("cifar10", {}).get("rows", {})
    training, linear = rows.get("training"), rows.get("linear")
    lines = [
        [f"epochs of {runs.EPOCHS}", *_cells(training, "epochs")],
        ["images/s", *_cells(training, "images_per_sec")],
        ["quality of the JPEGs", *_cells(training, "jpeg_quality")],
    ]
    measured = [name for name in rows if name.startswith("kNN")]
    for name in measured or ["kNN, every 20 epochs"]:
        lines.append([f"{name}, %", *_cells(rows.get(name), "top1")])
    lines.append(["linear evaluation at the end, %", *_cells(linear, "top1")])
    return _table(["CIFAR-10, `cifar10:200epochs`", ""], lines)


_TOY = (
    "**Written by `--toy`: every part works, and no figure means anything. Nets, "
    "batches and sizes are much smaller than their names say.**\n"
)


def page(results: Results, *, toy: bool = False) -> str:
    """The page, of {part: its record}."""
    parts = (
        ("machine", "The machine", _machine),
        ("equivalence", "Equivalence", _equivalence),
        ("steps", "The train step, in turn with PyTorch", _steps),
        ("nt_xent", "The loss", _losses),
        ("placements", "Where views are computed", _placements),
        ("resume", "Resuming and precision", _runs),
        ("cifar10", "CIFAR-10", _cifar10),
    )
    sections = [
        f"## {title}\n\n{table(results)}{_failure(results, name)}\n"
        for name, title, table in parts
    ]
    return "\n".join([_HEAD, *([_TOY] if toy else []), *sections])
