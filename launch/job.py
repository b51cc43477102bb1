"""One pretraining job on all workers: from pushing the code to stopping the run.

The same for every transport; `tpu.py` and `hosts.py` are the commands.
"""

import pathlib
import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import check
import checkout
import worker
from remote import Fleet, LaunchError, Settings

REQUIREMENTS = {"tpu": "jax[tpu]", "cuda": "jax[cuda13]", "cpu": ""}
GRACE_SECS = 30  # pretrain saves a checkpoint on SIGTERM
_STOPPED = 143  # exit code of pretrain after SIGTERM, once it saved
_INSTALL_SECS = 3600
_POLL_SECS = 3.0


@dataclass(frozen=True)
class State:
    """What a worker is doing.

    Attributes:
      kind: `running`; `exited`, with a `code`; `died`, killed before its exit code
        could be noted; `none`, never started; or `unreachable`.
      code: the program's exit code.
      last: the last line of the log, or why the worker was not reached.
    """

    kind: str
    code: int | None = None
    last: str = ""

    @property
    def failed(self) -> bool:
        """Whether the program ended otherwise than by finishing."""
        return self.kind == "died" or (self.kind == "exited" and self.code != 0)

    def __str__(self) -> str:
        if self.kind != "exited":
            return {"none": "not started"}.get(self.kind, self.kind)
        if self.code == 0:
            return "finished"
        word = "stopped" if self.code == _STOPPED else "failed"
        return f"{word} (exit code {self.code})"


