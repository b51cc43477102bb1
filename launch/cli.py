"""What all launchers' command lines share: parsing, dry runs, errors in words."""

import argparse
import os
import sys
from collections.abc import Callable

from remote import LaunchError, Local

FAILED, INTERRUPTED = 1, 130


def word(text: str) -> str:
    """A value for another program's command line, where it must not be an option."""
    if not text or text.startswith("-") or not text.isprintable():
        raise argparse.ArgumentTypeError(
            f"{text!r} must not be empty, begin with '-' or hold control characters"
        )
    return text


def word_or_nothing(text: str) -> str:
    """As `word`, or empty."""
    return word(text) if text else text


def split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Parts the arguments at `--`: ours, and those of the program."""
    if "--" not in argv:
        return argv, []
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]


def base_parser() -> argparse.ArgumentParser:
    """The arguments that every sub-command has."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="print every command and file, and do nothing",
    )
    return parser


def local(args: argparse.Namespace) -> Local:
    """Runs programs here, or prints them in a dry run."""
    return Local(dry_run=args.dry_run)


def add_command(
    commands: argparse._SubParsersAction,
    name: str,
    words: str,
    parents: list[argparse.ArgumentParser],
    **defaults: object,
) -> argparse.ArgumentParser:
    """Adds a sub-command."""
    parser = commands.add_parser(
        name, help=words, description=words, parents=parents, allow_abbrev=False
    )
    parser.set_defaults(**defaults)
    return parser


def guarded(
    parser: argparse.ArgumentParser,
    argv: list[str],
    act: Callable[[argparse.Namespace, list[str]], int | None] | None = None,
) -> int:
    """Parses the arguments, runs a sub-command, returns the exit code.

    Args:
      parser: the command line.
      argv: the arguments.
      act: runs it; by default the sub-command's own `act`.
    """
    own, passed = split(argv)
    args = parser.parse_args(own)
    if passed and not args.passes:
        parser.error(f"{args.command} takes nothing after `--`: {passed[0]}")
    try:
        return (act or args.act)(args, passed) or 0
    except LaunchError as error:
        problem, code = f"error: {error}", FAILED
    except KeyboardInterrupt:
        problem, code = "interrupted; programs on the workers keep running", INTERRUPTED
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    sys.stdout.flush()
    print(problem, file=sys.stderr, flush=True)
    return code
