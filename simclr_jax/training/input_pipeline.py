"""The training images and their batches, opened by a config."""

import itertools
import logging
from collections.abc import Iterator

import jax
from jax.sharding import Mesh
from ml_collections import config_dict

from simclr_jax import parallel
from simclr_jax.data import pipeline
from simclr_jax.data.buffers import Buffers
from simclr_jax.data.sources import in_memory, registry
from simclr_jax.data.sources.arrays import ArraySource
from simclr_jax.data.sources.base import Source
from simclr_jax.data.views import host
from simclr_jax.errors import ConfigError, DataError
from simclr_jax.parallel import processes
from simclr_jax.training.device_views import make_composition
from simclr_jax.training.objectives import NUM_VIEWS, Batch

_LOG = logging.getLogger(__name__)


def open_source(config: config_dict.ConfigDict, split: str) -> Source:
    """Opens a split of the config's dataset; see `sources.open_source`."""
    return registry.open_source(
        config.data.dataset,
        split=split,
        data_dir=config.data.data_dir,
        image_key=config.data.image_key,
        label_key=config.data.label_key,
    )


def open_labelled(config: config_dict.ConfigDict, split: str, *, why: str) -> Source:
    """As `open_source`, of a split that must have labels.

    Args:
      config: valid.
      split: of the config's dataset.
      why: for the message, such as 'evaluation needs some'.

    Raises:
      DataError: it has none.
    """
    source = open_source(config, split)
    if source.num_classes is None:
        raise DataError(
            f"dataset {source.name}: has no labels, and {why} (for a folder: one "
            "sub-folder for each class)"
        )
    return source


def make_buffers(
    config: config_dict.ConfigDict, *, batch_size: int, num_views: int = NUM_VIEWS
) -> Buffers:
    """Threads and memory of this host's input pipeline, by the config's budget.

    Args:
      config: valid.
      batch_size: global.
      num_views: of an image.

    Raises:
      DataError: `data.memory_mb` is too small.
    """
    local = batch_size // jax.process_count()
    return Buffers.choose(
        batch_bytes=local * num_views * config.image_size**2 * 3,
        memory_mb=config.data.memory_mb,
        threads=config.data.threads,
        parallel_reads=config.data.parallel_reads,
        block_size=config.data.block_size,
    )


def use_compiled_views(config: config_dict.ConfigDict) -> bool:
    """Whether the host computes views with machine code, the same on all processes.

    A collective: every process has to call it.

    Raises:
      ConfigError: `augment.host_views` is 'compiled', and a process cannot compile.
    """
    form = config.augment.host_views
    if form == "graph" or config.augment.placement == "accelerator":
        return False
    reasons = processes.gather_texts(host.unavailable() or "")
    for number, reason in enumerate(reasons):
        if not reason:
            continue
        who = f"process {number}: " if len(reasons) > 1 else ""
        if form == "compiled":
            raise ConfigError(
                f"config.augment.host_views='compiled': cannot be had ({who}{reason}); "
                "'auto' and 'graph' compute the same views with TensorFlow's operations"
            )
        _LOG.warning(
            "config.augment.host_views='auto': views cannot be compiled (%s%s), so "
            "TensorFlow's operations compute them, which takes up to %d times as long",
            who,
            reason,
            host.GRAPH_SLOWDOWN,
        )
        return False
    return True


def hold_in_memory(
    config: config_dict.ConfigDict, source: Source, num_views: int = NUM_VIEWS
) -> Source:
    """The training images, decoded into memory if they fit and the config allows it.

    Raises:
      DataError: `data.memory_mb` is too small for batches of `num_views` views; or
        views are to be computed on the accelerator, and the images do not fit there or
        are synthetic.
    """
    make_buffers(config, batch_size=config.batch.batch_size, num_views=num_views)
    limit_mb = config.data.in_memory_mb
    on_accelerator = config.augment.placement == "accelerator"
    if in_memory.fits(source, limit_mb=limit_mb):
        pixels = in_memory.load(source)
        if on_accelerator:
            in_memory.pixels(pixels)  # raises where it cannot be held
        return pixels
    if on_accelerator:
        why = (
            f"take more than config.data.in_memory_mb={limit_mb}"
            if source.image_shape
            else "are not known to have one size"
        )
        raise DataError(
            "config.augment.placement='accelerator': the images of "
            f"{source.name} {why}; 'host_crop' leaves all but the crop to the "
            "accelerator"
        )
    return source


def local_batches(
    config: config_dict.ConfigDict,
    source: Source,
    start_step: int,
    *,
    num_views: int = NUM_VIEWS,
    compiled: bool | None = None,
) -> Iterator[pipeline.Batch]:
    """This host's slice of each step's batch: views, or crops with their draws.

    `compiled` is from `use_compiled_views`, which is called where it is None.
    """
    buffers = make_buffers(
        config, batch_size=config.batch.batch_size, num_views=num_views
    )
    _LOG.info(
        "Input pipeline: %d threads, %d reads at a time, %d batches ahead, at most "
        "%d MiB",
        buffers.threads,
        buffers.parallel_reads,
        buffers.prefetch,
        buffers.memory_bytes // 2**20,
    )
    return pipeline.train_batches(
        source,
        make_composition(config),
        seed=config.seed,
        batch_size=config.batch.batch_size,
        num_views=num_views,
        start_step=start_step,
        stop_step=config.schedule.train_steps,
        host_index=jax.process_index(),
        num_hosts=jax.process_count(),
        host_crop=config.augment.placement == "host_crop",
        compiled=use_compiled_views(config) if compiled is None else compiled,
        block_size=config.data.block_size,
        buffers=buffers,
    )


def global_batches(
    config: config_dict.ConfigDict,
    source: Source,
    start_step: int,
    mesh: Mesh,
    num_views: int = NUM_VIEWS,
    compiled: bool | None = None,
) -> Iterator[Batch]:
    """The train step's inputs from `start_step` on.

    Batches split over the devices; where the devices compute the views from the whole
    dataset, the dataset itself, replicated, at every step.
    """
    if config.augment.placement == "accelerator":
        assert isinstance(source, ArraySource)  # by `hold_in_memory`
        images, labels = in_memory.pixels(source)
        arrays = {"images": images, "labels": labels}
        return itertools.repeat(parallel.put(parallel.replicated(mesh), arrays))
    batches = local_batches(
        config, source, start_step, num_views=num_views, compiled=compiled
    )
    return (parallel.shard_batch(mesh, batch) for batch in batches)
