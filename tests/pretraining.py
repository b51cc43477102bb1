"""Pretrains as `python -m simclr_jax.pretrain` does, in this process."""

from simclr_jax.evaluation import watching
from simclr_jax.training import loop


def pretrain(config, workdir, **settings):
    return loop.run(watching.watched(loop.pretraining_job(config)), workdir, **settings)
