"""Images a second from a store, by the latency of its requests, against a local disk.

    JAX_PLATFORMS=cpu python tests/benchmarks/store_reading.py

Prepares a dataset of synthetic JPEG files (or those in --images), copies it to a store
(fake-gcs-server) and reads it from there through a proxy that lets every request wait.
Server and proxy share the machine with what is measured, so the rates are a lower bound
for what a host reaches.

`records` reads what batches need and does nothing with it: as many chunks at a time as
the pipeline would have under way (--parallel_reads), each of 16 records or one block;
`us of a core` is the processor time that a record costs the reading process.
`images` is the training pipeline: reading, decoding, two crops at 64 pixels, on the
cores at hand. Each cell is the median of --rounds.
"""

import argparse
import collections
import contextlib
import os
import pathlib
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("JAX_PLATFORMS", "cpu")
ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import stores  # noqa: E402
from PIL import Image  # noqa: E402
from stores_proxy import Proxy  # noqa: E402

from simclr_jax import paths  # noqa: E402
from simclr_jax.configs import base  # noqa: E402
from simclr_jax.data.sampling import order  # noqa: E402
from simclr_jax.data.sources.prepared import ShardSource  # noqa: E402
from simclr_jax.prepare import build  # noqa: E402
from simclr_jax.training import input_pipeline  # noqa: E402

SHARD_MB = 32
DISTINCT = 64
CHUNK = 16


def make_dataset(args: argparse.Namespace, folder: pathlib.Path) -> pathlib.Path:
    """Prepares --records images, which repeat."""
    if args.images:
        files = [p for p in sorted(pathlib.Path(args.images).rglob("*.*"))]
    else:
        (folder / "distinct").mkdir()
        files = []
        for number in range(DISTINCT):
            random = np.random.default_rng(number)
            small = random.integers(0, 256, (24, 32, 3), np.uint8)
            image = np.asarray(Image.fromarray(small).resize((500, 375)), np.int16)
            image = image + random.integers(-32, 33, image.shape)
            files.append(folder / "distinct" / f"{number}.jpg")
            pixels = np.clip(image, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(files[-1], quality=86)
    (folder / "images").mkdir()
    for number in range(args.records):
        file = files[number % len(files)].resolve()
        (folder / "images" / f"{number:06}{file.suffix}").symlink_to(file)
    options = build.Options(input=str(folder / "images"), shard_size_mb=SHARD_MB)
    build.prepare(options, str(folder / "dataset"), num_workers=2)
    return folder / "dataset"


class Counting(ShardSource):
    """Counts what is read."""

    num_read = 0

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        Counting.num_read += len(indices)
        return super().read(indices)


def record_rate(dataset: str, block_size: int, args: argparse.Namespace) -> float:
    """Records a second that `args.parallel_reads` chunks at a time deliver."""
    source = Counting(dataset, split="train")
    chunk = max(CHUNK, block_size)

    def chunks():
        step = 0
        while True:
            indices, _ = order.batch_indices(
                step,
                seed=0,
                num_examples=source.num_examples,
                batch_size=args.batch_size,
                block_size=block_size,
            )
            yield from np.split(indices, args.batch_size // chunk)
            step += 1

    waiting: collections.deque = collections.deque()
    with ThreadPoolExecutor(args.parallel_reads) as pool:
        wanted = chunks()
        for _ in range(2 * args.parallel_reads):
            waiting.append(pool.submit(source.read, next(wanted)))

        def read_for(secs: float) -> float:
            done, start = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < secs:
                done += len(waiting.popleft().result()[0])
                waiting.append(pool.submit(source.read, next(wanted)))
            return done / elapsed

        read_for(1)
        return read_for(args.secs)


def image_rate(dataset: str, block_size: int, args: argparse.Namespace) -> float:
    """Images a second of the training pipeline."""
    config = base.get_config()
    config.image_size = 64
    config.augment.placement = "host_crop"
    config.batch.batch_size = args.batch_size
    config.schedule.train_steps = 2**31
    config.data.block_size = block_size
    config.data.parallel_reads = args.parallel_reads
    source = ShardSource(dataset, split="train")
    batches = input_pipeline.local_batches(config, source, start_step=0)
    for _ in range(6):  # more than were read ahead
        next(batches)
    done, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < args.secs:
        next(batches)
        done += args.batch_size
    return done / elapsed


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", help="a folder of JPEG files")
    parser.add_argument("--records", type=int, default=2048)
    parser.add_argument("--latency_ms", type=float, nargs="+", default=[0, 20, 100])
    parser.add_argument("--block_size", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--parallel_reads", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--secs", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, stores.gcs_server() as server:
        local = make_dataset(args, pathlib.Path(name))
        os.environ.update(server.variables())
        store = f"{server.new_bucket()}/dataset"
        paths.upload(local, paths.as_path(store))
        size = sum(path.stat().st_size for path in local.glob("*.tfrecord*"))
        print(
            f"{args.records} records of {size / args.records / 1000:.0f} kB, "
            f"{args.parallel_reads} parallel reads, {len(os.sched_getaffinity(0))} "
            "cores; records/s and images/s"
        )
        places: list[tuple[str, float | None]] = [("local disk", None)]
        places += [(f"store, {ms:g} ms", ms / 1000) for ms in args.latency_ms]
        print(
            "| block_size | from | requests an image | records/s | images/s "
            "| us of a core |"
        )
        print("|---" * 6 + "|")
        for block_size in args.block_size:
            for place, latency_secs in places:
                measure(
                    place, latency_secs, block_size, server, str(local), store, args
                )


def measure(place, latency_secs, block_size, server, local, store, args) -> None:
    """Prints a line of the table."""
    rates: dict = {record_rate: [], image_rate: []}
    with contextlib.ExitStack() as stack:
        dataset, proxy = local, None
        if latency_secs is not None:
            proxy = stack.enter_context(Proxy(server.url, latency_secs=latency_secs))
            os.environ.update(server.variables(proxy.url))
            dataset = store
        requests, costs = "-", []
        for _ in range(args.rounds):
            for rate, results in rates.items():
                before = proxy.counts()["requests"] if proxy else 0
                Counting.num_read, cpu = 0, time.process_time()
                results.append(rate(dataset, block_size, args))
                if rate is record_rate:
                    cpu = time.process_time() - cpu
                    costs.append(cpu / Counting.num_read * 1e6)
                    if proxy:
                        count = proxy.counts()["requests"] - before
                        requests = f"{count / Counting.num_read:.3f}"
    cells = [requests, *(f"{statistics.median(r):.0f}" for r in rates.values())]
    cells.append(f"{statistics.median(costs):.0f}")
    print(f"| {block_size} | {place} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
