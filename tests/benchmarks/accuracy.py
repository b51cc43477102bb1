"""Trains the same net with this package and with lightly, and compares accuracies.

    python tests/benchmarks/accuracy.py --data_dir=TFDS_DIR --workdir=runs/accuracy

Both sides see the same images of CIFAR-10 for the same epochs, with the same batch,
optimiser, schedule and temperature. `--variants` names what is changed, one thing at a
time (`--list` prints them, the most telling ones first); each variant and seed is a run
of its own, one after the other, and what is there is not run again. `--check` compares
what needs no training: parameters, learning rates, features of the fresh nets, views.
`--page` and `--json` write the results of all that has been run. Lightly runs in a
Python of its own (`--torch_python`, or made in `--env`).

`--cores=0,1` gives both cores to one run at a time, `--cores=0/1` one to each of two.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import platform
import queue
import shutil
import signal
import sys
from collections.abc import Sequence
from typing import Any

import in_turn
import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from accuracy_sides import checks, evaluator, measured, package_side, page  # noqa: E402
from accuracy_sides.variants import (  # noqa: E402
    LIGHTLY,
    PACKAGE,
    VARIANTS,
    Setting,
    Variant,
    chosen,
    package_overrides,
)

SPLITS = ("train", "test")
_CHECKED_IMAGES, _CHECKED_PART = 2000, 250
_LIGHTLY_SIDE = str(pathlib.Path(__file__).parent / "accuracy_sides/lightly_side.py")


class Benchmark:
    """The runs of a working directory."""

    def __init__(
        self, folder: pathlib.Path, setting: Setting, torch_python: pathlib.Path
    ) -> None:
        """Takes the directory for this setting.

        Raises:
          SystemExit: it has runs of another one.
        """
        self.folder, self.setting = folder, setting
        self.data = folder / "images.npz"
        self._torch_python = torch_python
        folder.mkdir(parents=True, exist_ok=True)
        stored = folder / "setting.json"
        own = json.dumps(dataclasses.asdict(setting))
        if stored.exists() and stored.read_text() != own:
            raise SystemExit(
                f"--workdir={folder}: has runs of {stored.read_text()}: choose another"
            )
        stored.write_text(own)

    def write_images(self, data_dir: str | None) -> None:
        """Writes the images of both splits, once."""
        if self.data.exists():
            return
        from simclr_jax.data.sources import in_memory, registry

        arrays = {}
        for split, count in zip(
            SPLITS, (self.setting.images, self.setting.test_images), strict=True
        ):
            source = registry.open_source("cifar10", split=split, data_dir=data_dir)
            images, labels = in_memory.whole(in_memory.hold(source, limit_mb=1024))
            arrays[f"{split}_images"] = images[:count]
            arrays[f"{split}_labels"] = labels[:count]
        part = self.data.with_suffix(".part.npz")
        np.savez(part, **arrays)
        part.rename(self.data)

    def task(self, variant: Variant, seed: int, workers: int) -> dict[str, Any]:
        """What `lightly_side.py` does in a run."""
        keys = package_overrides(self.setting, Variant(PACKAGE, ""), seed)
        return {
            "setting": {
                **dataclasses.asdict(self.setting),
                "steps": self.setting.steps,
            },
            "options": dict(variant.changes),
            "seed": seed,
            "workers": workers,
            "data": str(self.data),
            "folder": str(self._place(variant, seed)),
            "package_views": package_side.views_command(self.data, keys),
        }

    def _place(self, variant: Variant, seed: int) -> pathlib.Path:
        return self.folder / "runs" / f"{variant.slug}-{seed}"

    def run(self, variant: Variant, seed: int, cores: Sequence[int]) -> None:
        """Trains, writes features and times and evaluates, unless that is done."""
        place = self._place(variant, seed)
        if (place / "result.json").exists():
            return
        # Half a run is none: times would not be those of a whole one.
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        if variant.side == PACKAGE:
            spent = self._run_package(variant, seed, cores)
        else:
            spent = self._run_lightly(variant, seed, cores)
        result = {"seed": seed, "cores": len(cores), "times": spent}
        result |= self._accuracies(place)
        part = place / "result.part"
        part.write_text(json.dumps(result))
        part.rename(place / "result.json")
        train = spent["train"]
        print(
            f"{variant.slug}, seed {seed}: kNN {100 * result['knn']:.2f} %, linear "
            f"{100 * result['linear']:.2f} %, {train['secs']:.0f} s, "
            f"{train['cpu_secs']:.0f} s of processor time",
            flush=True,
        )

    def _run_package(
        self, variant: Variant, seed: int, cores: Sequence[int]
    ) -> dict[str, dict[str, float]]:
        place = self._place(variant, seed)
        keys = package_overrides(self.setting, variant, seed)
        spent = {
            "train": measured.run(
                package_side.train_command(place, self.data, keys),
                cores=cores,
                log=place / "train.log",
                first_step=place / "run" / "metrics.jsonl",
            )
        }
        for split in SPLITS:
            spent[f"embed {split}"] = measured.run(
                package_side.embed_command(place, self.data, split),
                cores=cores,
                log=place / f"embed_{split}.log",
            )
        return spent

    def _run_lightly(
        self, variant: Variant, seed: int, cores: Sequence[int]
    ) -> dict[str, dict[str, float]]:
        place = self._place(variant, seed)
        (place / "task.json").write_text(
            json.dumps(self.task(variant, seed, len(cores)))
        )
        command = [str(self._torch_python), _LIGHTLY_SIDE]
        arguments = [f"--task={place / 'task.json'}"]
        return {
            "train": measured.run(
                [*command, "train", *arguments],
                cores=cores,
                log=place / "train.log",
                first_step=place / "progress.jsonl",
            ),
            "embed": measured.run(
                [*command, "embed", *arguments], cores=cores, log=place / "embed.log"
            ),
        }

    def _accuracies(self, place: pathlib.Path) -> dict[str, float]:
        known = []
        with np.load(self.data) as arrays:
            for split in SPLITS:
                with np.load(place / f"features_{split}.npz") as features:
                    known += [features["features"], arrays[f"{split}_labels"]]
        return {
            "knn": evaluator.knn_accuracy(*known),
            "linear": evaluator.linear_accuracy(*known),
        }

    def results(self) -> page.Results:
        """All that has been run, by slug."""
        found: page.Results = {}
        for variant in VARIANTS:
            files = sorted(self.folder.glob(f"runs/{variant.slug}-[0-9]*/result.json"))
            if files:
                found[variant.slug] = [json.loads(file.read_text()) for file in files]
        return found

    def check(self, cores: Sequence[int]) -> str:
        """A table of what needs no training.

        Raises:
          SystemExit: the sides' parameters or rates differ.
        """
        few = self.folder / "few_images.npz"
        with np.load(self.data) as arrays:
            count = min(_CHECKED_IMAGES, len(arrays["train_images"]))
            count -= count % min(_CHECKED_PART, count)
            np.savez(few, train_images=arrays["train_images"][:count])
        base = {side: Variant(side, "as it is") for side in (PACKAGE, LIGHTLY)}
        keys = package_overrides(self.setting, base[PACKAGE], 0)
        part = min(_CHECKED_PART, count)
        package = package_side.describe(self.data, keys, few, part)
        task, output = self.folder / "check.json", self.folder / "check.npz"
        task.write_text(json.dumps(self.task(base[LIGHTLY], 0, 0)))
        command = [str(self._torch_python), _LIGHTLY_SIDE, "describe"]
        command += [f"--task={task}", f"--output={output}", f"--count={count}"]
        measured.run(command, cores=cores, log=self.folder / "check.log")
        with np.load(output) as arrays:
            lightly = dict(arrays)
        text = checks.table(package, lightly)
        for side, described in ((PACKAGE, package), (LIGHTLY, lightly)):
            path = self.folder / f"start_of_{side}.txt"
            path.write_text(checks.stds(described) + "\n")
            text += f"\n{path}: the spread of every parameter at the start"
        print(text, flush=True)
        checks.check_equal(package, lightly, self.setting.output_dim)
        return text


def run_all(
    benchmark: Benchmark,
    variants: Sequence[Variant],
    seeds: Sequence[int],
    lanes: Sequence[Sequence[int]],
) -> None:
    """Runs variants and seeds, one at a time on the cores of each lane.

    The seeds of a variant follow each other, and the two sides as they are take turns.
    """
    free: queue.Queue[Sequence[int]] = queue.Queue()
    for lane in lanes:
        free.put(lane)

    def run(variant: Variant, seed: int) -> None:
        cores = free.get()
        try:
            benchmark.run(variant, seed, cores)
        finally:
            free.put(cores)

    bases = [variant for variant in variants if variant.name == "as it is"]
    others = [variant for variant in variants if variant.name != "as it is"]
    jobs = [(variant, seed) for seed in seeds for variant in bases]
    jobs += [(variant, seed) for variant in others for seed in seeds]
    with concurrent.futures.ThreadPoolExecutor(len(lanes)) as pool:
        futures = [pool.submit(run, *job) for job in jobs]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            measured.stop()
            raise


def _stop_on_signal(number: int, _frame: Any) -> None:
    raise SystemExit(128 + number)


def _lanes(text: str) -> list[list[int]]:
    return [[int(core) for core in lane.split(",")] for lane in text.split("/")]


def _machine(lanes: Sequence[Sequence[int]]) -> str:
    model = platform.processor() or platform.machine()
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    number = len(lanes[0])
    return f"{number} core{'s' * (number > 1)} a run, {model}"


def _command(arguments: Sequence[str]) -> str:
    """The command for the page, without this machine's paths."""
    paths = ("--data_dir", "--workdir", "--torch_python", "--env", "--page", "--json")
    kept = [x for x in arguments if not x.startswith((*paths, "--first_seed"))]
    own = ["--data_dir=TFDS_DIR", "--workdir=runs/accuracy", "--page=docs/accuracy.md"]
    return " ".join(["python tests/benchmarks/accuracy.py", *own, *kept])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Setting()
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    home = pathlib.Path.home() / ".cache" / "simclr_jax" / "torch"
    add = parser.add_argument
    add("--workdir", type=pathlib.Path, default=pathlib.Path("runs/accuracy"))
    add("--data_dir", help="where TFDS has, or prepares, cifar10")
    add("--torch_python", type=pathlib.Path, help="a Python with torch and lightly")
    add("--env", type=pathlib.Path, default=home, help="where to make one otherwise")
    add("--variants", default="base", help="all, base or a list of names")
    add("--list", action="store_true", help="print the names and end")
    add("--check", action="store_true", help="compare what needs no training, and end")
    add("--seeds", type=int, default=3, help="runs of each variant")
    add("--first_seed", type=int, default=0)
    add("--cores", type=_lanes, default=_lanes(cores), help="such as 0,1 or 0/1")
    add("--images", type=int, default=default.images)
    add("--test_images", type=int, default=default.test_images)
    add("--epochs", type=float, default=default.epochs)
    add("--batch_size", type=int, default=default.batch_size)
    add("--area_min", type=float, default=default.area_min)
    add("--width", type=float, default=default.width)
    add("--page", type=pathlib.Path, help="a Markdown file for the results")
    add("--json", type=pathlib.Path, help="a JSON file for the results")
    return parser


