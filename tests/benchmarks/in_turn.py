"""Several programs that take turns on one core or device; an environment for peers."""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from typing import Any

PEERS = ("torch", "torchvision", "lightly")
CPU_ONLY = {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}


class Contender:
    """A process of a benchmark that does a step when told to."""

    def __init__(
        self,
        python: pathlib.Path,
        script: str,
        what: str,
        core: int | None,
        environment: dict[str, str] = CPU_ONLY,
    ) -> None:
        """Starts `python SCRIPT --serve=WHAT`, which has to call `serve`.

        Args:
          python: the interpreter.
          script: file.
          what: says what is to be measured.
          core: that the process is pinned to; None for all.
          environment: variables in addition to this process's.
        """
        self._process = subprocess.Popen(
            [str(python), script, f"--serve={what}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
            preexec_fn=None
            if core is None
            else lambda: os.sched_setaffinity(0, {core}),
        )
        self.about = self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("A contender ended early; its error is above.")
        return json.loads(line)

    def step(self) -> Any:
        """What the step replied."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def serve(about: Any, step: Callable[[], Any]) -> None:
    """A contender's side: says what it is, then a step for every line read."""
    print(json.dumps(about), flush=True)
    for _ in sys.stdin:
        print(json.dumps(step()), flush=True)


def make_environment(
    folder: pathlib.Path, more: Sequence[str] = (), packages: Sequence[str] = PEERS
) -> pathlib.Path:
    """A Python with `packages` in `folder`, made if it is not there yet.

    Of the packages `more`, one that cannot be installed is named and done without.
    """
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if not ready.exists():
        size = " (about 6 GB)" if "torch" in packages else ""
        print(f"Installing {', '.join(packages)} in {folder}{size}")
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
        ready.touch()
    for package in more:
        ready = folder / f"ready_{package}"
        if not ready.exists():
            print(f"Installing {package} in {folder}")
            command = [python, "-m", "pip", "install", "-q", package]
            if subprocess.run(command).returncode == 0:
                ready.touch()
            else:
                print(f"{package} could not be installed; its error is above.")
    return python


def parser(description: str) -> argparse.ArgumentParser:
    """The arguments that all benchmarks against PyTorch have."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument(
        "--torch_python",
        "--peers_python",
        type=pathlib.Path,
        help="a Python with the peers: torch, torchvision, lightly, ...",
    )
    result.add_argument(
        "--env",
        type=pathlib.Path,
        default=pathlib.Path.home() / ".cache" / "simclr_jax" / "torch",
        help="where to make one otherwise",
    )
    result.add_argument("--rounds", type=int, default=5)
    result.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    result.add_argument("--serve", help=argparse.SUPPRESS)
    return result
