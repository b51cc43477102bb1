"""Times the first and the second start on a dataset of many records.

    python tests/benchmarks/index.py --folder=DIR
    python tests/benchmarks/index.py --folder=DIR --latency_ms=20

Makes a dataset of --shards x --records records in TFDS's own format in --folder (once),
and opens it as training does, in new processes: at first without a kept index, then
with one. With --latency_ms it lies on a store (fake-gcs-server, which has it in
memory), and every request waits this long. `open` is what opening the source
takes, `process` all of the new process, with the imports of TensorFlow and TFDS.

    python tests/benchmarks/index.py --folder=DIR --latency_ms=20 --find --shards=32 \
      --records=64 --record_bytes=110000

compares the two ways to find records in TFRecord shards on a store, one request for
each record and reading everything, to choose the record size from which one is better.

    python tests/benchmarks/index.py --folder=DIR --images=1000000

makes and opens a folder of so many tiny image files instead, in 1,000 classes.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import stores  # noqa: E402
from stores_proxy import Proxy  # noqa: E402

NAME = "records"
OPEN = """
import logging, sys, time
start = time.perf_counter()
logging.basicConfig(level=logging.INFO, format="  %(message)s")
logging.getLogger("absl").setLevel("ERROR")
from simclr_jax.data.sources import registry
if ":" not in sys.argv[1]:
    # Which takes seconds by itself.
    import tensorflow_datasets
    from simclr_jax.data import tf_cpu
imported, cpu = time.perf_counter(), time.process_time()
source = registry.open_source(
    sys.argv[1], split=sys.argv[2], data_dir=sys.argv[3] or None
)
print(time.perf_counter() - imported, time.process_time() - cpu)
"""


def make_records(folder: pathlib.Path, args: argparse.Namespace) -> None:
    """Writes TFRecord shards of records of one size, and what TFDS says of them."""
    version = folder / NAME / "1.0.0"
    if (version / "dataset_info.json").exists():
        return
    import tfds_files

    version.mkdir(parents=True)
    description = tfds_files._features((8, 8, 3), label=True)
    (version / "features.json").write_text(json.dumps(description))
    lengths = [args.records] * args.shards
    size = args.record_bytes
    # Checksums are not read.
    frame = struct.pack("<QI", size, 0) + bytes(size + 4)
    for number in range(args.shards):
        name = f"{NAME}-train.tfrecord-{number:05}-of-{args.shards:05}"
        (version / name).write_bytes(frame * args.records)
    info = tfds_files._info(NAME, "tfrecord", lengths)
    (version / "dataset_info.json").write_text(json.dumps(info))


def make_images(folder: pathlib.Path, count: int) -> None:
    """Writes PNG files of one pixel."""
    if folder.exists():
        return
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    for number in range(1000):
        inner = folder / f"class{number:03}"
        inner.mkdir(parents=True)
        for image in range(number, count, 1000):
            (inner / f"{image:07}.png").write_bytes(buffer.getvalue())


def open_once(dataset: str, split: str, data_dir: str) -> str:
    """Seconds of opening, with those of processor time, and of the whole process."""
    start = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-c", OPEN, dataset, split, data_dir],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    elapsed = time.perf_counter() - start
    opening, cpu = map(float, process.stdout.split())
    return f"open {opening:.2f} s ({cpu:.2f} s of a core), process {elapsed:.2f} s"


@contextlib.contextmanager
def served(folder: pathlib.Path, latency_ms: float | None):
    """Where the folder is to be read from."""
    if latency_ms is None:
        yield str(folder)
        return
    with (
        stores.gcs_server(folder.parent) as server,
        Proxy(server.url, latency_secs=latency_ms / 1000) as proxy,
    ):
        os.environ.update(server.variables(proxy.url))
        yield "gs://bucket"
        print(f"requests: {proxy.counts()['requests']:,}")


def compare_ways(data_dir: str, args: argparse.Namespace) -> None:
    """Times both ways of finding records."""
    from simclr_jax.data.sources import kept, record_index

    folder = f"{data_dir}/{NAME}/1.0.0"
    shards = [
        record_index.Shard(
            f"{folder}/{NAME}-train.tfrecord-{n:05}-of-{args.shards:05}", args.records
        )
        for n in range(args.shards)
    ]
    record_index.FEWEST_KEPT = sys.maxsize
    for way, small in (("one request a record", 0), ("everything", sys.maxsize)):
        record_index._DISTANT_SMALL_BYTES = small
        start = time.perf_counter()
        record_index.find(shards, what=NAME, sharing=kept.ALONE)
        elapsed = time.perf_counter() - start
        records = args.shards * args.records
        print(
            f"{way}: {elapsed:.2f} s, {records / elapsed:.0f} records/s, "
            f"{records * args.record_bytes / elapsed / 1e6:.0f} MB/s of shards"
        )


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--shards", type=int, default=1024)
    parser.add_argument("--records", type=int, default=1250, help="in a shard")
    parser.add_argument("--record_bytes", type=int, default=100)
    parser.add_argument("--latency_ms", type=float)
    parser.add_argument("--find", action="store_true")
    parser.add_argument("--images", type=int)
    args = parser.parse_args()
    shape = f"{args.shards}-{args.records}-{args.record_bytes}"
    shape = f"images-{args.images}" if args.images else shape
    # Buckets are folders in a folder.
    data = args.folder.absolute() / shape / "bucket"
    if args.images:
        make_images(data, args.images)
    else:
        make_records(data, args)
    with served(data, args.latency_ms) as place:
        if args.find:
            compare_ways(place, args)
            return
        for inner in list(data.rglob(".simclr_jax")):
            shutil.rmtree(inner)
        for what in ("first", "second"):
            if args.images:
                print(f"{what} start:", open_once(f"folder:{place}", "all", ""))
            else:
                print(f"{what} start:", open_once(NAME, "train", place))


if __name__ == "__main__":
    main()
