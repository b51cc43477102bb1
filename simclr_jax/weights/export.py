"""From a run to an exported folder, which is there as a whole or not at all."""

import logging
import os
import pathlib

from simclr_jax.errors import ConfigError
from simclr_jax.runs import atomic, checkpoints
from simclr_jax.weights import encoder as encoders
from simclr_jax.weights import export_folder as folders
from simclr_jax.weights import formats, model_card, parity, torch_formats, torch_peers
from simclr_jax.weights import parity_images as real_images
from simclr_jax.weights.parity import Parity

_LOG = logging.getLogger(__name__)


def export(
    workdir: str,
    name: str,
    output: str,
    *,
    step: int | None = None,
    pickled: bool = False,
    images: str | None = None,
) -> Parity:
    """Writes the encoder of a run for another library.

    Args:
      workdir: the run directory.
      name: of the format, in `formats.FORMATS`.
      output: the folder to write; must not be there, or be empty.
      step: the checkpoint; the newest when None.
      pickled: write `model.pth` too, for torchvision.
      images: a folder of images to compare features on; those of the run's test split,
        or else photographs, when None.

    Returns:
      How the features of the export compare with the original's.

    Raises:
      ConfigError: a flag is wrong, or the format cannot express the encoder.
      CheckpointNotFound, CheckpointError, DataError: something cannot be read.
      ExportFailed: the export does not give the original's features; nothing is left.
    """
    atomic.check_free(output, flag="output")
    _check_pickled(name, pickled)
    checkpoint, step = checkpoints.open_for_reading(workdir, step)
    formats.check(name, checkpoints.read_description(checkpoint)["encoder"])
    given = real_images.of_folder(images) if images is not None else None
    pretrained = encoders.load(workdir, step=step)
    compared_on, about = given or real_images.of_run(pretrained.config)
    original = folders.exact(pretrained)
    # For the receipts: what evaluation took the checksum of.
    checksum = encoders.checksum(original.variables)

    with atomic.filled(output, flag="output") as unfinished:
        _LOG.info("Writing %s ...", name)
        format_ = formats.FORMATS[name]
        format_.write(unfinished, original)
        if pickled:
            torch_peers.write_pickled(unfinished)
        folders.write_descriptions(
            unfinished, original, name=name, inside=format_.normalizes
        )
        _LOG.info("Comparing features on %s ...", about)
        result = parity.measure(name, unfinished, original, compared_on, about)
        folders.write_json(unfinished / folders.PARITY, result.as_json())
        text = model_card.text(
            name,
            original,
            result,
            workdir=workdir,
            checksum=checksum,
            place=pathlib.Path(os.path.realpath(output)).name,
        )
        (unfinished / folders.CARD).write_text(text, encoding="utf-8")
    return result


def _check_pickled(name: str, pickled: bool) -> None:
    """Raises ConfigError where `--pth` is of no use, or cannot be done."""
    if not pickled:
        return
    if name != "torchvision":
        raise ConfigError(f"--pth: must be left out with --format={name}")
    if package := torch_peers.missing("torch"):
        raise ConfigError(
            f"--pth: needs PyTorch to write the file, and {package} is not installed; "
            f"{torch_formats.WEIGHTS}, which is written anyway, has the same tensors"
        )
