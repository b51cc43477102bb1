"""Pretrains as `python -m simclr_jax.pretrain` does, in this process."""

from simclr_jax.training import loop


def pretrain(config, workdir, **settings):
    return loop.run(loop.pretraining_job(config), workdir, **settings)