class Job:
    """The run on a fleet.

    Args:
      fleet: the workers.
      start_flags: the flags by which worker i finds the others.
    """

    def __init__(
        self,
        fleet: Fleet,
        start_flags: Callable[[int], list[str]] = lambda worker: [],
    ):
        self.fleet = fleet
        self.start_flags = start_flags

    def push(self) -> None:
        """Copies the code to all workers and unpacks it there."""
        name = f"simclr_jax_push_{secrets.token_hex(4)}"
        with tempfile.TemporaryDirectory() as folder:
            archive = pathlib.Path(folder) / f"{name}.tar.gz"
            if self.fleet.local.dry_run:
                print("would run: git ls-files -z")
                print(f"would write: {archive}, with the files that git tracks")
            else:
                checkout.pack(archive)
            copied = self.fleet.copy(str(archive), lambda i: f"{name}.{i}.tar.gz")
            self.fleet.need_all(copied, "the code could not be copied")
        unpacked = self.fleet.run(
            worker.PUSH, {"archive": lambda i: f"{name}.{i}.tar.gz"}
        )
        self.fleet.need_all(unpacked, "the code could not be unpacked")
        if not self.fleet.local.dry_run:
            print(f"Code {checkout.digest()} is on {self.fleet.count()}.")

    def prepare(self, command: str) -> None:
        """Runs a bash command on all workers; an empty one is left out."""
        if command:
            results = self.fleet.run(
                worker.PREPARE, {"prepare": command}, timeout_secs=_INSTALL_SECS
            )
            self.fleet.need_all(results, "not prepared")

    def install(self, accelerator: str, *, python: str) -> None:
        """Creates the environment on all workers.

        Args:
          accelerator: key of `REQUIREMENTS`.
          python: the interpreter of .venv.
        """
        results = self.fleet.run(
            worker.INSTALL,
            {"python": python, "requirement": REQUIREMENTS[accelerator]},
            timeout_secs=_INSTALL_SECS,
        )
        self.fleet.need_all(results, "the installation failed")
        if not self.fleet.local.dry_run:
            print(f"Installed on {self.fleet.count()}.")

    def start(self, arguments: list[str], *, verify_secs: float) -> None:
        """Starts the program on all workers, after a check; all run, or none.

        Args:
          arguments: of `simclr_jax.pretrain`; with `--workdir`.
          verify_secs: for how long all must hold out.
        """
        check.run(self.fleet, value_of("workdir", arguments))
        results = self.fleet.run(
            worker.START,
            {
                "start_id": secrets.token_hex(8),
                "arguments": lambda i: [*arguments, *self.start_flags(i)],
            },
        )
        if self.fleet.local.dry_run:
            self.states()
            return
        if not all(result.value("started") for result in results.values()):
            # One that did not answer may have started all the same.
            ours = [i for i, result in results.items() if not result.value("refused")]
            self._give_up(ours, self.fleet.report(results, "did not start"))
        self._verify(verify_secs)
        print(f"Started on {self.fleet.count()}.")

    def logs(self, *, lines: int, follow: bool) -> None:
        """Prints the ends of all logs; with `follow`, until the run ends."""
        settings: Settings = {"lines": lines, "follow": "yes" if follow else "no"}
        if follow:
            self.fleet.follow(worker.LOGS, settings)
            return
        for index, result in self.fleet.run(worker.LOGS, settings).items():
            self.fleet.show(index, result.answer if result.code == 0 else result.said())

    def states(self) -> dict[int, State]:
        """What each worker is doing."""
        states = {}
        for index, result in self.fleet.run(worker.STATUS).items():
            kind = result.value("state")
            code = result.value("exit_code")
            if not kind:
                states[index] = State("unreachable", last=result.why(1))
            else:
                number = int(code) if code.isdigit() else None
                states[index] = State(kind, number, result.value("last"))
        return states

    def status(self) -> bool:
        """Prints what each worker is doing; whether all run or finished."""
        states = self.states()
        if self.fleet.local.dry_run:
            return True
        for index, state in states.items():
            print(f"{self.fleet.name(index)}: {state} | {state.last}")
        return all(
            state.kind == "running" or (state.kind == "exited" and not state.failed)
            for state in states.values()
        )

    def stop(self, *, grace_secs: int, workers: Sequence[int] | None = None) -> None:
        """Ends the run, and programs left over from others, on all workers.

        Args:
          grace_secs: from SIGTERM to SIGKILL.
          workers: only these.
        """
        results = self.fleet.run(
            worker.STOP,
            {"grace": grace_secs},
            workers=workers,
            timeout_secs=grace_secs + 60,
        )
        if self.fleet.local.dry_run:
            return
        words = {
            "nothing": "nothing ran",
            "TERM": "stopped",
            "KILL": f"killed, as it did not end within {grace_secs} s",
        }
        for index, result in results.items():
            how = words.get(result.value("stopped"), "NOT STOPPED")
            print(f"{self.fleet.name(index)}: {how}")
        unfinished = {i: r for i, r in results.items() if not r.value("stopped")}
        if unfinished:
            report = self.fleet.report(
                unfinished, "could not be stopped and may still run"
            )
            raise LaunchError(report)

    def restart(
        self, arguments: list[str], *, grace_secs: int, verify_secs: float
    ) -> None:
        """Stops everywhere, then starts everywhere."""
        self.stop(grace_secs=grace_secs)
        self.start(arguments, verify_secs=verify_secs)

    def rehearse(self, arguments: list[str]) -> None:
        """Runs `simclr_jax.rehearse` on all workers, after a check.

        Args:
          arguments: of `simclr_jax.pretrain`; with `--workdir`.

        Raises:
          LaunchError: a check failed, or the rehearsal did.
        """
        self._follow("simclr_jax.rehearse", arguments, what="the rehearsal")

    def evaluate(self, arguments: list[str]) -> None:
        """Runs `simclr_jax.evaluate` on all workers, after a check.

        Args:
          arguments: of `simclr_jax.evaluate`; with `--workdir`.

        Raises:
          LaunchError: a check failed, or the evaluation did.
        """
        self._follow("simclr_jax.evaluate", arguments, what="the evaluation")

    def _follow(self, module: str, arguments: list[str], *, what: str) -> None:
        check.run(self.fleet, value_of("workdir", arguments))
        codes = self.fleet.follow(worker.ATTACHED, self._attached(module, arguments))
        bad = [self.fleet.name(i) for i, code in codes.items() if code]
        if bad:
            raise LaunchError(f"{what} failed on {', '.join(bad)}")

    def _attached(self, module: str, arguments: list[str]) -> Settings:
        return {
            "module": module,
            "arguments": lambda i: [*arguments, *self.start_flags(i)],
        }

    def doctor(self, arguments: list[str]) -> None:
        """Runs `simclr_jax.doctor` on all workers together and prints its words."""
        results = self.fleet.run(
            worker.ATTACHED,
            self._attached("simclr_jax.doctor", arguments),
            timeout_secs=_INSTALL_SECS,
        )
        for index, result in results.items():
            self.fleet.show(index, result.answer + result.stderr)
        bad = [self.fleet.name(i) for i, result in results.items() if result.code]
        if bad:
            raise LaunchError(f"doctor found problems on {', '.join(bad)}")

    def log_of(self, index: int, lines: int = 20) -> str:
        """The end of one worker's log."""
        results = self.fleet.run(
            worker.LOGS, {"lines": lines, "follow": "no"}, workers=[index]
        )
        return results[index].said(lines)

    def _verify(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            states = self.states()
            lost = [i for i, s in states.items() if s.failed or s.kind == "none"]
            late = time.monotonic() >= deadline
            if late:
                lost += [i for i, s in states.items() if s.kind == "unreachable"]
            if lost:
                first = lost[0]
                report = [f"{self.fleet.name(i)}: {states[i]}" for i in lost]
                report.append(f"The end of the log of {self.fleet.name(first)}:")
                report.append(self.log_of(first))
                others = [i for i in states if i not in lost or not states[i].failed]
                self._give_up(others, "\n".join(report))
            if late or all(state.kind == "exited" for state in states.values()):
                return
            time.sleep(min(_POLL_SECS, max(deadline - time.monotonic(), 0.05)))

    def _give_up(self, others: list[int], report: str) -> None:
        """Stops the workers that did start, and says so."""
        try:
            self.stop(grace_secs=GRACE_SECS, workers=others)
        except LaunchError as error:
            raise LaunchError(f"{report}\n{error}") from error
        names = ", ".join(self.fleet.name(i) for i in others) or "none had started"
        raise LaunchError(f"{report}\nThe others were stopped: {names}.")


def value_of(name: str, arguments: list[str]) -> str | None:
    """The value of the flag `--name` among the arguments of pretrain.

    Returns:
      None where the flag is not given; empty where it has no value.
    """
    following = [*arguments[1:], ""]
    for argument, after in zip(arguments, following, strict=False):
        flag, equals, value = argument.lstrip("-").partition("=")
        if flag == name and argument.startswith("-"):
            return value if equals else after
    return None
