"""The sub-commands that `tpu.py` and `hosts.py` have in common."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

import check
import cli
import supervise
import worker
from job import GRACE_SECS, REQUIREMENTS, Job, value_of
from remote import LaunchError


@dataclass(frozen=True)
class Context:
    """What a sub-command works with.

    Attributes:
      job: the run, on the machines of now.
      machines: what it runs on.
      accelerator: key of `REQUIREMENTS`.
      reminder: what to say after a failure about what is still there.
    """

    job: Callable[[], Job]
    machines: supervise.Machines
    accelerator: str
    reminder: Callable[[], str]


Command = Callable[[Context, argparse.Namespace, list[str]], int]


def place_parser() -> argparse.ArgumentParser:
    """Where things are on a worker."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    home = "relative to the home directory"
    default = worker.Place()
    parser.add_argument(
        "--remote_dir", default=default.checkout, help=f"the code, {home} (%(default)s)"
    )
    parser.add_argument(
        "--run_dir",
        default=default.run,
        help=f"pid, exit code and log of the run, {home} (%(default)s)",
    )
    return parser


def place(args: argparse.Namespace) -> worker.Place:
    """The place that the arguments name."""
    try:
        return worker.Place(args.remote_dir, args.run_dir)
    except ValueError as error:
        raise LaunchError(f"--remote_dir, --run_dir: {error}") from error


def add_job_commands(
    commands: argparse._SubParsersAction,
    parents: list[argparse.ArgumentParser],
    watch_parents: list[argparse.ArgumentParser],
) -> dict[str, argparse.ArgumentParser]:
    """Adds the sub-commands of a job and returns them by name."""
    added = {}
    for name, (words, act) in _table().items():
        more = watch_parents if name == "watch" else []
        added[name] = cli.add_command(
            commands,
            name,
            words,
            [*parents, *more],
            act=act,
            passes=name in _PASSING,
        )
    for name in ("install", "watch"):
        _add_install_arguments(added[name])
    _add_timing_arguments(added)
    added["start"].add_argument(
        "--rehearse",
        action="store_true",
        help="run simclr_jax.rehearse instead, a few minutes, and print its verdicts",
    )
    added["logs"].add_argument(
        "--lines", type=int, default=20, help="of each worker (%(default)d)"
    )
    added["logs"].add_argument(
        "--follow", action="store_true", help="keep printing until the run ends"
    )
    return added


def run(
    parser: argparse.ArgumentParser,
    argv: list[str],
    context: Callable[[argparse.Namespace], Context],
) -> int:
    """Parses the arguments, runs a sub-command of a job, returns the exit code."""
    reminder: list[Callable[[], str]] = []

    def act(args: argparse.Namespace, passed: list[str]) -> int:
        made = context(args)
        reminder.append(made.reminder)
        return args.act(made, args, passed)

    code = cli.guarded(parser, argv, act)
    if code and reminder:
        print(reminder[0](), end="", file=sys.stderr, flush=True)
    return code


# The sub-commands that take arguments of a program, after `--`.
_PASSING = ("check", "doctor", "evaluate", "start", "restart", "watch")


def _table() -> dict[str, tuple[str, Command]]:
    """The sub-commands: what each is for, and the function that does it."""
    after = "what is after `--` goes to simclr_jax"
    return {
        "push": ("copy the code to all workers", _push),
        "install": ("make .venv on all workers", _install),
        "check": (
            "look for what keeps a run from starting; with `-- --workdir=DIR`, also "
            "that all workers see the same directory",
            _check,
        ),
        "doctor": (f"run simclr_jax.doctor on all workers; {after}.doctor", _doctor),
        "start": (f"check, then start on all workers; {after}.pretrain", _start),
        "evaluate": (
            f"run simclr_jax.evaluate on all workers; {after}.evaluate",
            _evaluate,
        ),
        "logs": ("print the ends of all logs", _logs),
        "status": ("what each worker is doing", _status),
        "stop": ("end the run on all workers", _stop),
        "restart": (
            f"stop everywhere, then start everywhere; {after}.pretrain",
            _restart,
        ),
        "watch": (
            "keep the run going until it finished: start it where it is not running, "
            f"start it again where it broke; {after}.pretrain",
            _watch,
        ),
    }


