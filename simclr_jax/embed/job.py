"""The steps of the command: checks, features, neighbours, files."""

import dataclasses
import importlib.metadata
import logging
import math
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from simclr_jax import parallel, paths
from simclr_jax.data.sources import bad_records, kept, registry
from simclr_jax.data.sources.base import Source
from simclr_jax.embed import outputs, writing
from simclr_jax.embed.extraction import PART_IMAGES, Extraction
from simclr_jax.embed.parts import Parts
from simclr_jax.errors import BadRecord, ConfigError, RunFailed
from simclr_jax.parallel import processes
from simclr_jax.weights import encoder as encoders
from simclr_jax.weights import load
from simclr_jax.weights.encoder import PretrainedEncoder
from simclr_jax.weights.load import EncoderProgram

_LOG = logging.getLogger(__name__)
# Of the files of parts.
_FORMAT = 1
# Datasets whose split is the whole unless one is named.
_WHOLE = ("folder", "prepared")
_PATIENCE_SECS = 7 * 24 * 3600


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags of the command; see `__main__.py`."""

    workdir: str
    dataset: str
    output: str
    split: str | None = None
    data_dir: str | None = None
    image_key: str = "image"
    label_key: str = "label"
    step: int | None = None
    layer: int = 0
    batch_size: int = 256
    neighbours: int = 0
    duplicates_above: float = 0.98
    overwrite: bool = False


def embed(options: Options) -> str:
    """Writes the features of a dataset; every process of a job has to call it.

    Returns:
      What was written, in words.

    Raises:
      ConfigError, DataError: a flag or the dataset cannot be used.
      CheckpointNotFound, CheckpointError: there are no weights, or they are damaged.
      RunFailed: features are not finite.
    """
    parts = Parts(options.output)
    with processes.all_or_none():
        _check(options, parts)
        source = _open(options)
    processes.require_equal(
        "the dataset", f"{source.name} of {source.num_examples} images"
    )
    loaded = load.load(options.workdir, step=options.step)
    mesh = parallel.create_mesh()
    extraction = Extraction(
        source=source,
        encode=_encode(loaded, options.layer, mesh),
        preprocessing=loaded.preprocessing,
        batch_size=math.ceil(options.batch_size / mesh.size) * mesh.size,
        mesh=mesh,
    )
    is_main = processes.is_main()
    with processes.all_or_none():
        if is_main:
            parts.open(_describe(options, source, loaded))
    for number, part in extraction.parts(_missing(parts, extraction.num_parts)):
        with processes.all_or_none():
            if is_main:
                parts.write(number, part)
    summary = ""
    if is_main:
        summary = writing.write_all(
            options.output,
            source,
            lambda: parts.read_all(extraction.num_parts),
            k=options.neighbours,
            duplicates_above=options.duplicates_above,
        )
        parts.delete()
    # The search takes longer than collectives wait.
    if not processes.agreement().meet("embedded", timeout_secs=_PATIENCE_SECS):
        raise RunFailed("process 0 has ended before its files were written")
    return summary


def _check(options: Options, parts: Parts) -> None:
    """Raises ConfigError for what can be known without opening the dataset."""
    outputs.check_name(options.output)
    paths.check_reachable(options.output, flag="output")
    threshold = options.duplicates_above
    if not 0 < threshold <= 1:
        raise ConfigError(
            f"--duplicates_above={threshold}: must be more than 0 and at most 1"
        )
    if paths.as_path(options.output).is_dir():
        raise ConfigError(f"--output={options.output}: must be a file, is a folder")
    lists = [
        outputs.companion(options.output, name)
        for name in (outputs.BROKEN, outputs.NEIGHBOURS, outputs.DUPLICATES)
    ]
    # Lists alone are those of a command that was stopped, whose parts are there.
    held = [options.output] if parts.exists() else [options.output, *lists]
    for path in held:
        if not options.overwrite and outputs.exists(path):
            raise ConfigError(
                f"--output={options.output}: {path} exists; --overwrite replaces it"
            )


def _open(options: Options) -> Source:
    """The dataset; files that are no images remain in it, and are known as broken."""

    def pass_over(_error: BadRecord, _step: int) -> None:
        """The source keeps the errors."""

    kind = options.dataset.partition(":")[0]
    split = options.split
    if split is None:
        split = "all"
        whole = kind in _WHOLE or kind == "synthetic"
        if not whole and not (kind == "npz" and "{split}" not in options.dataset):
            raise ConfigError(f"--split: must be given for --dataset={options.dataset}")
    source = registry.open_source(
        options.dataset,
        split=split,
        data_dir=options.data_dir,
        image_key=options.image_key,
        label_key=options.label_key,
        sharing=kept.Sharing(*processes.place()),
        on_bad_record=pass_over,
    )
    most = source.num_examples - len(bad_records.of(source)) - 1
    if options.neighbours > max(0, most):
        raise ConfigError(
            f"--neighbours={options.neighbours}: must be less than the {most + 1} "
            f"images of {source.name} that can be read"
        )
    return source


def _encode(
    loaded: PretrainedEncoder | EncoderProgram, layer: int, mesh: jax.sharding.Mesh
) -> jax.tree_util.Partial:
    """From prepared images [B, S, S, 3] to features [B, D]."""
    if isinstance(loaded, PretrainedEncoder):
        try:
            return loaded.layer(layer)
        except ValueError as error:
            raise ConfigError(f"--{error}") from error
    if layer != 0:
        raise ConfigError(
            f"--layer={layer}: must be 0, since a StableHLO export has h alone"
        )
    # A program for one device, which each device runs on its part.
    split = parallel.SPLIT
    return jax.tree_util.Partial(
        parallel.on_each_device(loaded.program.call, mesh, (split,), split)
    )


def _describe(
    options: Options, source: Source, loaded: PretrainedEncoder | EncoderProgram
) -> dict[str, Any]:
    """All that features depend on, except for rounding."""
    if isinstance(loaded, PretrainedEncoder):
        heads = loaded.heads if options.layer else {}
        weights = encoders.checksum({"encoder": loaded.variables, "heads": heads})
        settings = encoders.settings_of(loaded.encoder)
    else:
        weights = encoders.checksum(
            {"program": np.frombuffer(loaded.program.mlir_module_serialized, np.uint8)}
        )
        settings = {}
    try:
        version = importlib.metadata.version("simclr_jax")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    return {
        "format": _FORMAT,
        "version": version,
        "weights": weights,
        "encoder": settings,
        "config_hash": loaded.config_hash,
        "layer": options.layer,
        "preprocessing": dataclasses.asdict(loaded.preprocessing),
        "dataset": options.dataset,
        "images": source.name,
        "content": source.listing().fingerprint,
        "keys": [options.image_key, options.label_key],
        "part_images": PART_IMAGES,
    }


def _missing(parts: Parts, count: int) -> list[int]:
    """The parts that are to be computed, as process 0 sees them."""
    is_missing = np.ones(count, bool)
    with processes.all_or_none():
        if processes.is_main():
            is_missing[:] = [not parts.has(number) for number in range(count)]
    if jax.process_count() > 1:
        is_missing = multihost_utils.broadcast_one_to_all(is_missing)
    missing: list[int] = np.flatnonzero(is_missing).tolist()
    if 0 < len(missing) < count or (count and not missing):
        _LOG.info(
            "Continuing: %d of %d parts are in %s.",
            count - len(missing),
            count,
            parts.folder,
        )
    return missing
