"""Compiles the programs of docs/compiled.md for TPUs and writes that page.

    python tests/benchmarks/compiled.py --folder=/tmp/plans

Takes an hour or two on two cores. A program whose plan is in the folder is not compiled
again, so the command can be stopped and gone on with; `--only=NAME` compiles one, and
`--page_only` none: what is not in the folder then keeps the row that the page has, a
train step with a mark. Needs `.venv/bin/pip install -e ".[plan]"`.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "compiled.md"
GIB = 2**30
OF_STEPS = "## The train step at 224 pixels"
OF_DIAGNOSTICS = "## The diagnostics of a step that is logged"
OF_LOSSES = "## NT-Xent and its gradient alone"
# After the name of a row that an earlier version of the package gave.
EARLIER = " (earlier)"
NOTE_EARLIER = """
Rows marked `(earlier)` are kept from an earlier version of this page.
"""
NOTE_CRASHED = """
Where a row says that it was not compiled, libtpu ended with a segmentation fault.
"""

R50 = "imagenet.py:50x1"
R152 = "simclr_v2.py:152x3+sk"
# name -> (what the table says, config, settings, slice)
STEPS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "r50_4x4": ("ResNet-50", R50, {}, "v5e:4x4"),
    "r50_16x16": ("ResNet-50", R50, {}, "v5e:16x16"),
    "r50_65k": ("ResNet-50", R50, {"batch.batch_size": 65_536}, "v5e:16x16"),
    "r50_262k": (
        "ResNet-50, micro-batches of 65,536",
        R50,
        {"batch.batch_size": 262_144, "batch.micro_batch_size": 65_536},
        "v5e:16x16",
    ),
    "r50_v3": ("ResNet-50", R50, {}, "v3:8x8"),
    "r50_v6e": ("ResNet-50", R50, {}, "v6e:4x4"),
    "r50_v5p": ("ResNet-50", R50, {}, "v5p:2x2x4"),
    "r50_1x1": (
        "ResNet-50, micro-batches of 128",
        R50,
        {"batch.micro_batch_size": 128},
        "v5e:1x1",
    ),
    "r50x4": ("ResNet-50 4x", "imagenet.py:50x4", {}, "v5e:16x16"),
    "r152": ("ResNet-152 3x+SK", R152, {}, "v5e:16x16"),
    "r152_shard": (
        "ResNet-152 3x+SK, state sharded",
        R152,
        {"parallel.shard_state": True},
        "v5e:16x16",
    ),
}
LOSSES = {
    f"loss_{slice_.replace(':', '_')}_{images}_{form}": (slice_, images, form)
    for slice_ in ("v5e:4x4", "v5e:16x16")
    for images in (4096, 32768, 262144)
    for form in ("global", "streaming")
}


def plan(
    output: pathlib.Path,
    config: str,
    settings: dict[str, Any],
    slice_: str,
    *more: str,
) -> None:
    """Runs the plan command; a program that fits nowhere is a result too.

    A crash is told, and leaves no output.
    """
    command = [sys.executable, "-m", "simclr_jax.plan", f"--config=configs/{config}"]
    command += [f"--config.{key}={value}" for key, value in settings.items()]
    command += [f"--topology={slice_}", f"--output={output}", *more]
    code = subprocess.run(command, cwd=ROOT).returncode
    if code < 0:  # a crash of the compiler, which others need not share
        print(f"{output.stem}: {command} was ended by signal {-code}", flush=True)
        return
    if code not in (0, 1) or not output.exists():
        raise SystemExit(f"{output.stem}: {command} ended with exit code {code}")


def read(folder: pathlib.Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())["plans"][0]


def number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def between(values: list[float], scale: float = 1.0) -> str:
    low, high = (number(value * scale) for value in values)
    return f"{low} to {high}"


def collective_bytes(program: dict[str, Any]) -> float:
    return sum(c["count"] * c["bytes"] for c in program["collectives"])


def kept(heading: str, *start: str) -> list[str] | None:
    """The row of the page that starts so, in the section of a heading."""
    section = PAGE.read_text().partition(heading)[2].partition("\n## ")[0]
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if (cells[0].removesuffix(EARLIER), *cells[1 : len(start)]) == start:
            return cells
    return None


def step_row(folder: pathlib.Path, name: str) -> list[str]:
    what, _, settings, slice_ = STEPS[name]
    images = f"{settings.get('batch.batch_size', 4096):,}"
    if not (folder / f"{name}.json").exists():
        found = kept(OF_STEPS, what, images, slice_)
        if found is None or "not compiled" in found:
            return [what, images, slice_, "", "not compiled", *[""] * 8]
        return [what + EARLIER, *found[1:]]
    made = read(folder, name)
    memory = made["memory"]
    needed = f"{memory['peak'] / GIB:.1f} of {memory['available'] / GIB:.2f}"
    row = [what, images, slice_, str(made["chips"])]
    if not made["fits"]:
        return [*row, f"does not fit: {needed}", *"--------"]
    program, training = made["program"], made["training"]
    collectives = program["collectives"]
    total = collective_bytes(program) / 1e6
    return [
        *row,
        needed,
        f"{memory['state'] / GIB:.2f}",
        number(program["flops"] / 1e12),
        number(program["hbm_bytes"] / 1e9),
        f"{sum(c['count'] for c in collectives)}, {total:.0f} MB",
        between(made["step_seconds"], 1e3),
        between(training["images_per_second"]),
        estimate(made),
        made["remat"],
    ]


def estimate(made: dict[str, Any]) -> str:
    """Milliseconds, or cycles where the clock is not known."""
    if made["estimated_seconds"] is not None:
        return number(made["estimated_seconds"] * 1e3)
    cycles = sum(cost["cycles"] for cost in made["program"]["costs"])
    return f"{number(cycles / 1e6)} million cycles" if cycles else "-"


def of_other_versions(folder: pathlib.Path, about: dict[str, Any]) -> str:
    """Which train steps were compiled by other versions than the page names."""
    notes = []
    for name, (what, _, _, slice_) in STEPS.items():
        if not (folder / f"{name}.json").exists():
            continue
        made = json.loads((folder / f"{name}.json").read_text())
        if made["libtpu"] != about["libtpu"]:
            notes.append(
                f"\n{what} on {slice_} was compiled by JAX {made['jax']} and libtpu "
                f"{made['libtpu']}.\n"
            )
    return "".join(notes)


def diagnostics_row(folder: pathlib.Path, name: str) -> list[str] | None:
    if not (folder / f"{name}.json").exists():
        _, _, settings, slice_ = STEPS[name]
        images = f"{settings.get('batch.batch_size', 4096):,}"
        return kept(OF_DIAGNOSTICS, images, slice_)
    made = read(folder, name)
    part = made["diagnostics"]
    return [
        f"{made['batch_size']:,}",
        made["topology"],
        f"{part['temporaries'] / 2**20:.1f}",
        number(part["flops"] / 1e9),
        number(part["hbm_bytes"] / 1e9),
        f"{part['collectives']}, {part['collective_bytes'] / 1e6:.0f} MB",
        between(part["seconds"], 1e3),
    ]


def growth(folder: pathlib.Path) -> str:
    """How 65,536 images on 256 chips differ from 4,096 on 16, for each of them."""
    if not all((folder / f"{name}.json").exists() for name in ("r50_4x4", "r50_65k")):
        return ""

    def figures(name: str) -> list[float]:
        made = read(folder, name)
        program = made["program"]
        return [
            made["memory"]["peak"],
            program["flops"],
            program["mxu_flops"],
            program["hbm_bytes"],
            collective_bytes(program),
        ]

    pairs = zip(figures("r50_4x4"), figures("r50_65k"), strict=True)
    memory, flops, passes, traffic, sent = (
        f"{large / small - 1:+.1%}" for small, large in pairs
    )
    return f"""
