"""An exported folder as weights that become a run again."""

import pathlib

from ml_collections import config_dict

from simclr_jax.errors import DataError
from simclr_jax.weights import convert, jax_formats, load
from simclr_jax.weights import export_folder as folders
from simclr_jax.weights.imported import ImportedWeights
from simclr_jax.weights.load import EncoderProgram


def export_at(path: str) -> pathlib.Path | None:
    """The exported folder that a path, or our own weight file in one, names."""
    place = pathlib.Path(path)
    if place.name == jax_formats.WEIGHTS:
        place = place.parent
    return place if folders.is_export(str(place)) else None


def read(
    folder: pathlib.Path, config: config_dict.ConfigDict | None
) -> tuple[ImportedWeights, config_dict.ConfigDict]:
    """Reads what `as_run.write` makes a run of.

    Args:
      folder: from `export_at`.
      config: for all that the export does not decide; that of the exported run if None.

    Returns:
      (weights, the config with their encoder and preprocessing).

    Raises:
      DataError, CheckpointError: the folder is damaged, or holds a program.
      ConfigError: the config has a value that breaks a rule.
    """
    pretrained = load.read_export(folder)
    if isinstance(pretrained, EncoderProgram):
        raise DataError(
            f"--input={folder}: is a StableHLO export, a compiled function whose "
            "weights cannot be taken out; export the run in another format"
        )
    settings = folders.settings_of(pretrained.encoder)
    del settings["dtype"]
    name = folders.read_json(folder / folders.ENCODER)["format"]
    weights = ImportedWeights(
        layout=f"simclr_jax export, {name}",
        encoder_settings=settings,
        head_settings={"kind": "none"},
        num_classes=None,
        params={"encoder": pretrained.variables["params"]},
        batch_stats={"encoder": pretrained.variables["batch_stats"]},
        resize=pretrained.preprocessing.resize,
        step=pretrained.step,
        ignored={},
        unexpected=(),
        notes=(),
    )
    if config is None:
        config = config_dict.ConfigDict(pretrained.config)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.image_size = pretrained.preprocessing.image_size
        config.evaluation.crop_proportion = pretrained.preprocessing.crop_proportion
    return weights, convert.complete_config(config, weights)
