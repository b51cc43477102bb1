"""The newest encoder of a run that another process may be writing."""

import logging

from simclr_jax.errors import CheckpointError, CheckpointNotFound, first_line
from simclr_jax.runs import orbax_paths, plans
from simclr_jax.weights import encoder as encoders
from simclr_jax.weights.encoder import PretrainedEncoder

_LOG = logging.getLogger(__name__)


def load(workdir: str) -> PretrainedEncoder:
    """Reads the newest checkpoint of a run that can be read.

    A run that goes on deletes its older checkpoints, maybe while this reads one; a run
    that crashed may have left a damaged one. Then the newest other one is read.

    Raises:
      CheckpointNotFound: there is none.
      CheckpointError: none of them can be read; the error of the first one tried.
      ConfigError: the run's config cannot be read.
    """
    tried: dict[int, CheckpointError | CheckpointNotFound] = {}
    while True:
        # Listed anew each time: there may be newer ones meanwhile.
        steps = orbax_paths.complete_steps(plans.folder_in_force(workdir))
        untried = [step for step in steps if step not in tried]
        if not untried and tried:
            raise next(iter(tried.values()))
        # Without a step this raises the error that says why there is none.
        step = max(untried, default=None)
        try:
            return encoders.load(workdir, step=step)
        except (CheckpointError, CheckpointNotFound) as error:
            if step is None:
                raise
            tried[step] = error
            _LOG.warning("step %d: %s; reading another", step, first_line(error))
