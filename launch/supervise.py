"""Keeps a run going: looks after it, and starts it again where it can go on."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from job import Job, State
from remote import LaunchError

BAD_INPUT = 2  # exit code of a program that no restart can help
_UNREACHED_POLLS = 3
_HEALTHY_SECS = 1800
_REACH_TRIES, _REACH_SECS = 20, 15.0


class NoCapacity(LaunchError):
    """The cloud has no machines to give now; asking again later can help."""


class Machines(Protocol):
    """What the job runs on."""

    title: str

    def condition(self) -> str:
        """`ready`, `gone: ...`, or anything else, which means to wait."""

    def recreate(self) -> None:
        """Deletes what is left and asks for the same again."""


@dataclass(frozen=True)
class Rules:
    """How `watch` goes about it.

    Attributes:
      poll_secs: between two looks.
      max_restarts: so many in a row; one that ran for half an hour ends the row.
      start: starts the run on workers that have the code.
      provision: brings fresh workers to where `start` can work.
    """

    poll_secs: float
    max_restarts: int
    start: Callable[[], None]
    provision: Callable[[], None]


def watch(job: Callable[[], Job], machines: Machines, rules: Rules) -> None:
    """Watches until the run finished.

    Args:
      job: gives the run on the machines of now.
      machines: what it runs on.
      rules: what to do.

    Raises:
      LaunchError: the input is bad, or there were too many restarts.
    """
    restarts, unreached, started = 0, 0, time.monotonic()
    while True:
        states, seen = _look(job, machines)
        say(seen)
        if states and all(str(state) == "finished" for state in states.values()):
            return
        _stop_on_bad_input(job, states)
        lost = any(state.kind == "unreachable" for state in states.values())
        unreached = unreached + 1 if lost else 0
        gone = seen if seen.startswith("gone") else ""
        action = decide(states, unreached) if states else gone
        if action:
            if time.monotonic() - started > _HEALTHY_SECS:
                restarts = 0
            if restarts >= rules.max_restarts:
                raise LaunchError(
                    f"given up after {restarts} restarts in a row: {action}"
                )
            restarts += 1
            say(f"{action}: restart {restarts} of {rules.max_restarts}")
            unreached, started = 0, time.monotonic()
            try:
                act(action, job, machines, rules)
            except NoCapacity as error:
                restarts -= 1
                say(f"no capacity yet: {error}")
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
    job().stop(grace_secs=10)
    rules.start()


def decide(states: dict[int, State], unreached: int) -> str:
    """Why something must be done, or nothing.

    Args:
      states: of all workers.
      unreached: for how many looks a worker did not answer.
    """
    kinds = {state.kind for state in states.values()}
    if kinds == {"none"}:
        return "fresh workers"
    if "unreachable" in kinds:
        long = unreached >= _UNREACHED_POLLS
        return f"gone: no answer {unreached} times" if long else ""
    failed = [i for i, state in states.items() if state.failed or state.kind == "none"]
    return f"worker {failed[0]} {states[failed[0]]}" if failed else ""


def act(action: str, job: Callable[[], Job], machines: Machines, rules: Rules) -> None:
    """Does what a decision asks for."""
    if action.startswith("gone"):
        say("deleting what is left, and asking for the same again")
        machines.recreate()
        condition = machines.condition()
        if condition != "ready":
            say(condition)
            return
    if action.startswith(("gone", "fresh")):
        say("waiting for the workers to answer")
        _wait_until_reached(job())
        say("pushing, installing, starting")
        rules.provision()
        rules.start()
        return
    say("stopping everywhere, then starting everywhere")
    job().stop(grace_secs=10)
    rules.start()


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
    except LaunchError as error:  # lost just now; the next look tells how
        return {}, f"unknown; {error}"
    return states, summary(states)


def _stop_on_bad_input(job: Callable[[], Job], states: dict[int, State]) -> None:
    bad = [index for index, state in states.items() if state.code == BAD_INPUT]
    if not bad:
        return
    log = job().log_of(bad[0])
    job().stop(grace_secs=10)
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
