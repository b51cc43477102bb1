"""Writes weights of other codebases, or exported ones, as a run directory."""

import dataclasses
import json
import os
import pathlib
from typing import Any

from ml_collections import config_dict

from simclr_jax.config import rules
from simclr_jax.errors import ConfigError, DataError
from simclr_jax.models import normalization as normalizations
from simclr_jax.runs import atomic, directory
from simclr_jax.runs.checkpoints import Checkpoints
from simclr_jax.training.build import describe
from simclr_jax.weights import (
    descriptions,
    google,
    jax_formats,
    library_folders,
    load,
    torch_files,
    torch_layouts,
    torchvision,
)
from simclr_jax.weights.encoder import settings_of
from simclr_jax.weights.load import EncoderProgram
from simclr_jax.weights.named_tensors import ImportedWeights

RECEIPT = "import.json"
_TORCH_SUFFIXES = (".pth", ".pt", ".tar", ".bin", ".safetensors")


def read(
    path: str,
    *,
    ema: bool = False,
    key: str | None = None,
    prefix: str | None = None,
    normalization: str | None = None,
    resize: str | None = None,
    ignore_unexpected: bool = False,
) -> ImportedWeights:
    """Reads weights of another codebase.

    Args:
      path: a TensorFlow checkpoint or SavedModel of google-research/simclr, a file of
        PyTorch or safetensors, or a folder of Hugging Face or timm.
      ema: see `google.load_google_checkpoint`.
      key: see `torch_layouts.choose`.
      prefix: see `torch_layouts.choose`.
      normalization: see `torchvision.from_torchvision`; required for PyTorch's files
        where nothing records it, not allowed for TensorFlow's files.
      resize: the resizing of evaluation images in training; if None, it follows from
        the kind of file.
      ignore_unexpected: leave out tensors without a place, instead of an error.

    Raises:
      ConfigError: an option does not go with the file.
      DataError: the file cannot be read, or its tensors do not fit.
    """
    folder = library_folders.find(path)
    file = path if folder is None else folder.file
    has_torch_name = file.endswith(_TORCH_SUFFIXES)
    if has_torch_name and not os.path.isfile(file):
        raise DataError(f"--input={file}: there is no such file")
    is_torch = torch_files.is_torch_file(file)
    if has_torch_name and not is_torch:
        raise DataError(
            f"--input={file}: is not a PyTorch file, in spite of its suffix"
        )
    if is_torch and ema:
        raise ConfigError(f"--ema: must be left out for {path}, a PyTorch file")
    if is_torch:
        return _read_torch(
            file,
            folder,
            key=key,
            prefix=prefix,
            normalization=normalization,
            resize=resize,
            ignore_unexpected=ignore_unexpected,
        )
    for name, value in (
        ("key", key),
        ("prefix", prefix),
        ("normalization", normalization),
    ):
        if value is not None:
            raise ConfigError(
                f"--{name}={value}: must be left out for {path}; it is for "
                "weights of PyTorch"
            )
    return google.load_google_checkpoint(
        path, ema=ema, resize=resize, ignore_unexpected=ignore_unexpected
    )


def _read_torch(
    path: str,
    folder: library_folders.LibraryFolder | None,
    *,
    key: str | None,
    prefix: str | None,
    normalization: str | None,
    resize: str | None,
    ignore_unexpected: bool,
) -> ImportedWeights:
    """As `read`, for a file of PyTorch and what the folder around it says."""
    recorded = folder.normalization if folder else None
    if normalization is not None:
        normalization = _canonical(normalization)
    if recorded is None and normalization is None:
        raise ConfigError(
            f"--normalization: must be given for {path}, a file of PyTorch that does "
            "not record it: imagenet if ImageNet's mean was subtracted and pixels "
            "divided by the standard deviation, none if pixels were in [0, 1], "
            "MEAN/STD such as 0.5/0.5 for others"
        )
    with torch_files.opened(path) as contents:
        tensors, naming = torch_layouts.choose(path, contents, key=key, prefix=prefix)
        arrays = {name: torch_files.array_of(t) for name, t in tensors.items()}
    if None not in (recorded, normalization) and recorded != normalization:
        raise ConfigError(
            f"--normalization={normalization}: must be left out for {path}, which "
            f"comes with {recorded}"
        )
    weights = torchvision.from_naming(
        arrays,
        naming,
        normalization=str(recorded or normalization),
        resize=resize,
        file=path,
        ignore_unexpected=ignore_unexpected,
    )
    if folder is None:
        return weights
    return dataclasses.replace(
        weights, image_size=folder.image_size, crop_proportion=folder.crop_proportion
    )


def _canonical(value: str) -> str:
    try:
        return normalizations.canonical(value)
    except ValueError as error:
        raise ConfigError(f"--normalization={value}: {error}") from error


def find_export(path: str) -> pathlib.Path | None:
    """The exported folder at a path, which may name the folder or its weight file."""
    folder = pathlib.Path(path)
    if folder.name == jax_formats.WEIGHTS:
        folder = folder.parent
    return folder if descriptions.is_export(str(folder)) else None


