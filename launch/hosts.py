#!/usr/bin/env python3
"""Runs a pretraining job on any hosts that ssh reaches.

    python3 launch/hosts.py start --hosts=a,b,c -- --config=configs/imagenet.py:50x1 \
        --workdir=/shared/runs/a

See docs/launching.md.
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Sequence

import cli
import job_commands
from job import REQUIREMENTS, Job
from remote import Fleet, LaunchError, as_bash
from supervise import NoCapacity

_SSH_OPTIONS = ("BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=15")


class Ssh:
    """Transport by ssh and scp.

    Args:
      hosts: as ssh knows them.
      user: on all of them; empty for ssh's own choice.
      options: `NAME=VALUE` of ssh_config.
    """

    def __init__(self, hosts: Sequence[str], user: str, options: Sequence[str]):
        self.hosts = hosts
        self.names = [f"worker {i} ({host})" for i, host in enumerate(hosts)]
        self._user = f"{user}@" if user else ""
        self._options = [
            word for option in (*options, *_SSH_OPTIONS) for word in ("-o", option)
        ]

    def shell(self, worker: int, script: str) -> list[str]:
        """The command that runs a bash text on a host."""
        target = f"{self._user}{self.hosts[worker]}"
        return ["ssh", *self._options, target, as_bash(script)]

    def copy(self, worker: int, source: str, target: str) -> list[str]:
        """The command that copies a file into a host's home directory."""
        path = f"{self._user}{_before_colon(self.hosts[worker])}:{target}"
        return ["scp", "-q", *self._options, source, path]


class FixedHosts:
    """Existing hosts, which no command here creates or deletes."""

    def __init__(self, count: int):
        self.title = f"{count} hosts"

    def condition(self) -> str:
        """Always `ready`."""
        return "ready"

    def recreate(self) -> None:
        """Cannot be done."""
        raise NoCapacity("the hosts are yours to bring back; looking again later")


def hosts_of(args: argparse.Namespace) -> list[str]:
    """The hosts that the arguments name, the coordinator first."""
    text = args.hosts or ""
    if args.hosts_file:
        try:
            text = pathlib.Path(args.hosts_file).read_text()
        except OSError as error:
            raise LaunchError(f"--hosts_file={args.hosts_file}: {error}") from error
    lines = [line.partition("#")[0] for line in text.splitlines()]
    hosts = [name for name in re.split(r"[,\s]+", " ".join(lines)) if name]
    if not hosts:
        raise LaunchError("--hosts, --hosts_file: must name at least one host")
    for host in hosts:
        if not re.fullmatch(r"[\w:][\w.:%-]*", host, re.ASCII):
            raise LaunchError(f"--hosts: {host!r}: must be a host's name or address")
    if len(set(hosts)) < len(hosts):
        raise LaunchError("--hosts: each host can be named only once")
    return hosts


def context(args: argparse.Namespace) -> job_commands.Context:
    """What the sub-commands work with."""
    hosts = hosts_of(args)
    own = f"{_before_colon(hosts[0])}:{args.port}"
    coordinator = args.coordinator_address or own
    local = cli.local(args)
    transport = Ssh(hosts, args.user, args.ssh_option)

    def start_flags(worker: int) -> list[str]:
        return [
            f"--coordinator_address={coordinator}",
            f"--num_processes={len(hosts)}",
            f"--process_id={worker}",
        ]

    fleet = Fleet(local, transport, job_commands.place(args))
    return job_commands.Context(
        job=lambda: Job(fleet, start_flags),
        machines=FixedHosts(len(hosts)),
        accelerator=getattr(args, "accelerator", ""),
        reminder=str,
    )


def _before_colon(host: str) -> str:
    """A host where a colon follows it: IPv6 addresses get brackets."""
    return f"[{host}]" if ":" in host else host


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main = argparse.ArgumentParser(
        description="Runs a pretraining job on any hosts that ssh reaches.",
        allow_abbrev=False,
    )
    hosts = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    which = hosts.add_mutually_exclusive_group(required=True)
    which.add_argument("--hosts", help="names, comma-separated, the coordinator first")
    which.add_argument("--hosts_file", help="one name per line; # begins a comment")
    hosts.add_argument(
        "--user",
        default="",
        type=cli.word_or_nothing,
        help="to log in as, on every host",
    )
    hosts.add_argument(
        "--ssh_option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of ssh_config, such as Port=2222; can be given again",
    )
    hosts.add_argument(
        "--port", type=int, default=8476, help="of the coordinator (%(default)d)"
    )
    hosts.add_argument(
        "--coordinator_address",
        metavar="HOST:PORT",
        help="where the first host is reached by the others, if not by the name that "
        "ssh knows it by",
    )
    commands = main.add_subparsers(dest="command", required=True)
    parents = [cli.base_parser(), hosts, job_commands.place_parser()]
    added = job_commands.add_job_commands(commands, parents, watch_parents=[])
    for name in ("install", "watch"):
        added[name].add_argument(
            "--accelerator", choices=list(REQUIREMENTS), required=True
        )
    return main


def main(argv: list[str]) -> int:
    """Runs a sub-command and returns the exit code."""
    return job_commands.run(parser(), argv, context)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
