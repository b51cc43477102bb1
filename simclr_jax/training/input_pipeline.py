"""The training images and their batches, opened by a config."""

import itertools
import logging
from collections.abc import Iterator

import jax
from jax.sharding import Mesh
from ml_collections import config_dict

from simclr_jax import parallel
from simclr_jax.data import optional, pipeline, stalls
from simclr_jax.data.buffers import Buffers
from simclr_jax.data.sources import bad_records, in_memory, kept, registry
from simclr_jax.data.sources.arrays import ArraySource
from simclr_jax.data.sources.base import Source
from simclr_jax.data.views import host_form
from simclr_jax.errors import BadRecord, ConfigError, DataError
from simclr_jax.parallel import processes
from simclr_jax.runs.quarantine import Quarantine, most_allowed, too_many
from simclr_jax.training import class_balance
from simclr_jax.training.device_views import make_composition
from simclr_jax.training.objectives import NUM_VIEWS, Batch

_LOG = logging.getLogger(__name__)


def open_source(
    config: config_dict.ConfigDict, split: str, *, to_train: bool = False
) -> Source:
    """Opens a split of the config's dataset; see `sources.open_source`.

    No collective, but processes that open it at the same time share the work.

    Args:
      config: valid.
      split: of the dataset.
      to_train: bad images are treated as `data.on_bad_record` says; otherwise they are
        errors.

    Raises:
      DataError: it cannot be opened; or more images are bad than the config allows.
    """
    on_bad_record: bad_records.OnBadRecord = bad_records.refuse
    if to_train:
        on_bad_record = _pass_over if _replaces(config) else bad_records.stop
    source = registry.open_source(
        config.data.dataset,
        split=split,
        data_dir=config.data.data_dir,
        image_key=config.data.image_key,
        label_key=config.data.label_key,
        sharing=kept.Sharing(*processes.place()),
        on_bad_record=on_bad_record,
        exif_orientation=config.data.exif_orientation,
        white_level=config.data.white_level,
    )
    bad = bad_records.of(source)
    share = config.data.bad_records_max
    if len(bad) > most_allowed(source.num_examples, share):
        raise too_many(
            source.name,
            [(error.name, error.reason) for error in bad],
            num_examples=source.num_examples,
            max_share=share,
        )
    return source


def open_labelled(
    config: config_dict.ConfigDict, split: str, *, why: str, to_train: bool = False
) -> Source:
    """As `open_source`, of a split that must have labels.

    Args:
      config: valid.
      split: of the config's dataset.
      why: for the message, such as 'evaluation needs some'.
      to_train: as in `open_source`.

    Raises:
      DataError: it has none.
    """
    source = open_source(config, split, to_train=to_train)
    if source.num_classes is None:
        raise DataError(
            f"dataset {source.name}: has no labels, and {why} (for a folder: one "
            "sub-folder for each class)"
        )
    return source


def open_to_train(
    config: config_dict.ConfigDict,
) -> tuple[config_dict.ConfigDict, Source]:
    """(config with what is done with the files, training images in memory if wanted).

    Raises:
      DataError: as `open_source` and `hold_in_memory`.
    """
    source = open_source(config, config.data.split, to_train=True)
    return with_handling(config, source), hold_in_memory(config, source)


def with_handling(
    config: config_dict.ConfigDict, source: Source
) -> config_dict.ConfigDict:
    """A copy of a config that records what a source does with its files.

    A run's evaluations, its fine-tuning and its exported encoder do the same.
    """
    config = config.copy_and_resolve_references()
    data = config.data
    # Sources that hold pixels, or files of others, know nothing of it.
    data.exif_orientation = getattr(
        source, "exif_orientation", bool(data.exif_orientation)
    )
    level = getattr(source, "white_level", None)
    data.white_level = data.white_level if level is None else level
    return config


