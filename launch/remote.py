"""Local programs, and the texts of `worker` on all workers at once."""

import itertools
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import worker as texts

# Each connection is a process on this machine; gcloud's are heavy.
_MAX_CONNECTIONS = 32
_TIMED_OUT = 124
_REACHED = "@reached yes\n"  # the first line of every text's answer

Settings = Mapping[str, texts.Setting | Callable[[int], texts.Setting]]
NOTHING: Settings = {}


class LaunchError(Exception):
    """What went wrong, in words for the user."""


@dataclass(frozen=True)
class Result:
    """The result of a program.

    A bash text answers in lines `@KEY VALUE`; what other programs print on the way,
    such as a greeting of the host, is told apart by that.
    """

    code: int
    stdout: str = ""
    stderr: str = ""

    def values(self, key: str) -> list[str]:
        """The values of all lines `@KEY VALUE`."""
        mark = f"@{key} "
        lines = self.stdout.splitlines()
        return [line.removeprefix(mark) for line in lines if line.startswith(mark)]

    def value(self, key: str) -> str:
        """The value of the first line `@KEY VALUE`; empty without one."""
        return next(iter(self.values(key)), "")

    @property
    def reached(self) -> bool:
        """Whether the worker answered at all."""
        return bool(self.values("reached"))

    @property
    def answer(self) -> str:
        """What a text printed, without the host's greeting."""
        _, mark, text = self.stdout.partition(_REACHED)
        return text if mark else self.stdout

    def said(self, lines: int = 20) -> str:
        """The last lines of output and errors, without the `@` lines."""
        everything = (self.answer + "\n" + self.stderr).splitlines()
        kept = [line for line in everything if line.strip() and line[0] != "@"]
        return "\n".join(kept[-lines:])

    def why(self, lines: int = 20) -> str:
        """Why it failed, as far as it said so."""
        return self.said(lines) or f"exit code {self.code}"


class Local:
    """Runs programs on this machine; in a dry run prints them instead."""

    def __init__(self, *, dry_run: bool = False):
        self.dry_run = dry_run

    def run(
        self, argv: Sequence[str], *, timeout_secs: float = 120, shown: str = ""
    ) -> Result:
        """Runs a program to its end.

        Args:
          argv: the program and its arguments.
          timeout_secs: after that the program is killed.
          shown: what a dry run prints in place of the command.

        Returns:
          What it left; code 124 for one that took too long, 0 in a dry run.

        Raises:
          LaunchError: the program is not installed.
        """
        if self.dry_run:
            print(f"would run: {shown or shlex.join(argv)}")
            return Result(0)
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=timeout_secs,
            )
        except FileNotFoundError as error:
            raise LaunchError(f"{argv[0]}: not installed, or not on PATH") from error
        except subprocess.TimeoutExpired:
            return Result(_TIMED_OUT, stderr=f"no answer within {timeout_secs:g} s")
        return Result(done.returncode, done.stdout, done.stderr)


class Transport(Protocol):
    """A transport: the local commands that reach the workers."""

    @property
    def names(self) -> Sequence[str]:
        """The workers, as the user sees them."""

    def shell(self, worker: int, script: str) -> list[str]:
        """The command that runs a bash text on a worker, without a terminal."""

    def copy(self, worker: int, source: str, target: str) -> list[str]:
        """The command that copies a file into a worker's home directory."""


def as_bash(script: str) -> str:
    """A bash text as one command of any login shell."""
    return shlex.join(["bash", "-c", script])


