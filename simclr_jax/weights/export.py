"""From a run to an exported folder, which appears as a whole or not at all."""

import functools
import logging

from simclr_jax import paths
from simclr_jax.errors import ConfigError
from simclr_jax.runs import atomic
from simclr_jax.weights import (
    classifiers,
    descriptions,
    formats,
    jax_formats,
    model_card,
    parity,
    torch_formats,
    torch_peers,
)
from simclr_jax.weights import encoder as encoders
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
    classifier: bool | None = None,
    pyramid: bool = False,
) -> Parity:
    """Writes the encoder of a run for another library.

    Args:
      workdir: the run directory.
      name: of the format, in `formats.FORMATS`.
      output: the folder to write; must be new or empty.
      step: the checkpoint; the newest if None.
      pickled: write `model.pth` too, for torchvision.
      images: a folder of images to compare features on; if None, images of the run's
        test split, or photographs if it cannot be read.
      classifier: whether to write the classifier; None writes that of a fine-tuned or
        distilled run.
      pyramid: write `pyramid.stablehlo` too, for stablehlo.

    Returns:
      The differences between features of the export and of the original.

    Raises:
      ConfigError: a flag is wrong, or the format cannot express the encoder.
      CheckpointNotFound, CheckpointError, DataError: an input cannot be read.
      ExportFailed: the features differ; nothing is written.
    """
    atomic.check_free(output, flag="output")
    formats.check_name(name)
    _check_pickled(name, pickled)
    if pyramid and name != "stablehlo":
        raise ConfigError(f"--pyramid: must be left out with --format={name}")
    samples = parity.images_of_folder(images) if images is not None else None
    pretrained = encoders.load(
        workdir, step=step, check=functools.partial(formats.check, name)
    )
    original = classifiers.for_export(pretrained, classifier, name=name)
    samples = samples or parity.images_of_run(pretrained.config)

    with atomic.filled_locally(output, flag="output") as unfinished:
        _LOG.info("Writing %s ...", name)
        format_ = formats.FORMATS[name]
        lines = format_.write(unfinished, original)
        if pickled:
            torch_peers.write_pickled(unfinished)
        if pyramid:
            jax_formats.write_pyramid(unfinished, original)
        descriptions.write(
            unfinished, original, name=name, normalizes=format_.normalizes
        )
        _LOG.info("Comparing features on %s ...", samples.description)
        result = parity.measure(name, unfinished, original, samples)
        descriptions.write_json(unfinished / descriptions.PARITY, result.as_json())
        text = model_card.text(
            format_, original, result, lines=lines, workdir=paths.as_path(workdir)
        )
        folder_name = model_card.in_quotes(paths.absolute(output).name)
        text = text.replace(descriptions.FOLDER, folder_name)
        (unfinished / descriptions.CARD).write_text(text, encoding="utf-8")
    return result


def _check_pickled(name: str, pickled: bool) -> None:
    """Raises ConfigError if `--pth` does not go with the format or needs PyTorch."""
    if not pickled:
        return
    if name != "torchvision":
        raise ConfigError(f"--pth: must be left out with --format={name}")
    if package := torch_peers.missing("torch"):
        raise ConfigError(
            f"--pth: needs PyTorch to write the file, and {package} is not installed; "
            f"{torch_formats.WEIGHTS}, which is always written, has the same tensors"
        )
