"""The names that PyTorch codebases give to the layers of a ResNet.

A naming is found by one layer that every ResNet has; what comes before it is the
prefix, whatever a codebase calls it: `module.encoder_q.` (MoCo), `backbone.` (DINO,
OpenSelfSup, solo-learn), `_feature_blocks.` (VISSL), `online_encoder.net.` (BYOL).
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from simclr_jax import models
from simclr_jax.errors import DataError
from simclr_jax.weights.layers import Structure
from simclr_jax.weights.torch_files import Contents

# Layer by this package's name, structure of the encoder -> name after the prefix.
LayerName = Callable[[str, Structure], str]

_LANDMARK = "layer1.0.conv1.weight"
_HUGGING_FACE_LANDMARK = "encoder.stages.0.layers.0.layer.0.convolution.weight"
_SIMCLR_V2_LANDMARK = "net.1.blocks.0.net.0.weight"
# nn.Sequential of a ResNet's children: without BatchNorm's ReLU and the max-pool, the
# first group is the third child, with them the fifth.
_SEQUENTIAL = re.compile(r"((?:.*\.)?)([2-4])\.0\.conv1\.weight")
_NUM_LISTED = 8
_HEAD = "head"

PLAIN = [
    Structure(depth, first_group_projection=projection)
    for depth, (bottleneck, _) in models.DEPTHS.items()
    for projection in ((False,) if bottleneck else (False, True))
]
_GOOGLE = [
    Structure(depth, selective=selective, deep_stem=selective)
    for depth, (bottleneck, _) in models.DEPTHS.items()
    if bottleneck
    for selective in (False, True)
]


@dataclasses.dataclass(frozen=True)
class Naming:
    """How a codebase names the layers of a ResNet.

    Attributes:
      title: of the kind of file, for messages.
      prefix: before the names.
      layer: the names after it.
      classifier: the whole name of the linear classifier.
      own: pattern of the names after the prefix that only a ResNet's layers have.
      structures: the encoders that can have such names.
      head: prefix of the projection head's layers; '' if it has none with known names.
    """

    title: str
    prefix: str
    layer: LayerName
    classifier: str
    own: str
    structures: list[Structure]
    head: str = ""


def namings(names: Collection[str]) -> list[Naming]:
    """The ResNets among the names of tensors."""
    found = []
    for name in names:
        if name.endswith(_LANDMARK):
            prefix = name.removesuffix(_LANDMARK)
            shortcut = _shortcut(names, f"{prefix}layer2")
            layer = _torchvision(["layer{}".format, shortcut])
            title, own = "torchvision-named weights", r"(conv|bn|layer)\d+\."
            found.append(Naming(title, prefix, layer, f"{prefix}fc", own, PLAIN))
        elif name.endswith(_HUGGING_FACE_LANDMARK):
            prefix = name.removesuffix(_HUGGING_FACE_LANDMARK)
            outer = f"{prefix.removesuffix('resnet.')}classifier.1"
            title = "Hugging Face's ResNet"
            own = r"(embedder|encoder)\."
            found.append(Naming(title, prefix, _hugging_face, outer, own, PLAIN))
        elif name.endswith(_SIMCLR_V2_LANDMARK):
            prefix = name.removesuffix(_SIMCLR_V2_LANDMARK)
            title = "SimCLRv2 in PyTorch"
            fc, head = f"{prefix}fc", f"{_HEAD}.layers."
            own = r"net\."
            found.append(Naming(title, prefix, _simclr_v2, fc, own, _GOOGLE, head))
        elif naming := _sequential(name, names):
            found.append(naming)
    return found


def choose(
    file: str, contents: Contents, *, key: str | None, prefix: str | None
) -> tuple[dict[str, Any], Naming]:
    """The dict of tensors with the ResNet to import, and its naming.

    Args:
      file: path, for messages.
      contents: of the file.
      key: of the dict, dotted where dicts are nested; None finds the only one.
      prefix: of the names in it, or with its key before; None finds the only one.

    Raises:
      DataError: there is none, or several; lists what there is.
    """
    found = [
        (at, naming)
        for at, tensors in contents.groups.items()
        for naming in namings(tensors)
    ]
    if not found:
        raise DataError(
            f"file {file}: holds no ResNet with names of torchvision, lightly (numbers "
            "of nn.Sequential), Hugging Face or SimCLRv2 in PyTorch; its keys are "
            f"{', '.join(contents.keys[:_NUM_LISTED]) or 'none'}, and its tensors: "
            f"{_listed(contents)}"
        )
    fitting = [
        (at, naming)
        for at, naming in found
        if key in (None, at)
        and prefix in (None, naming.prefix, ".".join(filter(None, (at, naming.prefix))))
    ]
    if len(fitting) != 1:
        options = "; ".join(_option(contents, *one) for one in found)
        given = [("key", key), ("prefix", prefix)]
        flags = [f"--{name}={value}" for name, value in given if value is not None]
        if fitting or not flags:
            raise DataError(
                f"file {file}: holds several ResNets, and --key or --prefix must "
                f"choose one: {options}"
            )
        raise DataError(
            f"{' '.join(flags)}: file {file} has no such ResNet; it has: {options}"
        )
    ((at, naming),) = fitting
    tensors = contents.groups[at]
    if naming.head:
        beside = ".".join([*at.split(".")[:-1], _HEAD])
        head = contents.groups.get(beside, {})
        tensors = tensors | {f"{_HEAD}.{name}": head[name] for name in head}
    return tensors, naming


def _option(contents: Contents, key: str, naming: Naming) -> str:
    names = [n for n in contents.groups[key] if n.startswith(naming.prefix)]
    return f"--key={key} --prefix={naming.prefix} ({len(names)} tensors)"


def _listed(contents: Contents) -> str:
    """Prefixes with the number of tensors and the shape of the first convolution."""
    parts: dict[str, list[Any]] = {}
    for key, tensors in contents.groups.items():
        for name, tensor in tensors.items():
            first = name.partition(".")[0] if "." in name else ""
            start = ".".join(filter(None, (key, first)))
            parts.setdefault(start, []).append(tensor)
    texts = []
    for start, members in sorted(parts.items(), key=lambda part: -len(part[1])):
        shapes = [tuple(tensor.shape) for tensor in members]
        kernel = next((shape for shape in shapes if len(shape) == 4), None)
        shape = f", first convolution {'x'.join(map(str, kernel))}" if kernel else ""
        texts.append(f"{len(members)} below {start or '(no key)'}{shape}")
    more = len(texts) - _NUM_LISTED
    return "; ".join(texts[:_NUM_LISTED]) + (f"; {more} more" if more > 0 else "")


def _sequential(name: str, names: Collection[str]) -> Naming | None:
    match = _SEQUENTIAL.fullmatch(name)
    if match is None or f"{match[1]}0.weight" not in names:
        return None
    prefix, first = match[1], int(match[2])
    if f"{prefix}{first - 1}.0.conv1.weight" in names:
        return None  # of its second group

    def group(number: int) -> str:
        return str(first + number - 1)

    shortcut = _shortcut(names, f"{prefix}{first + 1}")
    layer = _torchvision([group, shortcut], stem={"conv1": "0", "bn1": "1"})
    title = "a ResNet in nn.Sequential"
    return Naming(title, prefix, layer, f"{prefix}fc", r"\d+\.", PLAIN)


def _shortcut(names: Collection[str], group: str) -> str:
    """The name of shortcuts; 'shortcut' in ResNets written for CIFAR."""
    is_short = f"{group}.0.shortcut.0.weight" in names
    return "shortcut" if is_short else "downsample"


def _torchvision(parts: list[Any], stem: Mapping[str, str] | None = None) -> LayerName:
    group_name, shortcut = parts

    def name(layer: str, _: Structure) -> str:
        group, block, rest = _split(layer)
        if not group:
            return (stem or {}).get(rest, rest)
        ends = {"shortcut/conv": f"{shortcut}.0", "shortcut/bn": f"{shortcut}.1"}
        return f"{group_name(group)}.{block}.{ends.get(rest, rest)}"

    return name


torchvision_layer = _torchvision(["layer{}".format, "downsample"])


def _hugging_face(layer: str, _: Structure) -> str:
    group, block, rest = _split(layer)
    kind = "normalization" if "bn" in rest else "convolution"
    if not group:
        return f"embedder.embedder.{kind}"
    part = "shortcut" if "shortcut" in rest else f"layer.{int(rest[-1]) - 1}"
    return f"encoder.stages.{group - 1}.layers.{block}.{part}.{kind}"


def _simclr_v2(layer: str, structure: Structure) -> str:
    group, block, rest = _split(layer)
    if not group:
        return f"net.0.{_in_turn(rest)}"
    start = f"net.{group}.blocks.{block}"
    selective = structure.selective
    inner = {
        "shortcut/conv": "projection.shortcut" + (".2" if selective else ""),
        "shortcut/bn": "projection.bn.0",
        "conv2_sk/conv": "net.2.main_conv.0",
        "conv2_sk/bn": "net.2.main_conv.1.0",
        "conv2_sk/fc1": "net.2.mixing_conv.0",
        "conv2_sk/fc1_bn": "net.2.mixing_conv.1.0",
        "conv2_sk/fc2": "net.2.mixing_conv.2",
    }
    if selective:  # one module holds the second convolution and its BatchNorm
        inner |= {"conv3": "net.3", "bn3": "net.4.0"}
    return f"{start}.{inner.get(rest) or f'net.{_in_turn(rest)}'}"


def _in_turn(rest: str) -> str:
    """conv1, bn1, conv2, ... as 0, 1.0, 2, ...: a BatchNorm is in a module."""
    number = int(rest[-1])
    return f"{2 * number - 1}.0" if rest.startswith("bn") else str(2 * number - 2)


def _split(layer: str) -> tuple[int, int, str]:
    """(group from 1, or 0 for the stem; block from 0; name in the block)."""
    part, _, rest = layer.partition("/")
    if part == "stem":
        return 0, 0, rest
    block, _, rest = rest.partition("/")
    return int(part.removeprefix("group")), int(block.removeprefix("block")) - 1, rest