def read_export(
    folder: pathlib.Path, config: config_dict.ConfigDict | None
) -> tuple[ImportedWeights, config_dict.ConfigDict]:
    """Reads weights and config from an exported folder.

    Args:
      folder: from `find_export`.
      config: for everything that the export does not decide; the exported run's if
        None.

    Returns:
      (weights, the config with their encoder and preprocessing).

    Raises:
      DataError: the folder is damaged, or holds a program.
      ConfigError: the config has a value that breaks a rule.
    """
    pretrained = load.read_export(folder)
    if isinstance(pretrained, EncoderProgram):
        raise DataError(
            f"--input={folder}: is a StableHLO export, a compiled function whose "
            "weights cannot be read; export the run in another format"
        )
    settings = settings_of(pretrained.encoder)
    del settings["dtype"]
    name = descriptions.read_json(folder / descriptions.ENCODER)["format"]
    left_out = "the classifier was left out: fine-tune again, or use the export itself"
    weights = ImportedWeights(
        layout=f"simclr_jax export, {name}",
        encoder_settings=settings,
        head_settings={"kind": "none"},
        num_classes=None,
        params={"encoder": pretrained.variables["params"]},
        batch_stats={"encoder": pretrained.variables["batch_stats"]},
        resize=pretrained.preprocessing.resize,
        step=pretrained.step,
        ignored={},
        unexpected=(),
        notes=(left_out,) if pretrained.model.num_classes else (),
        image_size=pretrained.preprocessing.image_size,
        crop_proportion=pretrained.preprocessing.crop_proportion,
    )
    if config is None:
        config = config_dict.ConfigDict(pretrained.config)
    return weights, complete_config(config, weights)


def complete_config(
    config: config_dict.ConfigDict, weights: ImportedWeights
) -> config_dict.ConfigDict:
    """A copy of a config, with the encoder, head and resizing of the weights.

    Raises:
      ConfigError: the config has a value that breaks a rule.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for key, value in weights.encoder_settings.items():
            config.encoder[key] = value
        for key, value in weights.head_settings.items():
            config.head[key] = value
        config.evaluation.resize = weights.resize
        if weights.image_size is not None:
            config.image_size = weights.image_size
        if weights.crop_proportion is not None:
            config.evaluation.crop_proportion = weights.crop_proportion
        config.probe.enabled = weights.num_classes is not None
        config.encoder.compute_dtype = "float32"
    rules.validate(config)
    return config


def write(
    workdir: str, config: config_dict.ConfigDict, weights: ImportedWeights, source: str
) -> dict[str, Any]:
    """Writes a run directory, as a whole or not at all.

    Args:
      workdir: must be new or empty.
      config: from `complete_config`.
      weights: from `read` or `read_export`.
      source: the path of the weights.

    Returns:
      The content of `import.json`: what was imported, ignored and assumed.

    Raises:
      ConfigError: the directory is not empty, or cannot be written.
    """
    atomic.check_free(workdir, flag="workdir")
    receipt = {
        "source": source,
        "layout": weights.layout,
        "step": weights.step,
        "encoder": weights.encoder_settings,
        "head": weights.head_settings,
        "num_classes": weights.num_classes,
        "resize": weights.resize,
        "ignored": weights.ignored,
        "unexpected": list(weights.unexpected),
        "notes": list(weights.notes),
    }
    with atomic.filled(workdir, flag="workdir") as unfinished:
        checkpoints = Checkpoints(str(unfinished), keep_last=1, keep_every_steps=None)
        try:
            checkpoints.save_weights(
                weights.step,
                weights.params,
                weights.batch_stats,
                describe(config, weights.model),
            )
            checkpoints.wait()
        finally:
            checkpoints.close()
        directory.write_config(str(unfinished), config)
        text = json.dumps(receipt, indent=2) + "\n"
        atomic.write_file(unfinished / RECEIPT, text)
    return receipt


def summary(receipt: dict[str, Any]) -> str:
    """The content of `import.json` as readable lines."""
    encoder, head = receipt["encoder"], receipt["head"]
    lines = [
        f"{receipt['layout']}, step {receipt['step']}",
        "encoder    " + ", ".join(f"{key} {value}" for key, value in encoder.items()),
    ]
    if head["kind"] == "none":
        lines.append("head       none: z is h")
    else:
        lines.append(
            f"head       {head['kind']}, {head['num_layers']} layers, output "
            f"{head['output_dim']}"
        )
    classes = receipt["num_classes"]
    lines.append(f"classifier {f'{classes} classes' if classes else 'none'}")
    lines.append(f"resize     {receipt['resize']}")
    ignored = [f"{count} {kind}" for kind, count in receipt["ignored"].items()]
    lines.append(f"ignored    {', '.join(ignored) or 'nothing'}")
    if receipt["unexpected"]:
        lines.append(f"unexpected {', '.join(receipt['unexpected'])}")
    lines += [f"note       {note}" for note in receipt["notes"]]
    return "\n".join(lines)