At 256 images a chip, 65,536 on 256 chips against 4,096 on 16, per chip:
memory {memory}, arithmetic {flops} ({passes} with the passes of float32
products), traffic with HBM {traffic}, bytes of collectives {sent}. The last
grow with the batch, since every chip gets the projections of all views: 2 x 65,536 x
128 numbers of 4 bytes are 67 MB, against 4 MB, beside gradients and statistics.
"""


def loss_row(folder: pathlib.Path, slice_: str, images: int) -> list[str]:
    row = [f"{images:,}", slice_]
    stem = f"loss_{slice_.replace(':', '_')}_{images}"
    forms = ("global", "streaming")
    if not all((folder / f"{stem}_{form}.json").exists() for form in forms):
        return kept(OF_LOSSES, *row) or [*row, "not compiled", *[""] * 5]
    for form in forms:
        made = read(folder, f"{stem}_{form}")
        memory = made["memory"]
        if not made["fits"]:
            needed = f"does not fit: {memory['peak'] / GIB:.0f} GiB"
            row += [needed, "-", "-"]
            continue
        row += [
            f"{memory['temporaries'] / 2**20:.1f}",
            number(made["program"]["flops"] / 1e9),
            between(made["step_seconds"], 1e3),
        ]
    return row


def table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(folder: pathlib.Path) -> str:
    about = json.loads(min(folder.glob("*.json")).read_text())
    steps = table(
        [
            "encoder",
            "images",
            "slice",
            "chips",
            "GiB a device",
            "state",
            "TFLOP",
            "HBM GB",
            "collectives",
            "step ms",
            "images/s",
            "estimate ms",
            "remat",
        ],
        [step_row(folder, name) for name in STEPS],
    )
    pairs = dict.fromkeys((slice_, images) for slice_, images, _ in LOSSES.values())
    nt_xent = table(
        [
            "images",
            "slice",
            "global: MiB",
            "GFLOP",
            "ms",
            "streaming: MiB",
            "GFLOP",
            "ms",
        ],
        [loss_row(folder, *pair) for pair in pairs],
    )
    diagnostics = table(
        [
            "images",
            "slice",
            "MiB",
            "GFLOP",
            "HBM GB",
            "collectives",
            "ms",
        ],
        [
            row
            for name in ("r50_4x4", "r50_65k", "r50_262k")
            if (row := diagnostics_row(folder, name))
        ],
    )
    marks = {"not compiled": NOTE_CRASHED, EARLIER: NOTE_EARLIER}
    notes = "".join(note for mark, note in marks.items() if mark in steps)
    notes += of_other_versions(folder, about)
    return f"""# What the TPU compiler says

