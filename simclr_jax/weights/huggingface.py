"""The names of Hugging Face's `ResNetModel`, from torchvision's and back."""

import re
from collections.abc import Mapping

import numpy as np

from simclr_jax.errors import DataError
from simclr_jax.models.simclr import Tree
from simclr_jax.weights.torchvision import to_torchvision

_KINDS = {"conv": "convolution", "bn": "normalization"}
_SHORTCUT = {"downsample.0": "convolution", "downsample.1": "normalization"}
_KINDS_BACK = {theirs: kind for kind, theirs in _KINDS.items()}
_SHORTCUT_BACK = {theirs: name for name, theirs in _SHORTCUT.items()}
_BLOCK = r"layer(\d)\.(\d+)\.(?:(conv|bn)(\d)|(downsample\.[01]))\.(\w+)"
_BLOCK_BACK = (
    r"encoder\.stages\.(\d)\.layers\.(\d+)\."
    r"(?:layer\.(\d)|shortcut)\.(convolution|normalization)\.(\w+)"
)


def to_huggingface(variables: Tree) -> dict[str, np.ndarray]:
    """An encoder's weights under the names of `transformers.ResNetModel`.

    Args:
      variables: {'params', 'batch_stats'} of an encoder with the ImageNet stem.

    Returns:
      Arrays by name, ordered as PyTorch does.

    Raises:
      ValueError: torchvision, whose architecture it is, has no names for it either.
    """
    arrays = to_torchvision(variables)
    return {_theirs(name): array for name, array in arrays.items()}


def to_torchvision_names(
    state_dict: Mapping[str, np.ndarray], *, file: str
) -> dict[str, np.ndarray]:
    """Such a state dict under torchvision's names.

    Raises:
      DataError: a name is not `ResNetModel`'s.
    """
    return {_ours(name, file): array for name, array in state_dict.items()}


def _theirs(name: str) -> str:
    if match := re.fullmatch(r"(conv|bn)1\.(\w+)", name):
        return f"embedder.embedder.{_KINDS[match[1]]}.{match[2]}"
    match = re.fullmatch(_BLOCK, name)
    assert match, name
    group, block, kind, number, shortcut, leaf = match.groups()
    prefix = f"encoder.stages.{int(group) - 1}.layers.{block}"
    if shortcut:
        return f"{prefix}.shortcut.{_SHORTCUT[shortcut]}.{leaf}"
    return f"{prefix}.layer.{int(number) - 1}.{_KINDS[kind]}.{leaf}"


def _ours(name: str, file: str) -> str:
    if match := re.fullmatch(r"embedder\.embedder\.(\w+)\.(\w+)", name):
        if match[1] in _KINDS_BACK:
            return f"{_KINDS_BACK[match[1]]}1.{match[2]}"
    elif match := re.fullmatch(_BLOCK_BACK, name):
        stage, block, number, kind, leaf = match.groups()
        prefix = f"layer{int(stage) + 1}.{block}"
        if number is None:
            return f"{prefix}.{_SHORTCUT_BACK[kind]}.{leaf}"
        return f"{prefix}.{_KINDS_BACK[kind]}{int(number) + 1}.{leaf}"
    raise DataError(f"file {file}: {name} is no name of Hugging Face's ResNetModel")
