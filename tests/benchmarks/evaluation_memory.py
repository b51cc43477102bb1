"""Memory and time of `knn` and `linear` on as many features as ImageNet has.

    python tests/benchmarks/evaluation_memory.py
    python tests/benchmarks/evaluation_memory.py --images=80000 --classes=100

The features are synthetic: rectified noise around a centre for each class, drawn on the
devices from a seed, where an encoder would compute them. From there on the code is that
of `simclr_jax.evaluate`. Prints, for each part, its seconds and the peak of the
process's resident memory (VmHWM, reset before each part; Linux only). On CPUs the
devices' memory is the host's, so that peak includes the features.

L-BFGS takes hundreds of steps for a figure; `--lbfgs_steps` cuts it short, since memory
does not depend on it and time is proportional to it.
"""

import argparse
import functools
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax import parallel
from simclr_jax.evaluation import features, knn, linear, metrics

_SEED = 0
_STATUS = pathlib.Path("/proc/self/status")
_RESET = pathlib.Path("/proc/self/clear_refs")


def draw(width: int, classes: int, key: jax.Array, images: jax.Array) -> jax.Array:
    """Features [n, width]; the pixel of an image [n, 1, 1, 1] is its number."""
    numbers = images.reshape(-1).astype(jnp.int32)

    def one(number: jax.Array) -> jax.Array:
        noise, centre = jax.random.split(key)
        centre = jax.random.fold_in(centre, number % classes)
        noise = jax.random.fold_in(noise, number)
        shape = (width,)
        x = 0.3 * jax.random.normal(centre, shape) + jax.random.normal(noise, shape)
        return jnp.maximum(x, 0)

    return jax.vmap(one)(numbers)


def batches(
    first: int, count: int, classes: int, *, size: int, num_devices: int
) -> Iterator[dict[str, np.ndarray]]:
    """As `pipeline.eval_batches` gives them, in one process."""
    num_batches = -(-count // (size * num_devices))
    for number in range(num_batches):
        starts = (np.arange(num_devices) * num_batches + number) * size
        positions = (starts[:, None] + np.arange(size)).reshape(-1)
        numbers = first + positions
        yield {
            "images": numbers.astype(np.float32)[:, None, None, None],
            "labels": (numbers % classes).astype(np.int32),
            "mask": positions < count,
        }


def peak_bytes() -> int:
    """The highest resident memory since the last reset."""
    (line,) = (s for s in _STATUS.read_text().splitlines() if s.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def measure(name: str, run: Callable[[], Any]) -> Any:
    """Runs a part and prints a row of the table."""
    _RESET.write_text("5")
    start = time.perf_counter()
    found = run()
    seconds = time.perf_counter() - start
    print(f"| {name} | {seconds:.0f} | {peak_bytes() / 1e9:.2f} |", flush=True)
    return found


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--test_images", type=int, default=2048)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--lbfgs_steps", type=int, default=2)
    parser.add_argument("--rows", type=int, default=2048, help="of a device's batch")
    arguments = parser.parse_args()
    width, classes = arguments.width, arguments.classes
    mesh = parallel.create_mesh()
    key = jax.random.key(_SEED)
    encode = jax.tree_util.Partial(functools.partial(draw, width, classes), key)

    def extract(first: int, count: int) -> features.Features:
        found = batches(
            first, count, classes, size=arguments.rows, num_devices=mesh.size
        )
        return features.extract(encode, found, mesh, num_examples=count)

    gigabytes = 4e-9 * width * (arguments.images + arguments.test_images)
    print(
        f"{arguments.images:,} x {width} float32 features of {classes} classes, "
        f"{arguments.test_images:,} to test on: {gigabytes:.2f} GB; {mesh.size} "
        f"device(s), {jax.devices()[0].device_kind}\n"
    )
    print("| part | seconds | peak GB |\n|---|---|---|")
    measure("start: JAX and this package", lambda: None)
    test = extract(arguments.images, arguments.test_images)
    train = measure("extract", lambda: extract(0, arguments.images))
    by_k = measure(
        "knn, k = 200",
        lambda: knn.classify(train, test, ks=(200,), temperature=0.07),
    )
    by_line, _ = measure(
        f"linear, 1 penalty, {arguments.lbfgs_steps} steps of L-BFGS",
        lambda: linear.linear_evaluation(
            train, test, l2_penalties=(1e-4,), max_steps=arguments.lbfgs_steps
        ),
    )
    nearest, line = (metrics.top1(p, test.labels) for p in (by_k[200], by_line))
    print(f"\nknn {100 * nearest:.1f} %, linear {100 * line:.1f} %")


if __name__ == "__main__":
    main()
