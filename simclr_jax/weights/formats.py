"""The formats of `simclr_jax.export`, and what each can express."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from simclr_jax.errors import ConfigError
from simclr_jax.models.simclr import Tree
from simclr_jax.weights import jax_formats, torch_formats
from simclr_jax.weights.encoder import PretrainedEncoder

# Settings of an encoder -> reasons why a format cannot express it.
Limits = Callable[[dict[str, Any]], list[str]]


@dataclasses.dataclass(frozen=True)
class Format:
    """A kind of folder.

    Attributes:
      limits: what cannot be expressed.
      write: writes the weights of an encoder from `folder.exact` into a folder.
      read: (folder, settings) -> variables; None where they are inside a program.
      library: that opens it, beside this package; '' for JAX itself.
      normalizes: whether what is exported takes out mean and standard deviation.
    """

    limits: tuple[Limits, ...]
    write: Callable[[pathlib.Path, PretrainedEncoder], None]
    read: Callable[[pathlib.Path, dict[str, Any]], Tree] | None
    library: str = ""
    normalizes: bool = True


FORMATS = {
    "torchvision": Format(
        limits=(torch_formats.limits, torch_formats.width_limits),
        write=torch_formats.write_torchvision,
        read=torch_formats.read_torch,
        library="torchvision",
        normalizes=False,
    ),
    "timm": Format(
        limits=(
            torch_formats.limits,
            torch_formats.width_limits,
            torch_formats.stem_limits,
        ),
        write=torch_formats.write_timm,
        read=torch_formats.read_torch,
        library="timm",
        normalizes=False,
    ),
    "huggingface": Format(
        limits=(torch_formats.limits, torch_formats.stem_limits),
        write=torch_formats.write_huggingface,
        read=torch_formats.read_huggingface,
        library="transformers",
        normalizes=False,
    ),
    "safetensors": Format(
        limits=(),
        write=jax_formats.write_safetensors,
        read=jax_formats.read_safetensors,
    ),
    "stablehlo": Format(
        limits=(jax_formats.program_limits,),
        write=jax_formats.write_stablehlo,
        read=None,
    ),
    "orbax": Format(
        limits=(), write=jax_formats.write_orbax, read=jax_formats.read_orbax
    ),
}


def check(name: str, settings: dict[str, Any]) -> None:
    """Checks that a format can express an encoder.

    Args:
      name: of the format.
      settings: of the encoder, as in `folder.settings_of`.

    Raises:
      ConfigError: it cannot; says why, and which formats can.
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
