"""Opens whatever holds a pretrained encoder: runs, checkpoints, exported folders."""

import dataclasses
import pathlib
from typing import Any, NoReturn

import jax
import numpy as np
from jax import export

from simclr_jax import parallel
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.errors import CheckpointNotFound, ConfigError, DataError
from simclr_jax.models import SimCLR, create_projection_head
from simclr_jax.models.simclr import Tree
from simclr_jax.runs import checkpoints
from simclr_jax.training import build
from simclr_jax.weights import encoder as encoders
from simclr_jax.weights import export_folder as folders
from simclr_jax.weights import jax_formats
from simclr_jax.weights.encoder import PretrainedEncoder
from simclr_jax.weights.formats import FORMATS
from simclr_jax.weights.imported import encoder_shapes


@dataclasses.dataclass(frozen=True)
class EncoderProgram:
    """What `simclr_jax.load` returns of a StableHLO export.

    Attributes:
      program: prepared images [N, S, S, 3] float32 in [0, 1] -> h [N, D] float32.
      preprocessing: what images go through before it.
      config: of the run, as JSON values.
      config_hash: names the config that made the weights.
      step: number of updates that made the weights.
    """

    program: export.Exported
    preprocessing: Preprocessing
    config: dict[str, Any]
    config_hash: str
    step: int

    def encode(self, images: Any, *, batch_size: int = 256) -> np.ndarray:
        """Turns images into h [N, D] float32; as `PretrainedEncoder.encode`."""
        inputs = self.preprocessing(images)
        return encoders.encode_in_batches(self.program.call, inputs, batch_size)

    @property
    def variables(self) -> NoReturn:
        """There are none to be had; raises AttributeError."""
        raise AttributeError(_INSIDE.format("variables"))

    @property
    def encoder(self) -> NoReturn:
        """There is none to be had; raises AttributeError."""
        raise AttributeError(_INSIDE.format("encoder"))


_INSIDE = (
    "a StableHLO export has no {}: it is a compiled function with the weights inside; "
    "export the run with --format=safetensors or orbax for a module and its weights"
)


def load(path: str, *, step: int | None = None) -> PretrainedEncoder | EncoderProgram:
    """Opens a pretrained encoder; see `simclr_jax.load`."""
    place = pathlib.Path(path).expanduser()
    of_run = (place / checkpoints.FOLDER).is_dir()
    if step is not None and not of_run:
        raise ConfigError(
            f"step={step}: must be left out for {path}, which is no run directory"
        )
    if of_run:
        return encoders.load(str(place), step=step)
    absolute = place.absolute()
    if absolute.is_dir() and absolute.parent.name == checkpoints.FOLDER:
        if not absolute.name.isdecimal():
            raise CheckpointNotFound(f"{path}: is no complete checkpoint of a run")
        return encoders.load(str(absolute.parents[1]), step=int(absolute.name))
    if folders.is_export(str(place)):
        return read_export(place)
    raise CheckpointNotFound(f"{path}: {_what_it_is(place)}; {_UNDERSTOOD}")


def load_to_train(path: str) -> PretrainedEncoder:
    """Opens an encoder whose weights are to be trained further.

    Raises:
      ConfigError: its weights cannot be had.
      CheckpointNotFound, DataError, CheckpointError: as `load`.
    """
    loaded = load(path)
    if isinstance(loaded, EncoderProgram):
        raise ConfigError(f"--init_from={path}: {_INSIDE.format('weights to train')}")
    return loaded


_UNDERSTOOD = (
    "what can be loaded is a run directory, a checkpoint in one "
    f"(RUN/{checkpoints.FOLDER}/STEP), and a folder of simclr_jax.export in any format "
    f"({', '.join(FORMATS)}), which has the file {folders.ENCODER}; simclr_jax.convert "
    "makes a run of other people's weights"
)


def _what_it_is(place: pathlib.Path) -> str:
    if not place.exists():
        return "does not exist"
    if not place.is_dir():
        return "is a file"
    return "holds no checkpoint of a run and no exported encoder"


def read_export(folder: pathlib.Path) -> PretrainedEncoder | EncoderProgram:
    """The encoder in an exported folder.

    Raises:
      DataError, CheckpointError: the folder is damaged.
    """
    described = folders.read_json(folder / folders.ENCODER)
    name = described.get("format")
    if name not in FORMATS:
        raise DataError(
            f"file {folder / folders.ENCODER}: format is {name!r}, must be one of "
            f"{', '.join(FORMATS)}"
        )
    try:
        common = {
            "preprocessing": folders.read_preprocessing(folder),
            "config": described["config"],
            "config_hash": described["config_hash"],
            "step": described["step"],
        }
        settings = described["encoder"]
    except KeyError as error:
        raise DataError(f"file {folder / folders.ENCODER}: lacks {error}") from error
    read = FORMATS[name].read
    if read is None:
        return EncoderProgram(jax_formats.read_program(folder), **common)
    execution = {"convolutions": build.convolutions_for(jax.default_backend())}
    try:
        encoder = build.make_encoder(settings, **execution)
    except (TypeError, ValueError, KeyError) as error:
        raise DataError(f"file {folder / folders.ENCODER}: {error}") from error
    variables = read(folder, settings)
    _check_shapes(folder, variables, encoder_shapes(jax_formats.arguments(settings)))
    return PretrainedEncoder(
        model=SimCLR(encoder, create_projection_head(kind="none")),
        variables=jax.device_put(
            variables, parallel.replicated(parallel.create_mesh())
        ),
        heads={},
        **common,
    )


def _check_shapes(folder: pathlib.Path, variables: Tree, like: Tree) -> None:
    def shapes(tree: Tree) -> dict[str, tuple[int, ...]]:
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }

    want, got = shapes(like), shapes(variables)
    for name in sorted(want | got):
        if want.get(name) != got.get(name):
            raise DataError(
                f"folder {folder}: {name} has shape {got.get(name)}, and by "
                f"{folders.ENCODER} it must be {want.get(name)}"
            )
