#!/usr/bin/env python3
"""Runs a pretraining job on a TPU slice of Google Kubernetes Engine, as a JobSet.

    python3 launch/gke.py manifest --name=a --image=REGISTRY/simclr_jax:1 \
        --accelerator=tpu-v5-lite-podslice --topology=4x4 --chips_per_host=4 \
        --workdir=gs://my-bucket/runs/a --service_account=my-account \
        --config=configs/imagenet.py:50x1 --output=a.json
    python3 launch/gke.py apply --file=a.json
    python3 launch/gke.py delete --name=a --yes

What is after `--` goes to simclr_jax.pretrain. See docs/launching.md.
"""

import argparse
import json
import pathlib
import sys

import cli
import job_set
from remote import LaunchError, Local

_DELETE_SECS = 1800  # until the last pod ended


def _manifest(args: argparse.Namespace, passed: list[str]) -> None:
    # JSON is YAML, so kubectl reads it.
    text = json.dumps(job_set.manifest(args, passed), indent=2) + "\n"
    if not args.output:
        print(text, end="")
    elif args.dry_run:
        print(f"would write: {args.output}\n{text}", end="")
    else:
        pathlib.Path(args.output).write_text(text)
        hosts = job_set.num_hosts(args.topology, args.chips_per_host)
        print(f"{args.output}: {hosts} hosts of {args.chips_per_host} chips")


def _kubectl(args: argparse.Namespace, *words: str, timeout_secs: float = 120) -> None:
    """Runs kubectl and prints what it says."""
    namespace = ["-n", args.namespace] if args.namespace else []
    context = ["--context", args.context] if args.context else []
    result = Local(dry_run=args.dry_run).run(
        ["kubectl", *context, *namespace, *words], timeout_secs=timeout_secs
    )
    if result.code:
        raise LaunchError(f"kubectl: {result.why()}")
    print(result.stdout, end="")


def _selector(args: argparse.Namespace) -> str:
    return f"jobset.sigs.k8s.io/jobset-name={args.name}"


def _apply(args: argparse.Namespace, passed: list[str]) -> None:
    _kubectl(args, "apply", "-f", args.file)


def _status(args: argparse.Namespace, passed: list[str]) -> None:
    _kubectl(args, "get", "jobset", args.name)
    _kubectl(args, "get", "pods", "-o", "wide", "-l", _selector(args))


def _logs(args: argparse.Namespace, passed: list[str]) -> None:
    _kubectl(
        args,
        "logs",
        "--prefix",
        f"--tail={args.lines}",
        # By default kubectl reads no more than five pods at once.
        "--max-log-requests=1000",
        "-l",
        _selector(args),
    )


def _delete(args: argparse.Namespace, passed: list[str]) -> None:
    if not args.yes and not args.dry_run:
        raise LaunchError("--yes: must be given to delete")
    _kubectl(
        args,
        *("delete", "jobset", args.name, "--ignore-not-found", "--wait"),
        timeout_secs=_DELETE_SECS,
    )
    if not args.dry_run:
        print(
            "The run is gone. The node pool costs until it scales to zero or "
            "is deleted: gcloud container node-pools list"
        )


def _add_manifest_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--image",
        required=True,
        type=cli.word,
        help="container with simclr_jax and jax[tpu]",
    )
    add(
        "--accelerator",
        required=True,
        type=cli.word,
        help="such as tpu-v5-lite-podslice",
    )
    add(
        "--topology",
        required=True,
        type=cli.word,
        help="of the slice, such as 4x4 or 2x2x4",
    )
    add("--chips_per_host", type=int, default=4, help="(%(default)d)")
    add(
        "--config",
        required=True,
        type=cli.word,
        help="such as configs/imagenet.py:50x1",
    )
    add(
        "--workdir",
        required=True,
        type=cli.word,
        help="the run directory: gs://BUCKET/..., or a path under --mount_path",
    )
    add(
        "--rehearse",
        action="store_true",
        help="run simclr_jax.rehearse instead, a few minutes; not restarted",
    )
    add(
        "--mount_path",
        default="/mnt/shared",
        help="where --bucket or --claim is mounted (%(default)s)",
    )
    volume = parser.add_mutually_exclusive_group()
    volume.add_argument("--bucket", help="to mount there, by gcsfuse")
    volume.add_argument("--claim", help="the same, PersistentVolumeClaim ReadWriteMany")
    add("--service_account", default="", help="of Kubernetes, that may use the bucket")
    add("--spot", action="store_true", help="on a node pool of Spot VMs")
    add(
        "--max_restarts",
        type=int,
        default=20,
        help="of the whole job, preemptions included (%(default)d)",
    )
    add("--output", default="", help="file to write; standard output by default")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main = argparse.ArgumentParser(
        description="Runs a pretraining job on a TPU slice of GKE, as a JobSet.",
        allow_abbrev=False,
    )
    cluster = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    cluster.add_argument(
        "--namespace", default="default", type=cli.word, help="(%(default)s)"
    )
    cluster.add_argument(
        "--context", default="", type=cli.word_or_nothing, help="of kubectl"
    )
    name = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    name.add_argument("--name", required=True, type=cli.word, help="of the JobSet")
    commands = main.add_subparsers(dest="command", required=True)
    base = [cli.base_parser(), cluster]
    writing = cli.add_command(
        commands,
        "manifest",
        "write the manifest; what is after `--` goes to simclr_jax.pretrain",
        [*base, name],
        act=_manifest,
        passes=True,
    )
    _add_manifest_arguments(writing)
    applying = cli.add_command(
        commands, "apply", "kubectl apply", base, act=_apply, passes=False
    )
    applying.add_argument("--file", required=True, type=cli.word, help="the manifest")
    named = [*base, name]
    cli.add_command(
        commands, "status", "the JobSet and its pods", named, act=_status, passes=False
    )
    logs = cli.add_command(
        commands, "logs", "the ends of all logs", named, act=_logs, passes=False
    )
    logs.add_argument("--lines", type=int, default=20, help="(%(default)d)")
    deleting = cli.add_command(
        commands, "delete", "delete the JobSet", named, act=_delete, passes=False
    )
    deleting.add_argument("--yes", action="store_true", help="really")
    return main


def main(argv: list[str]) -> int:
    """Runs a sub-command and returns the exit code."""
    return cli.guarded(parser(), argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
