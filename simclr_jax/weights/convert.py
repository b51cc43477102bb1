"""Turns a file of somebody else's weights into a run directory."""

import json
import os
from typing import Any

from ml_collections import config_dict

from simclr_jax.config import rules
from simclr_jax.errors import ConfigError, DataError
from simclr_jax.runs import atomic, directory
from simclr_jax.runs.checkpoints import Checkpoints
from simclr_jax.training.build import describe
from simclr_jax.weights import google, torch_files, torchvision
from simclr_jax.weights.imported import ImportedWeights

RECEIPT = "import.json"
_TORCH_SUFFIXES = (".pth", ".pt", ".tar", ".bin", ".safetensors")


def read(
    path: str,
    *,
    ema: bool = False,
    prefix: str | None = None,
    normalization: str | None = None,
    resize: str | None = None,
    ignore_unexpected: bool = False,
) -> ImportedWeights:
    """Reads weights from any file that is understood.

    Args:
      path: of a TensorFlow checkpoint or SavedModel of google-research/simclr, or of a
        .safetensors or .pth file with torchvision's names.
      ema: see `google.load_google_checkpoint`.
      prefix: see `torchvision.from_torchvision`.
      normalization: likewise; must be given for such files, and only for them.
      resize: how evaluation images were resized in training; by the kind of file if
        None.
      ignore_unexpected: leave tensors out that have no place, instead of refusing.

    Raises:
      ConfigError: an option does not go with the file.
      DataError: the file cannot be read, or does not fit.
    """
    named_torch = path.endswith(_TORCH_SUFFIXES)
    if named_torch and not os.path.isfile(path):
        raise DataError(f"--input={path}: there is no such file")
    is_torch = torch_files.is_torch_file(path)
    if named_torch and not is_torch:
        raise DataError(
            f"--input={path}: is no file of PyTorch's, though its name says so"
        )
    if not is_torch:
        for name, value in (("prefix", prefix), ("normalization", normalization)):
            if value is not None:
                raise ConfigError(
                    f"--{name}={value}: must be left out for {path}, since it is for "
                    "torchvision-named weights"
                )
        return google.load_google_checkpoint(
            path, ema=ema, resize=resize, ignore_unexpected=ignore_unexpected
        )
    if ema:
        raise ConfigError(f"--ema: must be left out for {path}, a PyTorch file")
    if normalization is None:
        raise ConfigError(
            "--normalization: must be given for torchvision-named weights, since the "
            "file does not tell: imagenet if pixels had ImageNet's mean and standard "
            "deviation taken out, none if they were in [0, 1]"
        )
    return torchvision.from_torchvision(
        torch_files.read_state_dict(path),
        normalization=normalization,
        prefix=prefix,
        resize=resize,
        file=path,
        ignore_unexpected=ignore_unexpected,
    )


def complete_config(
    config: config_dict.ConfigDict, weights: ImportedWeights
) -> config_dict.ConfigDict:
    """A copy of a config with the encoder, head and resizing of the weights.

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
        config.probe.enabled = weights.num_classes is not None
        # Of the computation; the weights are float32.
        config.encoder.compute_dtype = "float32"
    rules.validate(config)
    return config


def write(
    workdir: str, config: config_dict.ConfigDict, weights: ImportedWeights, source: str
) -> dict[str, Any]:
    """Writes a run directory; it is there as a whole or not at all.

    Args:
      workdir: must not be there, or be empty.
      config: from `complete_config`.
      weights: from `read`.
      source: where they come from.

    Returns:
      What was taken over, ignored and assumed, as written to `import.json`.

    Raises:
      ConfigError: the directory holds something, or cannot be written.
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
    """The receipt for people to read."""
    encoder, head = receipt["encoder"], receipt["head"]
    lines = [
        f"{receipt['layout']}, step {receipt['step']}",
        "encoder    " + ", ".join(f"{key} {value}" for key, value in encoder.items()),
    ]
    if head["kind"] == "none":
        lines.append("head       none in the file: z is h")
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
