#!/usr/bin/env python3
"""Runs a pretraining job on a Cloud TPU slice, through gcloud.

    python3 launch/tpu.py create --name=n --zone=z --accelerator_type=v5litepod-16 \
        --version=v2-alpha-tpuv5-lite --capacity=spot
    python3 launch/tpu.py push --name=n --zone=z
    python3 launch/tpu.py install --name=n --zone=z
    python3 launch/tpu.py start --name=n --zone=z -- \
        --config=configs/imagenet.py:50x1 --workdir=/mnt/runs/a
    python3 launch/tpu.py delete --name=n --zone=z --yes

See docs/launching.md.
"""

import argparse
import sys

import cli
import job_commands
from cloud_tpu import CAPACITIES, Gcloud, Slice, Specification
from job import Job
from remote import Fleet, LaunchError


def context(args: argparse.Namespace) -> job_commands.Context:
    """What the sub-commands work with."""
    gcloud = Gcloud(cli.local(args), args.zone, args.project, args.internal_ip)
    specification = None
    if hasattr(args, "accelerator_type"):
        specification = Specification(
            args.accelerator_type,
            args.version,
            args.capacity,
            tuple(args.create_option),
        )
    machines = Slice(gcloud, args.name, specification)
    place = job_commands.place(args)

    def job() -> Job:
        return Job(Fleet(gcloud.local, machines.transport(), place))

    return job_commands.Context(
        job=job,
        machines=machines,
        accelerator="tpu",
        reminder=lambda: _reminder(args, machines),
    )


def _reminder(args: argparse.Namespace, machines: Slice) -> str:
    if args.dry_run:
        return ""
    try:
        left = machines.remains()
    except LaunchError as error:
        left = [f"perhaps {machines.title} (gcloud did not say: {error})"]
    if not left:
        return f"Nothing of {machines.title} exists; nothing costs.\n"
    project = f" --project={args.project}" if args.project else ""
    return (
        f"Still there, and charged for while it is: {'; '.join(left)}.\n"
        f"Delete it with: python3 launch/tpu.py delete --name={args.name} "
        f"--zone={args.zone}{project} --yes\n"
    )


def _create(
    context: job_commands.Context, args: argparse.Namespace, passed: list[str]
) -> int:
    assert isinstance(context.machines, Slice)
    context.machines.create()
    print(context.reminder(), end="")
    if args.capacity.startswith("queued"):
        print(
            "The request is queued; `status` shows when the slice is ready, and "
            "`watch` waits for it and then pushes, installs and starts."
        )
    return 0


def _delete(
    context: job_commands.Context, args: argparse.Namespace, passed: list[str]
) -> int:
    assert isinstance(context.machines, Slice)
    if not args.yes and not args.dry_run:
        raise LaunchError("--yes: must be given to delete; files on the workers go too")
    context.machines.delete()
    if args.dry_run:
        return 0
    left = context.machines.remains()
    if left:
        raise LaunchError(f"not gone yet: {'; '.join(left)}; run this again")
    print(
        f"Nothing of {context.machines.title} is left. Buckets, disks, file shares and "
        "networks are neither created nor deleted here; they can cost, too."
    )
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main = argparse.ArgumentParser(
        description="Runs a pretraining job on a Cloud TPU slice, through gcloud.",
        allow_abbrev=False,
    )
    slice_ = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    slice_.add_argument("--name", required=True, type=cli.word, help="of the slice")
    slice_.add_argument(
        "--zone", required=True, type=cli.word, help="such as us-west4-a"
    )
    slice_.add_argument(
        "--project",
        default="",
        type=cli.word_or_nothing,
        help="by default gcloud's own",
    )
    slice_.add_argument(
        "--internal_ip", action="store_true", help="connect to internal addresses"
    )
    kind = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    kind.add_argument(
        "--accelerator_type", required=True, type=cli.word, help="such as v5litepod-16"
    )
    kind.add_argument(
        "--version",
        required=True,
        type=cli.word,
        help="runtime, such as v2-alpha-tpuv5-lite",
    )
    kind.add_argument(
        "--capacity", choices=CAPACITIES, default="on-demand", help="(%(default)s)"
    )
    kind.add_argument(
        "--create_option",
        action="append",
        default=[],
        metavar="--NAME=VALUE",
        help="of gcloud, such as --create_option=--network=mine; can be given again",
    )
    commands = main.add_subparsers(dest="command", required=True)
    parents = [cli.base_parser(), slice_, job_commands.place_parser()]
    cli.add_command(
        commands,
        "create",
        "create a slice",
        [*parents, kind],
        act=_create,
        passes=False,
    )
    deleting = cli.add_command(
        commands, "delete", "delete the slice", parents, act=_delete, passes=False
    )
    deleting.add_argument("--yes", action="store_true", help="really")
    job_commands.add_job_commands(commands, parents, watch_parents=[kind])
    return main


def main(argv: list[str]) -> int:
    """Runs a sub-command and returns the exit code."""
    return job_commands.run(parser(), argv, context)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