def _add_install_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prepare",
        default="",
        metavar="COMMAND",
        help="bash command that runs first on each worker, such as one that mounts "
        "the directory of the run; `watch` runs it before every start",
    )
    parser.add_argument(
        "--python",
        default="python3",
        help="creates .venv; 3.11 or newer (%(default)s)",
    )


def _add_timing_arguments(added: dict[str, argparse.ArgumentParser]) -> None:
    for name in ("start", "restart", "watch"):
        added[name].add_argument(
            "--verify_secs",
            type=float,
            default=15,
            help="all workers must hold out that long (%(default)g)",
        )
    for name in ("stop", "restart", "watch"):
        added[name].add_argument(
            "--grace_secs",
            type=int,
            default=GRACE_SECS,
            help="from SIGTERM, on which the run saves, to SIGKILL (%(default)d)",
        )
    added["watch"].add_argument(
        "--poll_secs", type=float, default=60, help="between two looks (%(default)g)"
    )
    added["watch"].add_argument(
        "--max_restarts",
        type=int,
        default=5,
        help="give up after so many in a row, without half an hour of running between "
        "them (%(default)d)",
    )


def _push(context: Context, args: argparse.Namespace, passed: list[str]) -> int:
    context.job().push()
    return 0


def _install(context: Context, args: argparse.Namespace, passed: list[str]) -> int:
    assert context.accelerator in REQUIREMENTS
    context.job().prepare(args.prepare)
    context.job().install(context.accelerator, python=args.python)
    return 0


def _check(context: Context, args: argparse.Namespace, passed: list[str]) -> int:
    check.run(context.job().fleet, value_of("workdir", passed))
    return 0


def _doctor(context: Context, args: argparse.Namespace, passed: list[str]) -> int:
    context.job().doctor(passed)
    return 0


def _start(context: Context, args: argparse.Namespace, passed: list[str]) -> int:
    _need_program(passed)
    if args.rehearse:
        context.job().rehearse(passed)
    else:
        context.job().start(passed, verify_secs=args.verify_secs)
    return 0


def _evaluate(context: Context, args: argparse.Namespace, passed: list[str]) -> int:
    _need_program(passed, module="simclr_jax.evaluate")
    context.job().evaluate(passed)
    return 0


def _logs(context: Context, args: argparse.Namespace, passed: list[str]) -> int:
    context.job().logs(lines=args.lines, follow=args.follow)
    return 0


def _status(context: Context, args: argparse.Namespace, passed: list[str]) -> int:
    condition = context.machines.condition()
    print(f"{context.machines.title}: {condition}")
    if condition != "ready" and not args.dry_run:
        return cli.FAILED
    return 0 if context.job().status() else cli.FAILED


def _stop(context: Context, args: argparse.Namespace, passed: list[str]) -> int:
    context.job().stop(grace_secs=args.grace_secs)
    return 0


def _restart(context: Context, args: argparse.Namespace, passed: list[str]) -> int:
    _need_program(passed)
    context.job().restart(
        passed, grace_secs=args.grace_secs, verify_secs=args.verify_secs
    )
    return 0


def _watch(context: Context, args: argparse.Namespace, passed: list[str]) -> int:
    _need_program(passed)

    def provision() -> None:
        context.job().push()
        _install(context, args, passed)

    rules = supervise.Rules(
        poll_secs=args.poll_secs,
        max_restarts=args.max_restarts,
        grace_secs=args.grace_secs,
        prepare=lambda: context.job().prepare(args.prepare),
        provision=provision,
        start=lambda: context.job().start(passed, verify_secs=args.verify_secs),
    )
    act = supervise.rehearse if args.dry_run else supervise.watch
    act(context.job, context.machines, rules)
    if not args.dry_run:
        print(context.reminder(), end="")
    return 0


def _need_program(passed: list[str], module: str = "simclr_jax.pretrain") -> None:
    workdir = value_of("workdir", passed)
    if not workdir:
        raise LaunchError(
            f"--workdir: must be given after `--`, with the other arguments of {module}"
        )
    check.is_store(workdir)  # raises for what is no store
