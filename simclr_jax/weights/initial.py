"""Weights that a pretraining starts from: `pretrain --init_from`.

The config's group `pretrain` records path and checksum. A run that has a checkpoint
does not read the path again.
"""

import dataclasses
import functools
import logging
import pathlib
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from ml_collections import config_dict

from simclr_jax import models, parallel, paths
from simclr_jax.config import rules
from simclr_jax.config.resolve import suitable_stem
from simclr_jax.errors import CheckpointError, ConfigError, DataError, InvalidInput
from simclr_jax.models.simclr import Tree
from simclr_jax.parallel import processes
from simclr_jax.runs import directory, orbax_paths, plans
from simclr_jax.training import build, finetuning, loop
from simclr_jax.weights import convert, descriptions, library_folders, load, torch_files
from simclr_jax.weights.encoder import checksum, settings_of
from simclr_jax.weights.named_tensors import encoder_shapes

_LOG = logging.getLogger(__name__)

_GROUP = "pretrain"
# Of `models.create_encoder`: what the weights were trained with.
_MUST_FIT = (
    "depth",
    "width",
    "sk_ratio",
    "se_ratio",
    "stem",
    "first_group_projection",
    "max_pool_padding",
    "normalization",
    "batch_norm_epsilon",
)
_TENSORFLOW = ("checkpoint", "saved_model.pb")


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """Weights to start from.

    Attributes:
      path: of the weights.
      variables: {'params', 'batch_stats'} of the encoder, float32.
      heads: those of projection head and classifier, by part.
      step: number of updates behind them; 0 if it is not recorded.
      resize: of their evaluation images.
    """

    path: str
    variables: Tree
    heads: Tree
    step: int
    resize: str


def pretraining_job(
    config: config_dict.ConfigDict, path: str | None, workdir: str
) -> loop.TrainingJob:
    """As `loop.pretraining_job`, from given weights; arguments as for `open_for`."""
    config = directory.as_recorded(config, workdir)
    weights = open_for(config, path, workdir)
    return initialized(loop.pretraining_job(config), weights)


def open_for(
    config: config_dict.ConfigDict, path: str | None, workdir: str
) -> InitialWeights | None:
    """Records in a config what its run starts from, and reads it for a new run.

    Every process has to call it.

    Args:
      config: as in `configs/base.py`; gets the group `pretrain`.
      path: a run, one of its checkpoints, an export, or a file or folder that
        `convert.read` takes; None: random weights, or those that the run began with.
      workdir: the run directory.

    Returns:
      None if the run has a checkpoint, or starts from random weights.

    Raises:
      ConfigError: the run began with other weights, or they do not fit the config.
      DataError, CheckpointError, CheckpointNotFound: they cannot be read, or are not
        those that the run began with.
    """
    with processes.all_or_none():
        rules.validate(config)
        recorded = _recorded(workdir)
        _check_same(path, recorded, workdir)
        path = path or (recorded or {}).get("init_from")
        if path is None:
            return None
        if recorded and orbax_paths.complete_steps(plans.folder_in_force(workdir)):
            _record(config, recorded)
            return None
        weights = _read(path, config)
        digest = checksum({"encoder": weights.variables, "heads": weights.heads})
        if recorded and recorded.get("init_checksum") != digest:
            raise DataError(
                f"--init_from={path}: has other weights than when the run in {workdir} "
                "was started"
            )
        _record(config, {"init_from": path, "init_checksum": digest})
        return weights


def initialized(
    job: loop.TrainingJob, weights: InitialWeights | None
) -> loop.TrainingJob:
    """A pretraining job that starts from weights, and says what it takes from them.

    Args:
      job: from `loop.pretraining_job`, with the config of `open_for`.
      weights: from `open_for`.
    """
    if _GROUP not in job.config:
        return job
    if weights is None:  # a checkpoint will be restored
        refuse = functools.partial(_missing_checkpoint, job.config.pretrain.init_from)
        return dataclasses.replace(job, initialize=jax.tree_util.Partial(refuse))
    size = job.config.image_size
    drawn = jax.eval_shape(
        job.parts.model.init, jax.random.key(0), jnp.zeros((1, size, size, 3))
    )
    names = ("params", "batch_stats")
    own = {name: tree.get("head") for name, tree in zip(names, drawn, strict=True)}
    other = {name: weights.heads.get(name, {}).get("head") for name in names}
    fits = own["params"] is not None and _shapes(own) == _shapes(other)
    _tell(weights, fits=fits, source=_shapes(other), head=_shapes(own))
    heads = {name: {"head": other[name]} for name in names if fits}
    weights = dataclasses.replace(weights, heads=heads)
    put = functools.partial(
        jax.device_put, device=parallel.replicated(parallel.create_mesh())
    )
    initialize = finetuning.initialize_from(put(weights.variables), put(heads))
    return dataclasses.replace(job, initialize=initialize)


def _missing_checkpoint(path: str, _: Any) -> NoReturn:
    raise CheckpointError(f"the checkpoints of the run from {path} have disappeared")


def _recorded(workdir: str) -> dict[str, Any] | None:
    """What the run in a directory started from; None if there is no run."""
    if not directory.has_config(workdir):
        return None
    recorded = directory.read_config(workdir).get(_GROUP)
    return recorded if isinstance(recorded, dict) else {}


