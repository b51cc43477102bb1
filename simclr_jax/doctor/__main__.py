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
    from simclr_jax import verdicts
    from simclr_jax.doctor import checks

    verdicts.print_all(checks.run(_WORKDIR.value))


if __name__ == "__main__":
    cli.run(main)
