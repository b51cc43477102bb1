"""Times the checksums of a checkpoint against saving and restoring it, in turn.

python tests/benchmarks/checkpoint_checksums.py --depth=50 --rounds=5
"""

import argparse
import os
import pathlib
import statistics
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import numpy as np  # noqa: E402

from simclr_jax import parallel  # noqa: E402
from simclr_jax.configs import base  # noqa: E402
from simclr_jax.runs import checksums  # noqa: E402
from simclr_jax.runs.checkpoints import Checkpoints  # noqa: E402
from simclr_jax.training import step  # noqa: E402


def random_state(depth: int) -> step.TrainState:
    """A state of the shapes of a training, with normal numbers."""
    config = base.get_config()
    config.encoder.depth = depth
    config.encoder.stem = "imagenet"
    config.schedule.train_steps, config.schedule.warmup_steps = 100, 10
    parts = step.pretraining_parts(config, num_classes=1000)
    shapes = jax.eval_shape(
        lambda key: step.init_state(parts, key, image_size=64), jax.random.key(0)
    )
    generator = np.random.default_rng(0)
    sharding = parallel.replicated(parallel.create_mesh())
    return jax.tree.map(
        lambda x: jax.device_put(
            generator.standard_normal(x.shape).astype(x.dtype), sharding
        ),
        shapes,
    )


def main() -> None:
    """Prints medians over rounds, each of which measures all in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=50, help="of the ResNet")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    state = random_state(arguments.depth)
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    sharding = jax.tree.map(lambda x: x.sharding, state)
    secs: dict[str, list[float]] = {"save": [], "restore": [], "checksums": []}
    sum_all, spent = checksums.of_tree, 0.0

    def timed(tree):
        nonlocal spent
        start = time.perf_counter()
        sums = sum_all(tree)
        spent += time.perf_counter() - start
        return sums

    checksums.of_tree = timed
    for number in range(arguments.rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            store = Checkpoints(folder, keep_last=1, keep_every_steps=None)
            before, start = spent, time.perf_counter()
            store.save(1, state, {"config_hash": "0"})
            store.wait()
            middle, at_middle = spent, time.perf_counter()
            restored = store.restore_newest(
                jax.eval_shape(lambda: state), sharding, "0"
            )
            jax.block_until_ready(restored)
            end = time.perf_counter()
            store.close()
        if number:  # the first one also imports and compiles
            secs["save"].append((middle - before) / (at_middle - start))
            secs["restore"].append((spent - middle) / (end - at_middle))
            secs["checksums"].append(spent - middle)
    print(f"ResNet-{arguments.depth}, {num_bytes / 2**20:.0f} MiB of state")
    print(f"checksums: {statistics.median(secs['checksums']):.3f} s")
    for name in ("save", "restore"):
        print(f"share of a {name}: {statistics.median(secs[name]):.1%}")


if __name__ == "__main__":
    main()