Written by `python tests/benchmarks/compiled.py` (JAX {about["jax"]}, libtpu
{about["libtpu"]}). Nothing was run: memory, arithmetic and collectives are those of
compiled programs; times are a bracket from published peak rates, as
[the page on `plan`](plan.md) explains. Figures are for one device and one step, but
images/s, which are those of the slice.

{OF_STEPS}

As the configs in `configs/` have it: bfloat16 convolutions, LARS, gradients summed in
float32, and the least rematerialisation that fits (`parallel.remat = "auto"`), which
the last column names. The estimate is the compiler's own, see
[the page on `plan`](plan.md). A chip of v3 is two devices, each with half of its
memory.

{steps}
{notes}{growth(folder)}
{OF_DIAGNOSTICS}

A program of its own, run after every `log.every_steps`-th step, with ResNet-50's
outputs: accuracy and entropy pass over all similarities, and the effective ranks of h
and z sum matrices of 2,048 x 2,048 and 128 x 128 over the devices. GFLOP are with the
passes of float32 products, MiB the compiler's temporaries in HBM.

{diagnostics}

{OF_LOSSES}

The gradient with respect to projections of 128 numbers, two views an image. MiB are the
compiler's temporaries.

{nt_xent}
"""


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--only", choices=[*STEPS, *LOSSES])
    parser.add_argument("--page_only", action="store_true")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    names = [arguments.only] if arguments.only else [*LOSSES, *STEPS]
    for name in [] if arguments.page_only else names:
        output = arguments.folder / f"{name}.json"
        if output.exists():
            continue
        if name in LOSSES:
            slice_, images, form = LOSSES[name]
            settings = {"batch.batch_size": images, "loss.form": form}
            plan(output, "imagenet.py", settings, slice_, "--loss_only")
        else:
            _, config, settings, slice_ = STEPS[name]
            plan(output, config, settings, slice_)
    if not arguments.only:
        PAGE.write_text(page(arguments.folder))
        print(f"Wrote {PAGE}.")


if __name__ == "__main__":
    main()