def _pass_over(_error: BadRecord, _step: int) -> None:
    """An `OnBadRecord` for sources that keep the errors."""


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
      ConfigError: a process cannot compute views in the form of `augment.host_views`.
    """
    form = config.augment.host_views
    if config.augment.placement == "accelerator":
        return False
    # The same on all processes.
    not_compiled = _first_reason(
        "" if form == "graph" else host_form.unavailable() or ""
    )
    no_graph = _first_reason(
        "" if optional.is_installed("tensorflow") else "TensorFlow is not installed"
    )
    if form != "graph" and not not_compiled:
        if no_graph:
            _require_compiled_operations(config)
        return True
    if form == "compiled" or no_graph:
        reasons = "; ".join(filter(None, (not_compiled, no_graph)))
        ways_out = "config.augment.placement='accelerator' needs no library"
        if form == "compiled" and not no_graph:
            ways_out = (
                "'auto' and 'graph' compute the same views with TensorFlow's operations"
            )
        raise ConfigError(
            f"config.augment.host_views={form!r}: cannot be had ({reasons}); {ways_out}"
        )
    if form == "auto":
        _LOG.warning(
            "config.augment.host_views='auto': views cannot be compiled (%s), so "
            "TensorFlow's operations compute them, which takes up to %d times as long",
            not_compiled,
            host_form.GRAPH_SLOWDOWN,
        )
    return False


def _require_compiled_operations(config: config_dict.ConfigDict) -> None:
    """Raises ConfigError if the host needs TensorFlow for an operation."""
    # Imported here, since it needs Numba.
    from simclr_jax.data.views import host_program

    composition = make_composition(config)
    if config.augment.placement == "host_crop":
        composition = composition.crop_alone()
    if names := host_program.not_compiled(composition):
        raise ConfigError(
            f"config.augment.operations: {names[0]!r} on the host needs TensorFlow; "
            "config.augment.placement='host_crop' and 'accelerator' compute it with JAX"
        )


def _first_reason(own: str) -> str:
    """The first text that a process has, with its process; '' if none has one."""
    texts = processes.gather_texts(own)
    for number, text in enumerate(texts):
        if text:
            return f"process {number}: {text}" if len(texts) > 1 else text
    return ""


def open_quarantine(
    config: config_dict.ConfigDict, source: Source, workdir: str | None = None
) -> Quarantine:
    """The list of a run's bad images, with those that `hold_in_memory` found.

    Args:
      config: valid.
      source: the training images.
      workdir: the run directory; None keeps no list on disk.

    Raises:
      DataError: more images are bad than `data.bad_records_max` allows.
    """
    quarantine = Quarantine(
        workdir,
        dataset=source.name,
        describe=source.describe,
        num_examples=source.num_examples,
        max_share=config.data.bad_records_max if _replaces(config) else 1.0,
    )
    for error in bad_records.of(source):
        quarantine.add(error, 0)
    return quarantine


def hold_in_memory(
    config: config_dict.ConfigDict, source: Source, num_views: int = NUM_VIEWS
) -> Source:
    """The training images, decoded into memory if they fit and the config allows it.

    Raises:
      DataError: `data.memory_mb` is too small for batches of `num_views` views; or
        views are to be computed on the accelerator, and the images do not fit there or
        are synthetic; or an image cannot be read, and `data.on_bad_record` is 'stop'.
    """
    make_buffers(config, batch_size=config.batch.batch_size, num_views=num_views)
    limit_mb = config.data.in_memory_mb
    held = in_memory.hold(
        source,
        limit_mb=limit_mb,
        on_bad_record=_pass_over if _replaces(config) else bad_records.stop,
    )
    if held is not None and (bad := bad_records.of(held)):
        _LOG.warning(
            "%s: %d of %d images cannot be read, and the next good ones take their "
            "place.",
            source.name,
            len(bad),
            source.num_examples,
        )
    if config.augment.placement != "accelerator":
        return held or source
    if isinstance(held, ArraySource):
        in_memory.whole(held)  # raises where it cannot be held
        return held
    why = (
        f"take more than config.data.in_memory_mb={limit_mb}"
        if held is None
        else "have different sizes"
    )
    raise DataError(
        f"config.augment.placement='accelerator': the images of {source.name} {why}; "
        "'host_crop' leaves all but the crop to the accelerator"
    )


def _replaces(config: config_dict.ConfigDict) -> bool:
    return config.data.on_bad_record == "replace"


def local_batches(
    config: config_dict.ConfigDict,
    source: Source,
    start_step: int,
    *,
    num_views: int = NUM_VIEWS,
    compiled: bool | None = None,
    quarantine: Quarantine | None = None,
) -> Iterator[pipeline.Batch]:
    """This host's slice of each step's batch: views, or crops with their draws.

    `compiled` is from `use_compiled_views` and `quarantine` from `open_quarantine`,
    which are called where they are None.
    """
    quarantine = quarantine or open_quarantine(config, source)
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
    batches = pipeline.train_batches(
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
        on_bad_record=quarantine.add if _replaces(config) else bad_records.stop,
        known_bad=quarantine.known if _replaces(config) else (),
        balanced=class_balance.order_of(config, source),
    )
    return stalls.watched(batches, source.name)


def global_batches(
    config: config_dict.ConfigDict,
    source: Source,
    start_step: int,
    mesh: Mesh,
    num_views: int = NUM_VIEWS,
    compiled: bool | None = None,
    quarantine: Quarantine | None = None,
) -> Iterator[Batch]:
    """The train step's inputs from `start_step` on.

    Batches split over the devices; where the devices compute the views from the whole
    dataset, the dataset itself, replicated, at every step.
    """
    if config.augment.placement == "accelerator":
        assert isinstance(source, ArraySource)  # by `hold_in_memory`
        images, labels = in_memory.whole(source)
        arrays = {"images": images, "labels": labels}
        return itertools.repeat(parallel.put(parallel.replicated(mesh), arrays))
    batches = local_batches(
        config,
        source,
        start_step,
        num_views=num_views,
        compiled=compiled,
        quarantine=quarantine,
    )
    return (parallel.shard_batch(mesh, batch) for batch in batches)