def main() -> None:
    """Runs the command line."""
    arguments = _parser().parse_args()
    if arguments.list:
        print("\n".join(variant.slug for variant in VARIANTS))
        return
    try:
        variants = chosen(arguments.variants)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    names = [field.name for field in dataclasses.fields(Setting)]
    given = {name: getattr(arguments, name) for name in names if name in arguments}
    python = arguments.torch_python or in_turn.make_environment(arguments.env)
    # Not resolved: the interpreter of an environment may be a link out of it.
    workdir = arguments.workdir.absolute()
    benchmark = Benchmark(workdir, Setting(**given), python.absolute())
    benchmark.write_images(arguments.data_dir)
    if arguments.check:
        benchmark.check(arguments.cores[0])
        return
    signal.signal(signal.SIGTERM, _stop_on_signal)
    first = arguments.first_seed
    seeds = range(first, first + arguments.seeds)
    run_all(benchmark, variants, seeds, arguments.cores)
    results, machine = benchmark.results(), _machine(arguments.cores)
    print(page.accuracies(results), page.times(results), sep="\n\n")
    if arguments.page:
        command = _command(sys.argv[1:])
        text = page.page(benchmark.setting, machine, command, results)
        page.write(arguments.page, text)
    if arguments.json:
        arguments.json.write_text(page.as_json(benchmark.setting, machine, results))


if __name__ == "__main__":
    main()
