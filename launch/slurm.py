#!/usr/bin/env python3
"""Runs a pretraining job on a cluster with SLURM.

    python3 launch/slurm.py submit --nodes=2 --gpus_per_node=8 --time=24:00:00 \
        --workdir=/shared/runs/a -- --config=configs/imagenet.py:50x1

Run it in the checkout on the login node, where `bash launch/setup.sh` and
`.venv/bin/pip install -e . "jax[cuda13]"` made the environment on a shared path.
`script` prints what `submit` hands to sbatch. See docs/launching.md.
"""

import argparse
import pathlib
import re
import shlex
import sys
import tempfile

import check
import checkout
import cli
from job import value_of
from remote import LaunchError, Local

_SCRIPT = """\
#!/usr/bin/env bash
{directives}
# One process per task; they find each other by SLURM's variables. The job is queued
# again when it was cut off, by preemption, a crash or the time limit, and resumes
# where it stopped; not when its input is bad (exit code 2).
set -u
cd {checkout} || exit 1
max_restarts={max_restarts}
program=({program})
{devices}
# srun tells the highest exit code only, and those of killed tasks are higher.
marks={marks}
mkdir -p "$marks" || exit 1
export BAD_INPUT="$marks/.bad_input_$SLURM_JOB_ID"
rm -f "$BAD_INPUT"

# shellcheck disable=SC2317,SC2329  # called by its text
task() {{
  trap : TERM  # wait for the program to end
  "$@"
  local code=$?
  if ((code == 2)); then touch "$BAD_INPUT"; fi
  return "$code"
}}

srun --kill-on-bad-exit=1 bash -c "$(declare -f task); task \\"\\$@\\"" task \\
  "${{program[@]}}"
code=$?
if ((code == 0)); then
  echo "finished"
elif [[ -e $BAD_INPUT ]]; then
  echo "bad input: not queued again" >&2
  rm -f "$BAD_INPUT"
  code=2
elif ((${{SLURM_RESTART_COUNT:-0}} >= max_restarts)); then
  echo "ended with $code; given up after $max_restarts restarts" >&2
else
  echo "ended with $code; queued again" >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def script(args: argparse.Namespace, passed: list[str]) -> str:
    """The text for sbatch."""
    if value_of("workdir", passed) is not None:
        raise LaunchError("--workdir: must be given once, before `--`")
    in_bucket = check.is_store(args.workdir)
    if not in_bucket and not pathlib.PurePath(args.workdir).is_absolute():
        raise LaunchError(
            f"--workdir={args.workdir}: must be an absolute, shared path, or gs://..."
        )
    tasks = args.tasks_per_node or max(args.gpus_per_node, 1)
    if args.nodes < 1 or args.gpus_per_node < 0:
        raise LaunchError("--nodes, --gpus_per_node: must be at least 1 and 0")
    if tasks not in (1, max(args.gpus_per_node, 1)):
        raise LaunchError(
            f"--tasks_per_node={tasks}: must be 1, or --gpus_per_node="
            f"{args.gpus_per_node}, which is one process per GPU"
        )
    python = f"{args.checkout}/.venv/bin/python"
    module = "simclr_jax.rehearse" if args.rehearse else "simclr_jax.pretrain"
    program = [python, "-u", "-m", module, f"--workdir={args.workdir}"]
    # With SLURM, JAX takes one GPU per process unless told otherwise.
    devices = ""
    if tasks == 1 and args.gpus_per_node > 1:
        ids = ",".join(map(str, range(args.gpus_per_node)))
        devices = f"export JAX_LOCAL_DEVICE_IDS={ids}\n"
    return _SCRIPT.format(
        directives="\n".join(_directives(args, tasks)) + "\n",
        checkout=shlex.quote(args.checkout),
        marks=shlex.quote(_log_dir(args) if in_bucket else args.workdir),
        # A rehearsal that failed would only fail again.
        max_restarts=0 if args.rehearse else args.max_restarts,
        program=shlex.join([*program, *passed]),
        devices=devices,
    )


def _directives(args: argparse.Namespace, tasks: int) -> list[str]:
    options = {
        "job-name": args.name,
        "nodes": args.nodes,
        "ntasks-per-node": tasks,
        "gpus-per-node": args.gpus_per_node or None,
        "cpus-per-task": args.cpus_per_task,
        "time": args.time,
        "partition": args.partition,
        "account": args.account,
        "output": f"{_log_dir(args)}/slurm-%j.log",
        "open-mode": "append",
        # So that the program hears of the end before it comes.
        "signal": f"TERM@{args.signal_secs}",
    }
    lines = ["#SBATCH --requeue"]
    for name, value in options.items():
        if value is None or value == "":
            continue
        # sbatch splits at blanks and takes quotes for themselves in some versions.
        if not re.fullmatch(r"[\w./:@%+,=-]+", str(value)):
            raise LaunchError(
                f"{value!r} in #SBATCH --{name}: must be without blanks and quotes"
            )
        lines.append(f"#SBATCH --{name}={value}")
    return lines


def _log_dir(args: argparse.Namespace) -> str:
    """A folder that all nodes share."""
    return args.log_dir or args.checkout


def _script(args: argparse.Namespace, passed: list[str]) -> None:
    text = script(args, passed)
    if not args.output:
        print(text, end="")
    elif args.dry_run:
        print(f"would write: {args.output}\n{text}", end="")
    else:
        pathlib.Path(args.output).write_text(text)
        print(f"{args.output}: submit it with `sbatch {args.output}`")


def _submit(args: argparse.Namespace, passed: list[str]) -> None:
    text = script(args, passed)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(args.output or f"{folder}/simclr_jax.sbatch")
        if args.dry_run:
            print(f"would write: {path}\n{text}", end="")
        else:
            path.write_text(text)
        result = Local(dry_run=args.dry_run).run(["sbatch", str(path)])
    if result.code:
        raise LaunchError(f"sbatch: {result.why()}")
    print(result.stdout, end="")


def _job_parser() -> argparse.ArgumentParser:
    """The job's own arguments."""
    job = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add = job.add_argument
    add("--name", default="simclr_jax", help="of the job (%(default)s)")
    add("--nodes", type=int, required=True, help="how many")
    add("--gpus_per_node", type=int, default=0, help="0: on CPUs (%(default)d)")
    add(
        "--tasks_per_node",
        type=int,
        default=0,
        help="processes: one per GPU (the default), or 1 for all GPUs of a node",
    )
    add("--cpus_per_task", type=int, help="by default the cluster's choice")
    add("--time", required=True, help="limit, such as 24:00:00 or 2-00:00:00")
    add("--partition", default="", help="by default the cluster's choice")
    add("--account", default="", help="to charge")
    add(
        "--workdir",
        required=True,
        help="the run directory: gs://BUCKET/..., s3://BUCKET/... or a shared path",
    )
    add(
        "--rehearse",
        action="store_true",
        help="run simclr_jax.rehearse instead, a few minutes; not queued again",
    )
    add("--log_dir", default="", help="that exists, for slurm-JOB.log (the checkout)")
    add(
        "--checkout",
        default=str(checkout.ROOT),
        help="the code with its .venv, on a shared path (%(default)s)",
    )
    add(
        "--signal_secs",
        type=int,
        default=120,
        help="SIGTERM comes so long before the time limit (%(default)d)",
    )
    add(
        "--max_restarts",
        type=int,
        default=100,
        help="after crashes, preemptions and time limits, all together (%(default)d)",
    )
    add("--output", default="", help="file for the script")
    return job


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main = argparse.ArgumentParser(
        description="Runs a pretraining job on a cluster with SLURM.",
        allow_abbrev=False,
    )
    commands = main.add_subparsers(dest="command", required=True)
    parents = [cli.base_parser(), _job_parser()]
    after = "what is after `--` goes to simclr_jax.pretrain"
    cli.add_command(
        commands,
        "script",
        f"write the script for sbatch; {after}",
        parents,
        act=_script,
        passes=True,
    )
    cli.add_command(
        commands,
        "submit",
        f"write the script and run sbatch; {after}",
        parents,
        act=_submit,
        passes=True,
    )
    return main


def main(argv: list[str]) -> int:
    """Runs a sub-command and returns the exit code."""
    return cli.guarded(parser(), argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
