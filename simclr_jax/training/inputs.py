"""Sources and views, made from a config."""

from ml_collections import config_dict

from simclr_jax.data import augment, sources
from simclr_jax.data.pipeline import View


def open_source(config: config_dict.ConfigDict, split: str) -> sources.Source:
    """Opens a split of the config's dataset; see `sources.open_source`."""
    return sources.open_source(
        config.data.dataset,
        split=split,
        data_dir=config.data.data_dir,
        image_key=config.data.image_key,
        label_key=config.data.label_key,
    )


def make_view(config: config_dict.ConfigDict) -> View:
    """The function that makes one view of an image; see `augment.compose`."""
    operations = tuple(config.augment.operations)
    settings = {name: dict(config.augment[name]) for name in operations}
    return augment.compose(operations, settings, image_size=config.image_size)
