"""Times what guards a training against a step without it, in turn.

    python tests/benchmarks/protections.py --rounds=20

A step is that of ResNet-18 on CIFAR-10's image size: with the sums by layer that tell
where a training diverges, and with the global norms alone. Both are compiled twice, as
two copies of one program differ too: by where their buffers lie. A round makes a step
with each, there and back, so that a drift of the machine's speed cancels. What the host
does after each step is called by itself: a look at the lease of the run directory and
at saves under way, requests to stop or to save, and the search for values that are not
finite.
"""

import argparse
import functools
import logging
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from simclr_jax import parallel  # noqa: E402
from simclr_jax.config import resolve  # noqa: E402
from simclr_jax.configs import cifar10  # noqa: E402
from simclr_jax.runs import directory, ownership  # noqa: E402
from simclr_jax.runs.checkpoints import Checkpoints  # noqa: E402
from simclr_jax.training import compiling, divergence, step  # noqa: E402
from simclr_jax.training.preemption import Requests  # noqa: E402

CALLS = 2000
PROGRAMS = ("guarded", "plain", "guarded again", "plain again")


def plain_norms(grads, updates, batch_stats):
    """The metrics of a step without the sums by layer."""
    del batch_stats
    return {
        "gradient_norm": optax.tree.norm(grads),
        "update_norm": optax.tree.norm(updates),
    }


def secs_of(function: Callable[[], object], count: int) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    for _ in range(count):
        function()
    return (time.perf_counter() - start) / count


def main() -> None:
    """Prints the cost of each guard, as the median over rounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=16)
    arguments = parser.parse_args()
    logging.getLogger("simclr_jax").setLevel(logging.ERROR)
    config = cifar10.get_config()
    config.batch.batch_size = arguments.batch_size
    config.encoder.depth = 18
    config = resolve.resolve(config, num_examples=50_000)
    mesh = parallel.create_mesh()
    parts = step.pretraining_parts(config, num_classes=10, mesh=mesh)
    generator = np.random.default_rng(0)
    shape = (arguments.batch_size, 2, 32, 32, 3)
    batch = parallel.shard_batch(
        mesh,
        {
            "images": generator.integers(0, 256, shape, np.uint8),
            "labels": np.zeros(arguments.batch_size, np.int32),
        },
    )
    init = compiling.compile_init(parts, mesh, image_size=32)
    programs = {}
    guarded_norms = divergence.norms
    for name in PROGRAMS:
        divergence.norms = plain_norms if "plain" in name else guarded_norms
        train_step = compiling.compile_step(parts, mesh, None)
        state = init(jax.random.key(0))
        programs[name] = [train_step, *train_step(state, batch)[:2]]
    divergence.norms = guarded_norms
    metrics = jax.device_get(programs[PROGRAMS[0]][2])

    def advance(name: str) -> None:
        train_step, state, _ = programs[name]
        programs[name][1:] = train_step(state, batch)[:2]
        jax.block_until_ready(programs[name][1])

    secs: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as workdir:
        directory.write_config(workdir, config)
        with ownership.owned(workdir) as owner:
            checkpoints = Checkpoints(
                workdir, keep_last=1, keep_every_steps=None, owner=owner
            )
            requests = Requests(checkpoints, save_every_secs=600)
            guard = divergence.Guard(config, programs[PROGRAMS[0]][1])
            for _ in range(arguments.rounds):
                for name in (*PROGRAMS, *reversed(PROGRAMS)):
                    took = secs_of(functools.partial(advance, name), 1)
                    secs.setdefault(name, []).append(took)
                for name, function in (
                    ("lease, saves and requests", requests.after_step),
                    ("values", lambda: guard.check(1, metrics)),
                ):
                    secs.setdefault(name, []).append(secs_of(function, CALLS))
            checkpoints.close()
    middle = {name: statistics.median(secs[name]) for name in PROGRAMS}
    plain = (middle["plain"] + middle["plain again"]) / 2
    guarded = (middle["guarded"] + middle["guarded again"]) / 2
    noise = max(abs(middle[name] - middle[f"{name} again"]) for name in PROGRAMS[:2])
    print(f"a step of {arguments.batch_size} images: {plain * 1e3:.0f} ms")
    print(
        f"sums by layer: {(guarded - plain) * 1e3:+.1f} ms, {guarded / plain - 1:+.2%} "
        f"of a step; copies of one program differ by {noise * 1e3:.1f} ms"
    )
    for name in ("lease, saves and requests", "values"):
        cost = statistics.median(secs[name])
        print(f"{name}: {cost * 1e6:.1f} us, {cost / plain:.4%} of a step")


if __name__ == "__main__":
    main()
