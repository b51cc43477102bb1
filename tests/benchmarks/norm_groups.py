"""Collectives of the train step by `batch.norm_group`, for many devices.

    python tests/benchmarks/norm_groups.py --devices=256

XLA partitions the step of ResNet-50, in TPUs' form, for virtual CPU devices; nothing
runs. It takes four minutes of a core. The messages are those of the program before a
TPU's compiler joins small ones, which
`python -m simclr_jax.plan --config.batch.norm_group=...` shows for a slice. They do not
depend on the size of the images, so small ones are used. The last column is `plan`'s
latency for all of them on a v5e slice of as many chips.

Messages are told apart by their number of devices, so a group must not be the square
root of all: sums across groups then have as many.
"""

import argparse
import os
from collections.abc import Sequence

SLICES = {256: "v5e:16x16", 64: "v5e:8x8", 16: "v5e:4x4"}


def table(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def measure(devices: int, group: int, depth: int) -> list[str]:
    """A row: messages among a group, and among all devices."""
    import jax

    from simclr_jax import parallel
    from simclr_jax.config import resolve
    from simclr_jax.configs import imagenet
    from simclr_jax.models import convolutions
    from simclr_jax.plan import lowering, program, roofline, topologies
    from simclr_jax.training import build

    # TPUs' forms: those for CPUs sum gradients chunk by chunk.
    convolutions._by_platform = lambda *arrays, cpu, direct, gpu=None: direct(*arrays)
    build._platform = lambda mesh: "tpu"
    config = imagenet.get_config(f"{depth}x1")
    config.image_size = 32
    config.batch.norm_group = group
    config = resolve.resolve(config, num_examples=1_281_167)
    mesh = parallel.create_mesh(jax.devices()[:devices])
    compiled = lowering.lower(config, mesh, num_classes=1000).compile()
    text = compiled.as_text()
    assert text is not None
    found = program.analyse(text, num_devices=devices).collectives
    row = ["all" if group == devices else str(group)]
    within = [c for c in found if c.devices == group < devices]
    # Gradients and embeddings are larger than any layer's statistics.
    for chosen in (within, [c for c in found if c not in within]):
        count = sum(c.count for c in chosen)
        megabytes = sum(c.count * c.bytes for c in chosen) / 1e6
        row += [str(count), f"{megabytes:.2f}"]
    slice_ = topologies.parse(SLICES[devices])
    latency = sum(c.count * roofline.latency(c.kind, c.devices, slice_) for c in found)
    return [*row, f"{latency * 1e3:.2f}"]


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=256, choices=SLICES)
    parser.add_argument("--groups", default="256,64,8,4,1")
    parser.add_argument("--depth", type=int, default=50)
    arguments = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_NUM_CPU_DEVICES"] = str(arguments.devices)
    # The program is read, not run.
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    columns = ["devices in a group", "messages in groups", "MB", "among all", "MB"]
    columns.append("latency ms")
    print(table([columns, ["---"] * len(columns)]))
    for group in map(int, arguments.groups.split(",")):
        row = measure(arguments.devices, group, arguments.depth)
        print(table([row]), flush=True)


if __name__ == "__main__":
    main()
