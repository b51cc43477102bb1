"""The formats of `simclr_jax.export`.

To add a format, write one function that writes its weights, and add one line to
`FORMATS`. Tensor names that no other format has need a function that reads them too:
every export is opened again and compared before it is kept.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from simclr_jax.errors import ConfigError
from simclr_jax.models.simclr import Tree
from simclr_jax.weights import huggingface, jax_formats, torch_formats
from simclr_jax.weights.encoder import PretrainedEncoder

# Settings of an encoder -> reasons why a format cannot express it.
Limits = Callable[[dict[str, Any]], list[str]]


@dataclasses.dataclass(frozen=True)
class Format:
    """A kind of exported folder.

    Attributes:
      write: (folder, encoder from `encoder.without_heads`) -> the lines of Python that
        open the folder, for the model card, with `descriptions.FOLDER` as its name;
        writes the weights.
      read: (folder, settings) -> variables; None if they are inside a program.
      read_heads: (folder, their shapes) -> variables of classifier and head below it;
        None as for `read`.
      limits: the checks of what the format can express.
      library: the library that opens the folder; '' for this package or JAX.
      normalizes: whether the exported encoder subtracts the mean and divides by the
        standard deviation.
      remark: for the model card, after the lines.
      resizer: the library's resizing, for the model card; a subject for "resizes".
    """

    write: Callable[[pathlib.Path, PretrainedEncoder], str]
    read: Callable[[pathlib.Path, dict[str, Any]], Tree] | None
    read_heads: Callable[[pathlib.Path, Tree], Tree] | None = None
    limits: tuple[Limits, ...] = ()
    library: str = ""
    normalizes: bool = True
    remark: str = ""
    resizer: str = ""


FORMATS = {
    "torchvision": Format(
        write=torch_formats.write_torchvision,
        read=torch_formats.read,
        read_heads=torch_formats.read_classifier,
        limits=(torch_formats.limits, torch_formats.width_limits),
        library="torchvision",
        normalizes=False,
        remark="For a new classifier, assign one to `fc` afterwards.",
        resizer="torchvision's `Resize`, like PIL,",
    ),
    "timm": Format(
        write=torch_formats.write_timm,
        read=torch_formats.read,
        read_heads=torch_formats.read_classifier,
        limits=(
            torch_formats.limits,
            torch_formats.width_limits,
            torch_formats.stem_limits,
        ),
        library="timm",
        normalizes=False,
        remark="timm's `num_classes=` with another number makes a new classifier.",
        resizer="timm's transform crops after resizing, which is the same up to a "
        "pixel; it",
    ),
    "huggingface": Format(
        write=huggingface.write,
        read=huggingface.read,
        read_heads=huggingface.read_classifier,
        limits=(torch_formats.limits, torch_formats.stem_limits),
        library="transformers",
        normalizes=False,
        resizer="The image processor crops after resizing, which is the same up to a "
        "pixel; it",
    ),
    "safetensors": Format(
        write=jax_formats.write_safetensors,
        read=jax_formats.read_safetensors,
        read_heads=jax_formats.read_safetensors_heads,
    ),
    "stablehlo": Format(
        write=jax_formats.write_stablehlo,
        read=None,
        limits=(jax_formats.program_limits,),
        remark="The program takes any number of images, runs on "
        f"{', '.join(jax_formats.PLATFORMS)}, needs only JAX, contains the weights and "
        "multiplies at the highest precision.",
    ),
}


def check_name(name: str) -> None:
    """Raises ConfigError unless `name` is a format."""
    if name not in FORMATS:
        raise ConfigError(f"--format={name}: must be one of {', '.join(FORMATS)}")


def check(name: str, settings: dict[str, Any]) -> None:
    """Checks that a format can express an encoder.

    Args:
      name: of the format.
      settings: of the encoder, as in `encoder.settings_of`.

    Raises:
      ConfigError: it cannot; gives the reasons and the formats that can.
    """
    reasons = _reasons(name, settings)
    if reasons:
        able = [other for other in FORMATS if not _reasons(other, settings)]
        raise ConfigError(
            f"--format={name}: cannot express this encoder, which has "
            f"{' and '.join(reasons)}; formats that can: {', '.join(able)}"
        )


def _reasons(name: str, settings: dict[str, Any]) -> list[str]:
    return [reason for limit in FORMATS[name].limits for reason in limit(settings)]