def _check_same(
    path: str | None, recorded: dict[str, Any] | None, workdir: str
) -> None:
    if path is None or recorded is None:
        return
    old = recorded.get("init_from")
    if old is None or paths.absolute(old) != paths.absolute(path):
        raise ConfigError(
            f"--init_from={path}: --workdir={workdir} holds a run that started from "
            f"{old or 'random weights'}; leave the flag out to resume it, or use a new "
            "workdir"
        )


def _record(config: config_dict.ConfigDict, values: dict[str, Any]) -> None:
    with config.unlocked():
        config[_GROUP] = config_dict.ConfigDict(values)


def _read(path: str, config: config_dict.ConfigDict) -> InitialWeights:
    check = functools.partial(_check_fit, path, config)
    if not _is_foreign(path):
        loaded = load.load_to_train(path, check=check)
        check(settings_of(loaded.encoder))
        resize = loaded.preprocessing.resize
        start = (loaded.variables, loaded.heads, loaded.step, resize)
    else:
        try:
            weights = _import(path, config)
        except InvalidInput as error:
            raise type(error)(
                f"--init_from={path}: {error} (simclr_jax.convert has more flags, and "
                "writes a run to start from)"
            ) from error
        check(weights.encoder_settings)
        trees = {"params": weights.params, "batch_stats": weights.batch_stats}
        heads = {
            name: {part: tree[part] for part in tree if part != "encoder"}
            for name, tree in trees.items()
        }
        start = (weights.variables, heads, weights.step, weights.resize)
    found = InitialWeights(path, *start)
    if found.resize != config.evaluation.resize:
        _LOG.warning(
            "config.evaluation.resize=%r: the weights come with %r.",
            config.evaluation.resize,
            found.resize,
        )
    return found


def _is_foreign(path: str) -> bool:
    """Whether a path is for `convert.read`, and not for `load.load`."""
    location = paths.as_path(path)
    if not location.is_dir():
        index = location.with_name(f"{location.name}.index")
        return location.is_file() or index.is_file()
    if descriptions.is_export(path):
        return False
    names = [entry.name for entry in location.iterdir()]
    return any(
        name in (*_TENSORFLOW, *library_folders.WEIGHTS) or name.endswith(".index")
        for name in names
    )


def _import(path: str, config: config_dict.ConfigDict) -> convert.ImportedWeights:
    with paths.fetched(path) as local:
        export = convert.find_export(local)
        if export is not None:
            return convert.read_export(export, config)[0]
        folder = library_folders.find(local)
        file = pathlib.Path(local if folder is None else folder.file)
        recorded = folder is not None and folder.normalization is not None
        normalization = None
        if not recorded and torch_files.is_torch_file(str(file)):
            normalization = config.encoder.normalization
            _LOG.warning(
                "%s does not record how its images were normalized: "
                "config.encoder.normalization=%r is taken; most weights of PyTorch "
                "need --config.encoder.normalization=imagenet.",
                path,
                normalization,
            )
        return convert.read(local, normalization=normalization)


def _check_fit(
    path: str, config: config_dict.ConfigDict, settings: dict[str, Any]
) -> None:
    """Checks that a config's encoder is that of the weights.

    Raises:
      ConfigError: names the keys that differ, one tensor with both shapes, and what to
        set.
    """
    own = build.encoder_settings(config)
    if own["stem"] == "auto":
        own["stem"] = suitable_stem(config.image_size)
    keys = [key for key in _MUST_FIT if own[key] != settings[key]]
    if own["stem"] == settings["stem"] == "cifar":  # without a max-pool
        keys = [key for key in keys if key != "max_pool_padding"]
    if models.DEPTHS[settings["depth"]][0]:  # projects in either case
        keys = [key for key in keys if key != "first_group_projection"]
    if not keys:
        return
    texts = [
        f"config.encoder.{key}={own[key]} (weights: {settings[key]})" for key in keys
    ]
    ours, theirs = _shapes(encoder_shapes(own)), _shapes(encoder_shapes(settings))
    for name in (*ours, *theirs):
        if ours.get(name) != theirs.get(name):
            texts.append(
                f"{name} has shape {_by(ours.get(name))} (weights: "
                f"{_by(theirs.get(name))})"
            )
            break
    flags = " ".join(f"--config.encoder.{key}={settings[key]}" for key in keys)
    raise ConfigError(
        f"--init_from={path}: does not fit: {', '.join(texts)}; set {flags}"
    )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _by(shape: tuple[int, ...] | None) -> str:
    return "x".join(map(str, shape)) if shape else "none"


def _tell(
    weights: InitialWeights,
    *,
    fits: bool,
    source: dict[str, tuple[int, ...]],
    head: dict[str, tuple[int, ...]],
) -> None:
    """Logs what is taken and what starts fresh."""
    reason = ""
    if not fits and source and head:
        name = next(n for n in (*head, *source) if head.get(n) != source.get(n))
        reason = (
            f" (does not fit: {name} has shape {_by(head.get(name))}, weights: "
            f"{_by(source.get(name))})"
        )
    elif not fits and head:
        reason = " (the weights have none)"
    _LOG.info(
        "Starting from %s (step %d): encoder%s taken; %soptimizer, probe and schedule "
        "start fresh.",
        weights.path,
        weights.step,
        " and projection head" if fits else "",
        "" if fits or not head else f"projection head{reason}, ",
    )
