"""Measures everything that an accelerator can show, within a budget of time.

    python tests/benchmarks/accelerator.py --budget_secs=1500 --cifar=cifar10.npz

The most telling parts come first. Each runs in a process of its own and writes its rows
as soon as they are there, so a part that fails or is stopped does not harm the others,
and a second call with the same --workdir goes on with what is missing. Results are in
WORKDIR/results/*.json; --page writes them as Markdown. Neither TensorFlow nor Numba is
needed. --toy runs every part in sizes for one CPU core.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
import traceback
from collections.abc import Callable

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Parts in order, with the seconds below which none is started. The last one takes all
# that is left.
LEAST_SECS = {
    "machine": 10,
    "equivalence": 30,
    "steps": 60,
    "nt_xent": 30,
    "resume": 60,
    "precision": 60,
    "placements": 60,
    "cifar10": 120,
}


def part_of(name: str) -> Callable[..., None]:
    """The function of a part."""
    from accelerator_parts import losses, machine, runs, steps

    return {
        "machine": machine.describe,
        "equivalence": machine.equivalence,
        "steps": steps.steps,
        "nt_xent": losses.nt_xent,
        "resume": runs.resume,
        "precision": runs.precision,
        "placements": steps.placements,
        "cifar10": runs.cifar10,
    }[name]


def run_part(arguments: argparse.Namespace) -> int:
    """A part, in this process."""
    import logging

    from accelerator_parts.record import Record, Settings

    logger = logging.getLogger("simclr_jax")
    logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False
    settings = Settings(
        arguments.workdir,
        arguments.toy,
        arguments.cifar,
        time.monotonic() + arguments.budget_secs,
    )
    record = Record(_results_of(arguments, arguments.run_part))
    try:
        part_of(arguments.run_part)(record, settings)
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        record.save(error=f"{type(error).__name__}: {lines[0][:300]}")
        return 1
    record.save(finished=True, error=None)
    return 0


def _results_of(arguments: argparse.Namespace, part: str) -> pathlib.Path:
    return arguments.workdir / "results" / f"{part}.json"


def read_results(arguments: argparse.Namespace) -> dict[str, dict]:
    """The records of all parts that were begun."""
    paths = {part: _results_of(arguments, part) for part in LEAST_SECS}
    return {
        part: json.loads(path.read_text())
        for part, path in paths.items()
        if path.exists()
    }


def run_all(arguments: argparse.Namespace) -> None:
    """Runs the parts that are not finished, while the budget lasts."""
    from accelerator_parts.record import Record

    deadline = time.monotonic() + arguments.budget_secs
    for part, least_secs in LEAST_SECS.items():
        path = _results_of(arguments, part)
        path.parent.mkdir(parents=True, exist_ok=True)
        record = Record(path)
        if record.content["finished"]:
            print(f"{part}: finished before", flush=True)
            continue
        left = deadline - time.monotonic()
        if left < (0 if arguments.toy else least_secs):
            print(f"{part}: no time left", flush=True)
            continue
        print(f"{part}: {left:.0f} s left", flush=True)
        start = time.monotonic()
        command = [
            *(sys.executable, __file__, f"--run_part={part}"),
            *(f"--budget_secs={left:.0f}", f"--workdir={arguments.workdir}"),
            *(["--toy"] if arguments.toy else []),
            *([f"--cifar={arguments.cifar}"] if arguments.cifar else []),
        ]
        process = subprocess.Popen(command, env=_environment(arguments))
        try:
            code = process.wait(timeout=left)
            said = f"failed with exit code {code}" if code else "done"
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            said = "stopped: the time was up"
        record = Record(path)
        if not record.content["finished"] and not record.content["error"]:
            record.save(error=said)
        record.save(secs=round(time.monotonic() - start, 1))
        print(f"{part}: {said} after {record.content['secs']} s", flush=True)
        write_page(arguments)


def _environment(arguments: argparse.Namespace) -> dict[str, str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{HERE}"}
    # A part and the commands that it starts compile each program once.
    cache = str(arguments.workdir / "compilation_cache")
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
    # Parts start other processes that need the device's memory too.
    environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if arguments.toy:
        environment.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    if arguments.device:
        names = {"gpu": "cuda,cpu", "tpu": "tpu,cpu"}
        environment["JAX_PLATFORMS"] = names.get(arguments.device, arguments.device)
    return environment


def write_page(arguments: argparse.Namespace) -> None:
    """Writes the page, and the results beside it if it is one of docs/."""
    from accelerator_parts.page import page

    results = read_results(arguments)
    target = arguments.page or arguments.workdir / "accelerators.md"
    target.write_text(page(results, toy=arguments.toy))
    if arguments.page:
        text = json.dumps(results, indent=1) + "\n"
        arguments.page.with_suffix(".json").write_text(text)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget_secs", type=float, default=1500)
    parser.add_argument(
        "--workdir",
        type=lambda path: pathlib.Path(path).resolve(),
        default=pathlib.Path("runs/accelerator").resolve(),
    )
    parser.add_argument(
        "--cifar",
        type=lambda path: pathlib.Path(path).resolve(),
        help="by cifar_npz.py",
    )
    parser.add_argument("--device", choices=("cpu", "gpu", "tpu"), help="JAX's choice")
    parser.add_argument("--toy", action="store_true", help="sizes for one CPU core")
    parser.add_argument("--page", type=pathlib.Path, help="a Markdown file to write")
    parser.add_argument("--run_part", choices=LEAST_SECS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run_part:
        sys.exit(run_part(arguments))
    run_all(arguments)
    write_page(arguments)
    unfinished = [
        part
        for part in LEAST_SECS
        if not read_results(arguments).get(part, {}).get("finished")
    ]
    if unfinished:
        print(f"Not finished: {', '.join(unfinished)}; the same command goes on.")
        sys.exit(1)
    print(f"Finished; results are in {arguments.workdir}.")


if __name__ == "__main__":
    main()
