"""Shows with which settings the input pipeline hides the latency of a store.

    JAX_PLATFORMS=cpu taskset -c 0 python tests/benchmarks/slow_store.py --images=FOLDER

The images are prepared, repeatedly, into a dataset of --records. Each of its requests,
one for every run of neighbouring records, is then delayed by a latency and by the size
of what it asks for over the bandwidth of one stream, before the local disk answers it.
What training on the host does runs as it is: reading ahead, decoding, two crops at 64
pixels, one thread. With more cores, or more work on each image, as many times more or
fewer images must arrive per second for the same share.

Measured is the wall time of batches once the first ones, which were read ahead, are
gone, so the core must have nothing else to do. A percentage is the rate over that of
the same settings with no delay; of 95 % and more the pipeline is said to keep its rate.
No more images can arrive in a second than parallel_reads / (requests an image) / (time
of a request). Settings are those of `config.data`.
"""

import argparse
import dataclasses
import os
import pathlib
import sys
import tempfile
import threading
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import numpy as np

from simclr_jax.configs import base
from simclr_jax.data.sources import storage
from simclr_jax.data.sources.prepared import ShardSource
from simclr_jax.prepare import build
from simclr_jax.training import input_pipeline

KEPT = 0.95
SHARD_MB = 64


class SlowStore:
    """Takes the place of `storage.read_range`."""

    def __init__(self, latency_secs: float, bytes_per_sec: float) -> None:
        self._latency, self._bytes_per_sec = latency_secs, bytes_per_sec
        self._read_range = storage.read_range
        self._lock = threading.Lock()
        self.num_requests = 0

    def __call__(self, path: str, offset: int, length: int) -> bytes:
        with self._lock:
            self.num_requests += 1
        time.sleep(self._latency + length / self._bytes_per_sec)
        return self._read_range(path, offset, length)

    def __enter__(self) -> "SlowStore":
        storage.read_range = self
        return self

    def __exit__(self, *unused: object) -> None:
        storage.read_range = self._read_range


class Counting(ShardSource):
    """Counts what is read."""

    num_read = 0

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.num_read += len(indices)
        return super().read(indices)


@dataclasses.dataclass
class Rate:
    """What was measured: images per second, requests per image."""

    images: float
    requests: float


def make_dataset(images: str, num_records: int, folder: pathlib.Path) -> str:
    """Prepares the images of a folder, as often as needed."""
    files = [p for p in sorted(pathlib.Path(images).rglob("*")) if p.is_file()]
    files = [p for p in files if p.suffix.lower() in folder.IMAGE_SUFFIXES]
    if not files:
        raise SystemExit(f"--images={images}: holds no images")
    (folder / "images").mkdir()
    for number in range(num_records):
        file = files[number % len(files)].resolve()
        (folder / "images" / f"{number:06}{file.suffix}").symlink_to(file)
    options = build.Options(input=str(folder / "images"), shard_size_mb=SHARD_MB)
    output = str(folder / "dataset")
    build.prepare(options, output, num_workers=len(os.sched_getaffinity(0)))
    return output


def measure(
    dataset: str, *, block_size: int, parallel_reads: int, store: SlowStore, args
) -> Rate:
    """Runs the pipeline for a while."""
    config = base.get_config()
    config.image_size = args.image_size
    config.augment.placement = "host_crop"
    config.batch.batch_size = args.batch_size
    config.schedule.train_steps = 2**31
    config.data.threads = 1
    config.data.block_size = block_size
    config.data.parallel_reads = parallel_reads
    source = Counting(dataset, split="train")
    with store:
        batches = input_pipeline.local_batches(config, source, start_step=0)
        start = time.perf_counter()
        while time.perf_counter() - start < args.warm_up_secs:
            next(batches)
        num_batches, start = 0, time.perf_counter()
        while num_batches < 2 or time.perf_counter() - start < args.secs:
            next(batches)
            num_batches += 1
        elapsed = time.perf_counter() - start
        rate = num_batches * args.batch_size / elapsed
        requests = store.num_requests / source.num_read
        # Its threads end before the store is what it was.
        del batches
    return Rate(rate, requests)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True, help="a folder of JPEG files")
    parser.add_argument("--records", type=int, default=2048)
    parser.add_argument("--latency_ms", type=float, nargs="+", default=[50, 200])
    parser.add_argument("--stream_mb_per_sec", type=float, default=50)
    parser.add_argument("--block_size", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--parallel_reads", type=int, nargs="+", default=[2, 16, 64])
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--warm_up_secs", type=float, default=8)
    parser.add_argument("--secs", type=float, default=8)
    args = parser.parse_args()
    bandwidth = args.stream_mb_per_sec * 1e6
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(args.images, args.records, pathlib.Path(folder))
        size = sum(p.stat().st_size for p in pathlib.Path(dataset).glob("*.tfrecord*"))
        print(
            f"{args.records} records of {size / args.records / 1000:.0f} kB on average;"
            f" {args.stream_mb_per_sec:g} MB/s a stream; images per second"
        )
        heads = ["block_size", "parallel_reads", "requests an image", "no delay"]
        heads += [f"{latency:g} ms" for latency in args.latency_ms]
        print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|", flush=True)
        for block_size in args.block_size:
            for parallel_reads in args.parallel_reads:
                settings = {"block_size": block_size, "parallel_reads": parallel_reads}
                stores = [SlowStore(0, float("inf"))]
                stores += [SlowStore(ms / 1000, bandwidth) for ms in args.latency_ms]
                rates = [
                    measure(dataset, **settings, store=store, args=args)
                    for store in stores
                ]
                free, *slow = rates
                cells = [f"{block_size}", f"{parallel_reads}", f"{free.requests:.3f}"]
                cells.append(f"{free.images:.0f}")
                for rate in slow:
                    share = rate.images / free.images
                    kept = " kept" if share >= KEPT else ""
                    cells.append(f"{rate.images:.0f} ({share:.0%}{kept})")
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
