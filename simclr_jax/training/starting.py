"""The first state of a run: agreed on by all processes, restored or new."""

import logging

import jax
from jax.sharding import Mesh
from ml_collections import config_dict

from simclr_jax import optim
from simclr_jax.config import identity
from simclr_jax.data.sources.base import Source
from simclr_jax.data.sources.listings import Listing
from simclr_jax.parallel import processes
from simclr_jax.runs import ownership
from simclr_jax.runs.checkpoints import Checkpoints
from simclr_jax.training import compiling, replanning
from simclr_jax.training.step import StepParts, TrainState

_LOG = logging.getLogger(__name__)


def require_same_config_and_data(
    config: config_dict.ConfigDict, listing: Listing
) -> None:
    """Checks that all processes run the same config on the same images.

    Raises:
      ConfigError: they do not.
    """
    fingerprint = identity.fingerprint(identity.as_json(config))
    processes.require_equal("the config fingerprint", fingerprint)
    processes.require_equal(
        f"the training images of {config.data.dataset}:",
        f"{listing.num_examples} of {listing.num_classes} classes, fingerprint "
        f"{listing.fingerprint}",
    )


def open_checkpoints(
    config: config_dict.ConfigDict, workdir: str, owner: ownership.Ownership
) -> Checkpoints:
    """The checkpoints of a run, by the config's group `checkpoint`."""
    return Checkpoints(
        workdir,
        keep_last=config.checkpoint.keep_last,
        keep_every_steps=config.checkpoint.keep_every_steps,
        keep_best=config.checkpoint.keep_best,
        with_checksums=config.checkpoint.checksums,
        owner=owner,
    )


def initial_or_restored(
    config: config_dict.ConfigDict,
    parts: StepParts,
    mesh: Mesh,
    checkpoints: Checkpoints,
    initialize: jax.tree_util.Partial | None,
    workdir: str,
) -> TrainState:
    """The state of the newest good checkpoint; a new one where there is none.

    Args:
      config: resolved.
      parts: of the train step.
      mesh: all devices.
      checkpoints: of the run.
      initialize: as in `loop.TrainingJob`.
      workdir: the run directory, with the config of the start before.

    Raises:
      ConfigError: the processes see different checkpoints.
      CheckpointError: no checkpoint can be restored.
    """
    init = compiling.compile_init(parts, mesh, image_size=config.image_size)
    key = jax.random.key(config.seed)
    sharding = compiling.state_sharding(parts, mesh)
    restored = checkpoints.restore_newest(
        jax.eval_shape(init, key),
        sharding,
        identity.config_hash(identity.as_json(config)),
    )
    if restored is not None:
        return replanning.resume(config, parts, mesh, checkpoints, restored, workdir)
    state = init(key)
    if initialize is None:
        return state
    put = jax.jit(
        lambda function, state: function(state),
        out_shardings=sharding,
        donate_argnums=1,
    )
    return put(initialize, state)


def log(config: config_dict.ConfigDict, source: Source, state: TrainState) -> None:
    """Logs devices, images and parameters."""
    _LOG.info(
        "%d devices (%s)%s, %s: %d images, batch %d",
        jax.device_count(),
        jax.devices()[0].device_kind,
        f" of {jax.process_count()} processes" if jax.process_count() > 1 else "",
        source.name,
        source.num_examples,
        config.batch.batch_size,
    )
    table = optim.role_table(
        state.params,
        adapts=config.optimizer.name == "lars",
        decayed=config.optimizer.decayed,
    )
    _LOG.info("Parameters:\n%s", table)