class Fleet:
    """All workers of a job, worked on at the same time.

    Args:
      local: runs the commands that lead to them.
      transport: of the commands.
      place: where things are on each worker.
    """

    def __init__(self, local: Local, transport: Transport, place: texts.Place):
        self.local = local
        self.transport = transport
        self.place = place

    @property
    def workers(self) -> range:
        """The indices of the workers."""
        return range(len(self.transport.names))

    def name(self, worker: int) -> str:
        """A worker as the user sees it."""
        return self.transport.names[worker]

    def run(
        self,
        body: str,
        settings: Settings = NOTHING,
        *,
        workers: Sequence[int] | None = None,
        timeout_secs: float = 120,
    ) -> dict[int, Result]:
        """Runs a text of `worker` on workers, all at once.

        Args:
          body: the text.
          settings: its variables; functions are asked for each worker's value.
          workers: by default all.
          timeout_secs: after that, a worker counts as not reached.
        """

        def one(worker: int) -> Result:
            text = self.script(body, worker, settings)
            lines = [shlex.join(self.transport.shell(worker, "SCRIPT"))]
            lines += ["  where SCRIPT is", *(f"  | {x}" for x in text.splitlines())]
            return self.local.run(
                self.transport.shell(worker, text),
                timeout_secs=timeout_secs,
                shown="\n".join(lines),
            )

        return self._at_once(one, workers)

    def script(self, body: str, worker: int, settings: Settings = NOTHING) -> str:
        """What runs on one worker, in full."""
        own = {k: v(worker) if callable(v) else v for k, v in settings.items()}
        return texts.script(body, self.place, own)

    def copy(
        self, source: str, target: Callable[[int], str], *, timeout_secs: float = 600
    ) -> dict[int, Result]:
        """Copies a file to all workers, to a path relative to their home."""
        return self._at_once(
            lambda worker: self.local.run(
                self.transport.copy(worker, source, target(worker)),
                timeout_secs=timeout_secs,
            ),
            None,
        )

    def follow(self, body: str, settings: Settings = NOTHING) -> dict[int, int]:
        """Prints what a text prints on all workers, as it comes.

        Returns:
          The exit code of each worker's connection, which is that of the text.
        """
        if self.local.dry_run:
            self.run(body, settings)
            return {}
        processes = [
            subprocess.Popen(
                self.transport.shell(worker, self.script(body, worker, settings)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
            )
            for worker in self.workers
        ]
        threads = [
            threading.Thread(target=self._relay, args=pair, daemon=True)
            for pair in enumerate(processes)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
            return {index: process.wait() for index, process in enumerate(processes)}
        finally:
            for process in processes:
                process.terminate()
                process.wait()

    def show(self, worker: int, text: str) -> None:
        """Prints lines with the worker's name in front."""
        for line in text.splitlines():
            sys.stdout.write(f"[{self.name(worker)}] {line}\n")
        sys.stdout.flush()

    def need_all(self, results: dict[int, Result], problem: str) -> None:
        """Raises LaunchError, with a paragraph for each worker that failed."""
        failed = {i: result for i, result in results.items() if result.code}
        if failed:
            raise LaunchError(self.report(failed, problem))

    def report(self, results: dict[int, Result], problem: str) -> str:
        """A paragraph for each worker that failed or was not reached."""
        return "\n".join(
            f"{self.name(index)}: {problem}: {result.why()}"
            for index, result in results.items()
            if result.code or not result.reached
        )

    def count(self) -> str:
        """How many workers there are, in words."""
        number = len(self.workers)
        return "1 worker" if number == 1 else f"all {number} workers"

    def _relay(self, worker: int, process: subprocess.Popen) -> None:
        assert process.stdout is not None
        greeting = []
        with process.stdout:
            for line in process.stdout:
                greeting.append(line)
                if line == _REACHED:
                    greeting.clear()
                    break
            for line in itertools.chain(greeting, process.stdout):
                self.show(worker, line)

    def _at_once(
        self, task: Callable[[int], Result], workers: Sequence[int] | None
    ) -> dict[int, Result]:
        chosen = list(self.workers if workers is None else workers)
        # One after the other where commands are only printed.
        threads = 1 if self.local.dry_run else min(len(chosen), _MAX_CONNECTIONS)
        with ThreadPoolExecutor(max(threads, 1)) as pool:
            return dict(zip(chosen, pool.map(task, chosen), strict=True))
