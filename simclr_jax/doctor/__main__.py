"""Checks a machine or pod before a run.

    python -m simclr_jax.doctor
    python -m simclr_jax.doctor --workdir=RUN

Environment, devices, hosts, versions, clocks and the run directory, then whether all
devices together compute the same loss, gradient, BatchNorm statistics and update as one
device. Prints one line per check; the exit code is 1 if a check fails. With several
hosts, start it on all of them, like `simclr_jax.pretrain`.
"""

from absl import flags

from simclr_jax import cli

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "A run directory to check too; it may not exist yet."
)
cli.define_processes()


def main() -> None:
    """Runs the command."""
    cli.start_processes(None)
    from simclr_jax.doctor import checks
    from simclr_jax.errors import RunFailed
    from simclr_jax.parallel import processes

    bad = 0
    for verdict in checks.run(_WORKDIR.value):
        bad += not verdict.ok
        if processes.is_main():
            mark = "ok " if verdict.ok else "BAD"
            print(f"{mark}  {verdict.name:<15} {verdict.detail}", flush=True)
    if bad:
        raise RunFailed(f"{bad} checks failed")
    if processes.is_main():
        print("All checks passed.")


if __name__ == "__main__":
    cli.run(main)
