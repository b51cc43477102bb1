"""Checks a machine or pod before a run.

    python -m simclr_jax.doctor
    python -m simclr_jax.doctor --workdir=RUN

Environment, devices, hosts, versions, clocks and the run directory, then whether all
devices together compute the loss, gradient, BatchNorm statistics and update of one. A
line each; the exit code is 1 if one of them is bad. On many hosts start it on all of
them, as `simclr_jax.pretrain`.
"""

from absl import flags

from simclr_jax import cli

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "A run directory to check too; need not be there yet."
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
        raise RunFailed(f"{bad} checks are bad")
    if processes.is_main():
        print("All is well.")


if __name__ == "__main__":
    cli.run(main)
