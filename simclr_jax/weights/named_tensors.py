"""Turns named tensors of a file into checked variables of this package's modules."""

import dataclasses
import functools
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax import models
from simclr_jax.errors import DataError
from simclr_jax.models.simclr import Tree
from simclr_jax.weights.layers import Structure

_LOG = logging.getLogger(__name__)

# (layer, leaf) by this package's names -> name of the tensor in the file.
Names = Mapping[tuple[str, str], str]

PROBE_LEAVES = ("kernel", "bias")
_SK_RATIO = 0.0625  # SimCLRv2
_NUM_NAMED = 3  # misfits that an error names


@dataclasses.dataclass(frozen=True)
class Tensors:
    """The tensors of a file, read one by one.

    Attributes:
      file: path, for messages.
      shapes: name -> shape; kernels as [height, width, in, out] or [in, out].
      read: name -> array of that shape; raises DataError.
    """

    file: str
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The names of all tensors in a file, and facts that tensors do not record.

    Attributes:
      name: of the kind of file, for messages.
      structure: the layers of the encoder.
      settings: arguments of `models.create_encoder` that do not follow from shapes.
      encoder: names of the encoder's tensors, all of which must exist.
      head_kind: of the projection head.
      head: names of the projection head's tensors.
      probe: leaf -> name of the linear classifier's tensors, if it exists.
      resize: as in `ImportedWeights`.
      step: name of the step counter, if it exists.
      ignorable: name -> the kind of a tensor that needs no place in the model; None if
        it needs one.
      notes: assumptions.
      notes_on_two_heads: further ones for a projection head and a linear classifier.
      notes_on_probe: further ones for a linear classifier.
      notes_on_small_stem: further ones for a 3x3 first kernel.
    """

    name: str
    structure: Structure
    settings: Mapping[str, Any]
    encoder: Names
    head_kind: str
    head: Names
    probe: Mapping[str, str]
    resize: str
    step: str
    ignorable: Callable[[str], str | None]
    notes: tuple[str, ...] = ()
    notes_on_two_heads: tuple[str, ...] = ()
    notes_on_probe: tuple[str, ...] = ()
    notes_on_small_stem: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ImportedWeights:
    """Weights of another codebase as variables of this one.

    Attributes:
      layout: name of the kind of file.
      encoder_settings: keyword arguments of `models.create_encoder`.
      head_settings: keyword arguments of `models.create_projection_head`; of kind
        'none' if the file has no head.
      num_classes: of the linear classifier; None if the file has none.
      params: {'encoder', 'head', 'probe'} float32, without missing parts.
      batch_stats: {'encoder', 'head'} float32, without missing parts.
      resize: of evaluation images, as in `data.preprocessing`.
      step: number of updates; 0 if the file does not record it.
      ignored: kind of ignored tensors -> their number.
      unexpected: names of tensors without a place in the model, left out on request.
      notes: assumptions.
      image_size: side of the encoder's input, where it is recorded with the weights.
      crop_proportion: as in `data.preprocessing`, where it is recorded.
    """

    layout: str
    encoder_settings: dict[str, Any]
    head_settings: dict[str, Any]
    num_classes: int | None
    params: Tree
    batch_stats: Tree
    resize: str
    step: int
    ignored: dict[str, int]
    unexpected: tuple[str, ...]
    notes: tuple[str, ...]
    image_size: int | None = None
    crop_proportion: float | None = None

    @property
    def variables(self) -> Tree:
        """{'params', 'batch_stats'} of the encoder."""
        return {
            "params": self.params["encoder"],
            "batch_stats": self.batch_stats["encoder"],
        }

    @property
    def model(self) -> models.SimCLR:
        """The modules that take these variables."""
        return models.SimCLR(
            encoder=models.create_encoder(**self.encoder_settings),
            head=models.create_projection_head(**self.head_settings),
            num_classes=self.num_classes,
        )


def nearest(
    tensors: Tensors,
    candidates: Sequence[Structure],
    names_of: Callable[[Structure], Names],
) -> tuple[Structure, Names]:
    """The structure whose names fit a file best: fewest missing, most present."""

    def misfit(names: Names) -> int:
        return sum(-1 if name in tensors.shapes else 1 for name in names.values())

    pairs = [(structure, names_of(structure)) for structure in candidates]
    return min(pairs, key=lambda pair: misfit(pair[1]))


def assemble(
    tensors: Tensors, layout: Layout, *, ignore_unexpected: bool
) -> ImportedWeights:
    """Checks that every tensor has a place and the right shape, then reads all.

    Raises:
      DataError: a tensor does not fit, or cannot be read.
    """
    settings = _encoder_settings(tensors, layout)
    feature_width = models.create_encoder(**settings).feature_width
    head_settings = _head_settings(tensors, layout, feature_width)
    num_classes = _num_classes(tensors, layout)
    parts = {"encoder": (layout.encoder, encoder_shapes(settings))}
    if layout.head_kind != "none":
        parts["head"] = (layout.head, _head_shapes(head_settings, feature_width))
    if num_classes is not None:
        # One dense layer on h.
        names = {("", leaf): name for leaf, name in layout.probe.items()}
        kernel, bias = _struct(feature_width, num_classes), _struct(num_classes)
        parts["probe"] = (names, {"params": {"kernel": kernel, "bias": bias}})

    assigned = {name for names, _ in parts.values() for name in names.values()}
    others = sorted(name for name in tensors.shapes if name not in assigned)
    kinds = {name: layout.ignorable(name) for name in others}
    unexpected = tuple(name for name, kind in kinds.items() if kind is None)
    misfits = [m for names, _ in parts.values() for m in _missing(tensors, names)]
    misfits += [m for part in parts.values() for m in _misshapen(tensors, *part)]
    if not ignore_unexpected:
        misfits += [f"{name} has no place in the model" for name in unexpected]
    if misfits:
        raise DataError(
            f"file {tensors.file}: does not fit {layout.name} of a {layout.structure}: "
            f"{_first(misfits)}"
        )

    size = sum(math.prod(tensors.shapes[name]) for name in assigned)
    _LOG.info("Reading %.1f million weights of a %s ...", size / 1e6, layout.structure)
    trees = {part: _read(tensors, *spec) for part, spec in parts.items()}
    notes = layout.notes
    if {"head", "probe"} <= parts.keys():
        notes += layout.notes_on_two_heads
    if "probe" in parts:
        notes += layout.notes_on_probe
    if settings["stem"] == "cifar":
        notes += layout.notes_on_small_stem
    return ImportedWeights(
        layout=layout.name,
        encoder_settings=settings,
        head_settings=head_settings,
        num_classes=num_classes,
        params={part: tree["params"] for part, tree in trees.items()},
        batch_stats={
            part: tree["batch_stats"]
            for part, tree in trees.items()
            if "batch_stats" in tree
        },
        resize=layout.resize,
        step=_step(tensors, layout.step),
        ignored=dict(Counter(kind for kind in kinds.values() if kind is not None)),
        unexpected=unexpected,
        notes=notes,
    )


def _encoder_settings(tensors: Tensors, layout: Layout) -> dict[str, Any]:
    """All settings of an encoder, from the layout and the shapes of its tensors."""
    structure = layout.structure

    def shape(layer: str, leaf: str) -> tuple[int, ...]:
        return tensors.shapes.get(layout.encoder[layer, leaf], ())

    last = f"group4/block{models.DEPTHS[structure.depth][1][-1]}"
    ends = (
        (f"stem/bn{3 if structure.deep_stem else 1}", 64),
        (f"{last}/bn3", 2048) if structure.bottleneck else (f"{last}/bn2", 512),
    )
    widths = {
        channels[0] / base
        for layer, base in ends
        if (channels := shape(layer, "scale")) and channels[0] > 0
    }
    large = shape("stem/conv1", "kernel")[:1] == (7,)

    def settings(width: float) -> dict[str, Any]:
        sk_ratio = _SK_RATIO if structure.selective else 0.0
        if structure.selective and structure.bottleneck:
            attention, filters = shape(f"{last}/conv2_sk/fc1", "kernel"), 512 * width
            if attention and attention[-1] != max(int(filters * sk_ratio), 32):
                sk_ratio = min(attention[-1] / filters, 1.0)
        return {
            "depth": structure.depth,
            "width": width,
            "sk_ratio": sk_ratio,
            "stem": "imagenet" if structure.deep_stem or large else "cifar",
            "se_ratio": 0.0,
            "batch_norm_epsilon": 1e-5,
            "first_group_projection": structure.first_group_projection,
            **layout.settings,
        }

    # If the two ends disagree, one is damaged; the width of the other fits more of the
    # remaining tensors.
    return min(
        map(settings, sorted(widths or {1.0})),
        key=lambda s: len(_misshapen(tensors, layout.encoder, encoder_shapes(s))),
    )


def _head_settings(
    tensors: Tensors, layout: Layout, feature_width: int
) -> dict[str, Any]:
    num_layers = sum(leaf == "kernel" for _, leaf in layout.head)
    if not num_layers:
        return {"kind": "none"}

    def outputs(layer: int) -> int:
        shape = tensors.shapes.get(layout.head[f"dense{layer}", "kernel"], ())
        return max(shape[-1], 1) if shape else feature_width

    hidden = outputs(1) if num_layers > 1 else feature_width
    return {
        "kind": layout.head_kind,
        "num_layers": num_layers,
        "hidden_dim": None if hidden == feature_width else hidden,
        "output_dim": outputs(num_layers),
    }


def _num_classes(tensors: Tensors, layout: Layout) -> int | None:
    """Classes of the linear classifier; None if the file has none."""
    if not any(name in tensors.shapes for name in layout.probe.values()):
        return None
    bias = tensors.shapes.get(layout.probe["bias"], ())
    return max(bias[0], 1) if bias else 1


def encoder_shapes(settings: dict[str, Any]) -> Tree:
    """Shapes of an encoder's {'params', 'batch_stats'}, without computing them.

    Args:
      settings: arguments of `models.create_encoder`; may be JSON values.
    """
    dtype = str(jnp.dtype(settings.get("dtype", "float32")))
    return _encoder_shapes(tuple(sorted({**settings, "dtype": dtype}.items())))


@functools.cache
def _encoder_shapes(settings: tuple[tuple[str, Any], ...]) -> Tree:
    """As `encoder_shapes`, traced once for all that is asked of a file."""
    arguments = dict(settings)
    encoder = models.create_encoder(
        **{**arguments, "dtype": jnp.dtype(arguments["dtype"])}
    )
    return jax.eval_shape(encoder.init, jax.random.key(0), _struct(1, 64, 64, 3))


def _head_shapes(settings: dict[str, Any], feature_width: int) -> Tree:
    head = models.create_projection_head(**settings)
    return jax.eval_shape(head.init, jax.random.key(0), _struct(1, feature_width))


def _struct(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def place(path: Sequence[Any]) -> tuple[str, str]:
    """(layer, leaf) for a key path in {'params', 'batch_stats'}."""
    _, *layer, leaf = (key.key for key in path)
    return "/".join(layer), leaf


def _missing(tensors: Tensors, names: Names) -> list[str]:
    return [
        f"{name} ({'/'.join(filter(None, at))}) is missing"
        for at, name in names.items()
        if name not in tensors.shapes
    ]


def _misshapen(tensors: Tensors, names: Names, like: Tree) -> list[str]:
    misfits = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(like):
        name = names[place(path)]
        shape = tensors.shapes.get(name)
        if shape is not None and shape != leaf.shape:
            layer, leaf_name = place(path)
            misfits.append(
                f"{name} ({layer}/{leaf_name}) has shape {_by(shape)} and must have "
                f"{_by(leaf.shape)}"
            )
    return misfits


def _first(misfits: Sequence[str]) -> str:
    more = len(misfits) - _NUM_NAMED
    return "; ".join(misfits[:_NUM_NAMED]) + (f"; and {more} more" if more > 0 else "")


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "()"


def _read(tensors: Tensors, names: Names, like: Tree) -> Tree:
    def read(path: Sequence[Any], _: jax.ShapeDtypeStruct) -> np.ndarray:
        name = names[place(path)]
        array = np.asarray(tensors.read(name))
        try:
            array = array.astype(np.float32)
        except (ValueError, TypeError) as error:
            raise DataError(
                f"file {tensors.file}: {name} does not hold numbers"
            ) from error
        if not np.isfinite(array).all():
            raise DataError(
                f"file {tensors.file}: {name} has values that are not finite"
            )
        if place(path)[1] == "var" and (array < 0).any():
            raise DataError(f"file {tensors.file}: {name} has negative variances")
        return array

    return jax.tree_util.tree_map_with_path(read, like)


def _step(tensors: Tensors, name: str) -> int:
    """The value of the step counter; 0 if there is none."""
    if name not in tensors.shapes:
        return 0
    value = np.asarray(tensors.read(name))
    if value.shape or not np.issubdtype(value.dtype, np.integer) or value < 0:
        raise DataError(
            f"file {tensors.file}: {name} is {value}: must be a number of steps"
        )
    return int(value)
