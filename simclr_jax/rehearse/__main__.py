r"""Rehearses the whole life of a pretraining job at a few steps.

    python -m simclr_jax.rehearse --config=configs/imagenet.py:50x1 --workdir=RUN

Takes the flags of `simclr_jax.pretrain`, and runs on the same machines, with the same
dataset, store and config: reads images and times them, compiles, makes three steps,
saves, reads back, stops as on SIGTERM, resumes and compares, evaluates on a few
batches, exports, and cleans up. Prints one line per check, with its seconds, and
estimates the rate of the job; the exit code is 1 if a check fails. Everything is
written below RUN/rehearsal-ID, which is removed at the end; with several processes
the compiled programs stay in RUN/compilation_cache, where the job finds them.
"""

from absl import flags

from simclr_jax import cli

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir()
cli.define_processes()
_KEEP = flags.DEFINE_bool("keep", False, "Keep what was written.")


def main() -> None:
    """Runs the command."""
    cli.start_processes(_WORKDIR.value)
    # Imported here, so that --help and bad flags do not wait for TensorFlow.
    from simclr_jax import verdicts
    from simclr_jax.rehearse import life

    verdicts.print_all(life.rehearse(_CONFIG.value, _WORKDIR.value, keep=_KEEP.value))


if __name__ == "__main__":
    cli.run(main, required=("config", "workdir"))
