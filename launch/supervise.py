"""Supervises a run: polls it, and restarts it where it can resume."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from job import Job, State
from remote import LaunchError

BAD_INPUT = 2  # exit code of a program that no restart can help
_SILENT_SECS = 600  # longer than a reboot, or than ssh is in trouble now and then
_HEALTHY_SECS = 1800
_REACH_TRIES, _REACH_SECS = 40, 15.0


class NoCapacity(LaunchError):
    """There are no machines to be had now; looking again later can help."""


class Machines(Protocol):
    """What the job runs on."""

    title: str

    def condition(self) -> str:
        """`ready`, `gone: ...`, or anything else, which means to wait."""

    def recreate(self) -> None:
        """Deletes what is left and asks for the same again."""


@dataclass(frozen=True)
class Rules:
    """Settings of `watch`.

    Attributes:
      poll_secs: between two looks.
      max_restarts: so many in a row; one that ran for half an hour ends the row.
      grace_secs: from SIGTERM to SIGKILL.
      prepare: what workers need again after they rebooted.
      provision: brings fresh workers to where `start` can work; prepares them, too.
      start: starts the run on workers that have the code.
    """

    poll_secs: float
    max_restarts: int
    grace_secs: int
    prepare: Callable[[], None]
    provision: Callable[[], None]
    start: Callable[[], None]


class _Row:
    """Restarts in a row, without half an hour of running between them."""

    def __init__(self, limit: int):
        self._limit = limit
        self._count = 0
        self._started: float | None = None

    def add(self, action: str) -> None:
        """Counts a restart, for which `action` is the reason.

        Raises:
          LaunchError: there were too many.
        """
        started = self._started
        if started is not None and time.monotonic() - started > _HEALTHY_SECS:
            self._count = 0
        if self._count >= self._limit:
            raise LaunchError(
                f"given up after {self._count} restarts in a row: {action}"
            )
        self._count += 1
        self._started = None
        say(f"{action}: restart {self._count} of {self._limit}")

    def take_back(self) -> None:
        """Does not count the last one."""
        self._count -= 1

    def started(self) -> None:
        """Notes that the last one succeeded: from now on the program runs."""
        self._started = time.monotonic()


class _Silence:
    """For how long a worker has not answered.

    Where no worker ever answered it is not counted: they may still be booting, or run
    the program all the same behind a firewall.
    """

    def __init__(self, *, answered: bool = False):
        self._answered = answered
        self._since: float | None = None

    def secs(self, states: dict[int, State]) -> float:
        """The seconds, up to a look at the workers that saw `states`."""
        kinds = {state.kind for state in states.values()}
        self._answered = self._answered or bool(kinds - {"unreachable"})
        if "unreachable" not in kinds or not self._answered:
            self._since = None
            return 0.0
        if self._since is None:
            self._since = time.monotonic()
        return time.monotonic() - self._since


def watch(job: Callable[[], Job], machines: Machines, rules: Rules) -> None:
    """Watches until the run finished.

    Args:
      job: gives the run on the machines of now.
      machines: what it runs on.
      rules: what to do.

    Raises:
      LaunchError: the input is bad, or there were too many restarts.
    """
    row, silence = _Row(rules.max_restarts), _Silence()
    while True:
        states, seen = _look(job, machines)
        say(seen)
        if states and all(str(state) == "finished" for state in states.values()):
            return
        _stop_on_bad_input(job, states, rules)
        silent = silence.secs(states)
        gone = seen if seen.startswith("gone") else ""
        action = decide(states, silent) if states else gone
        if action:
            row.add(action)
            # They answered, or are created here and run nothing yet.
            silence = _Silence(answered=True)
            try:
                if act(action, job, machines, rules):
                    row.started()
            except NoCapacity as error:
                row.take_back()
                say(f"no machines yet: {error}")
            except LaunchError as error:
                say(f"did not succeed: {error}")
        time.sleep(rules.poll_secs)


def rehearse(job: Callable[[], Job], machines: Machines, rules: Rules) -> None:
    """Goes through all that `watch` can do, for a dry run."""
    print(f"Every {rules.poll_secs:g} s:")
    machines.condition()
    job().states()
    print("When the machines are gone:")
    try:
        machines.recreate()
    except LaunchError as error:
        print(f"nothing: {error}")
    else:
        rules.provision()
        rules.start()
    print("When a worker died:")
    job().stop(grace_secs=rules.grace_secs)
    rules.prepare()
    rules.start()


def decide(states: dict[int, State], silent_secs: float) -> str:
    """Why something must be done, or nothing.

    Args:
      states: of all workers.
      silent_secs: for how long a worker has not answered.
    """
    kinds = {state.kind for state in states.values()}
    if kinds == {"none"}:
        return "fresh workers"
    if "unreachable" in kinds:
        long = silent_secs >= _SILENT_SECS
        return f"gone: no answer for {silent_secs:.0f} s" if long else ""
    failed = [i for i, state in states.items() if state.failed or state.kind == "none"]
    return f"worker {failed[0]} {states[failed[0]]}" if failed else ""


def act(action: str, job: Callable[[], Job], machines: Machines, rules: Rules) -> bool:
    """Does what a decision asks for; whether the program runs now."""
    if action.startswith("gone"):
        say("deleting what is left, and asking for the same again")
        machines.recreate()
        condition = machines.condition()
        if condition != "ready":
            say(condition)
            return False
    if action.startswith(("gone", "fresh")):
        say("waiting for the workers to answer")
        _wait_until_reached(job())
        say("pushing, installing, starting")
        rules.provision()
        rules.start()
        return True
    say("stopping everywhere, then starting everywhere")
    job().stop(grace_secs=rules.grace_secs)
    rules.prepare()
    rules.start()
    return True


def summary(states: dict[int, State]) -> str:
    """All workers in one line, and how far the first one is."""
    words = [str(state) for state in states.values()]
    counts = [f"{words.count(word)} {word}" for word in dict.fromkeys(words)]
    return f"{', '.join(counts)} | {states[0].last}"


def say(text: str) -> None:
    """Prints a line with the time in front."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _look(job: Callable[[], Job], machines: Machines) -> tuple[dict[int, State], str]:
    """The workers' states, none while the machines are not ready; and words for it."""
    condition = machines.condition()
    if condition != "ready":
        return {}, condition
    try:
        states = job().states()
    except LaunchError as error:  # lost just now; the next look shows how
        return {}, f"unknown; {error}"
    return states, summary(states)


def _stop_on_bad_input(
    job: Callable[[], Job], states: dict[int, State], rules: Rules
) -> None:
    bad = [index for index, state in states.items() if state.code == BAD_INPUT]
    if not bad:
        return
    log = job().log_of(bad[0])
    job().stop(grace_secs=rules.grace_secs)
    raise LaunchError(
        f"worker {bad[0]} ended with exit code {BAD_INPUT}, which is bad input: not "
        f"started again. The end of its log:\n{log}"
    )


def _wait_until_reached(job: Job) -> None:
    for attempt in range(_REACH_TRIES):
        states = job.states()
        if all(state.kind != "unreachable" for state in states.values()):
            return
        if attempt + 1 < _REACH_TRIES:
            time.sleep(_REACH_SECS)
    raise LaunchError("not all workers answer")
