"""Pretrains an encoder with SimCLR.

    python -m simclr_jax.pretrain --config=configs/cifar10.py --workdir=RUN

The same command run again resumes from the newest checkpoint. For several hosts, run it
on each of them with the run directory on a shared file system; see docs/launching.md.
"""

from simclr_jax import cli

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir()
cli.define_processes()
_ALLOW_CONFIG_CHANGE = cli.define_allow_config_change()
_ALLOW_DATA_CHANGE = cli.define_allow_data_change()
_PROFILE_STEPS = cli.define_profile_steps()


def main() -> None:
    """Runs the command."""
    cli.start_processes(_WORKDIR.value)
    # Imported here, so that --help and invalid flags do not wait for TensorFlow.
    from simclr_jax.training import loop

    loop.run(
        loop.pretraining_job(_CONFIG.value, _WORKDIR.value),
        _WORKDIR.value,
        allow_config_change=_ALLOW_CONFIG_CHANGE.value,
        allow_data_change=_ALLOW_DATA_CHANGE.value,
        profile_steps=_PROFILE_STEPS.value,
    )


if __name__ == "__main__":
    cli.run(main, required=("config", "workdir"))
