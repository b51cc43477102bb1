"""Opens a pretrained encoder: a run, a checkpoint or an exported folder."""

import dataclasses
import numbers
import os
import pathlib
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np
from etils import epath
from jax import export

from simclr_jax import parallel, paths
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.errors import CheckpointNotFound, ConfigError, DataError
from simclr_jax.models.simclr import Tree
from simclr_jax.runs import plans
from simclr_jax.training import build
from simclr_jax.weights import classifiers, descriptions, jax_formats
from simclr_jax.weights import encoder as encoders
from simclr_jax.weights.encoder import PretrainedEncoder
from simclr_jax.weights.formats import FORMATS
from simclr_jax.weights.named_tensors import encoder_shapes

Check = Callable[[dict[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class EncoderProgram:
    """What `simclr_jax.load` returns for a StableHLO export.

    Attributes:
      program: preprocessed images [N, S, S, 3] float32 in [0, 1] -> h [N, D] float32,
        or (h, logits [N, classes]) with a classifier.
      preprocessing: applied to images before the program.
      config: of the run, as JSON values.
      config_hash: hash of the config of the run.
      step: number of updates.
      num_classes: of the classifier; None for no classifier.
      class_names: as of `PretrainedEncoder`.
    """

    program: export.Exported
    preprocessing: Preprocessing
    config: dict[str, Any]
    config_hash: str
    step: int
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None

    def encode(self, images: Any, *, batch_size: int = 256) -> np.ndarray:
        """Turns images into h [N, D] float32; as `PretrainedEncoder.encode`."""
        return self._in_batches(0, images, batch_size)

    def classify(self, images: Any, *, batch_size: int = 256) -> np.ndarray:
        """Logits [N, classes] float32; as `PretrainedEncoder.classify`."""
        if self.num_classes is None:
            raise ValueError("these weights have no classifier")
        return self._in_batches(1, images, batch_size)

    def outputs(self, inputs: Any) -> tuple[jax.Array, ...]:
        """(h,) or (h, logits) of preprocessed images."""
        outputs = self.program.call(inputs)
        return (outputs,) if self.num_classes is None else tuple(outputs)

    def _in_batches(self, output: int, images: Any, batch_size: int) -> np.ndarray:
        return encoders.encode_in_batches(
            lambda batch: self.outputs(batch)[output],
            self.preprocessing,
            images,
            batch_size=batch_size,
        )

    @property
    def variables(self) -> NoReturn:
        """Raises AttributeError: the weights are inside the program."""
        raise AttributeError(_INSIDE.format("variables"))

    @property
    def encoder(self) -> NoReturn:
        """Raises AttributeError: the encoder is inside the program."""
        raise AttributeError(_INSIDE.format("encoder"))


_INSIDE = (
    "a StableHLO export has no {}: it is a compiled function with the weights inside; "
    "export the run with --format=safetensors for a module and its weights"
)


def load(
    path: str, *, step: int | None = None, check: Check | None = None
) -> PretrainedEncoder | EncoderProgram:
    """Opens a pretrained encoder; see `simclr_jax.load`.

    Args:
      path: see `simclr_jax.load`.
      step: see `simclr_jax.load`.
      check: called with the encoder's settings before weights of a run are read.
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"path={path!r}: must be a path")
    whole = isinstance(step, numbers.Integral) and not isinstance(step, bool)
    if step is not None and not (whole and step >= 0):
        raise ConfigError(f"step={step!r}: must be a whole number, not negative")
    location = paths.as_path(path)
    is_run = plans.folder_in_force(str(location)).is_dir()
    if step is not None and not is_run:
        raise ConfigError(
            f"step={step}: must be left out for {path}, which is not a run directory"
        )
    if is_run:
        return encoders.load(str(location), step=step, check=check)
    absolute = paths.absolute(path)
    if absolute.is_dir() and plans.is_folder(absolute.parent.name):
        if not absolute.name.isdecimal():
            raise CheckpointNotFound(f"{path}: is not a complete checkpoint of a run")
        return encoders.load(
            str(absolute.parents[1]),
            step=int(absolute.name),
            folder_name=absolute.parent.name,
            check=check,
        )
    if descriptions.is_export(path):
        with paths.fetched(str(location)) as local:
            return read_export(pathlib.Path(local))
    raise CheckpointNotFound(f"{path}: {_reason(location)}; {_LOADABLE}")


def load_to_train(path: str, *, check: Check | None = None) -> PretrainedEncoder:
    """Opens an encoder to train it further; arguments as for `load`.

    Raises:
      ConfigError: it is a program without separate weights.
      CheckpointNotFound, DataError, CheckpointError: as `load`.
    """
    loaded = load(path, check=check)
    if isinstance(loaded, EncoderProgram):
        raise ConfigError(f"--init_from={path}: {_INSIDE.format('weights to train')}")
    return loaded


_LOADABLE = (
    "must be a run directory, a checkpoint in one "
    f"(RUN/{plans.FIRST}/STEP), or a folder of simclr_jax.export in any format "
    f"({', '.join(FORMATS)}), which has the file {descriptions.ENCODER}; "
    "simclr_jax.convert imports weights of other codebases as a run"
)
# Formats of earlier versions of this package.
_REMOVED_FORMATS = ("orbax",)


def _reason(location: epath.Path) -> str:
    if not location.exists():
        return "does not exist"
    if not location.is_dir():
        return "is a file"
    return "holds no checkpoint of a run and no exported encoder"


def read_export(folder: pathlib.Path) -> PretrainedEncoder | EncoderProgram:
    """The encoder in an exported folder.

    Raises:
      DataError, CheckpointError: the folder is damaged.
    """
    description = descriptions.read_json(folder / descriptions.ENCODER)
    name = description.get("format")
    if name in _REMOVED_FORMATS:
        raise DataError(
            f"folder {folder}: is an export in the format {name}, which was removed; "
            "export the run again with --format=safetensors"
        )
    if name not in FORMATS:
        raise DataError(
            f"file {folder / descriptions.ENCODER}: format is {name!r}, must be one of "
            f"{', '.join(FORMATS)}"
        )
    try:
        common: dict[str, Any] = {
            "preprocessing": descriptions.read_preprocessing(folder),
            "config": description["config"],
            "config_hash": description["config_hash"],
            "step": description["step"],
        }
        settings = description["encoder"]
        # Exports of earlier versions have no classifier.
        classifier = description.get("classifier")
    except KeyError as error:
        raise DataError(
            f"file {folder / descriptions.ENCODER}: lacks {error}"
        ) from error
    read = FORMATS[name].read
    try:
        encoder = build.make_encoder(settings)
        model, names = classifiers.described(encoder, classifier)
    except (TypeError, ValueError, KeyError) as error:
        raise DataError(f"file {folder / descriptions.ENCODER}: {error}") from error
    common["class_names"] = names
    if read is None:
        program = jax_formats.read_program(folder)
        return EncoderProgram(program, num_classes=model.num_classes, **common)
    variables = read(folder, settings)
    _check_shapes(folder, variables, encoder_shapes(settings))
    heads, read_heads = {}, FORMATS[name].read_heads
    if model.num_classes is not None and read_heads is not None:
        like = classifiers.shapes(model)
        heads = read_heads(folder, like)
        _check_shapes(folder, heads, like)
    replicated = parallel.replicated(parallel.create_mesh())
    return PretrainedEncoder(
        model=model,
        variables=jax.device_put(variables, replicated),
        heads=jax.device_put(heads, replicated),
        **common,
    )


def _check_shapes(folder: pathlib.Path, variables: Tree, like: Tree) -> None:
    def shapes(tree: Tree) -> dict[str, tuple[int, ...]]:
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }

    expected, actual = shapes(like), shapes(variables)
    for name in sorted(expected | actual):
        if expected.get(name) != actual.get(name):
            raise DataError(
                f"folder {folder}: {name} has shape {actual.get(name)}, and by "
                f"{descriptions.ENCODER} it must be {expected.get(name)}"
            )
