"""Fine-tuning on classes of different sizes: weights in the loss, and sampling."""

import numpy as np
from ml_collections import config_dict

from simclr_jax.data.sampling.balanced import BalancedOrder
from simclr_jax.data.sources import subsets
from simclr_jax.data.sources.base import Source
from simclr_jax.errors import ConfigError


def check(config: config_dict.ConfigDict) -> None:
    """Raises ConfigError if images cannot be weighted or sampled as it says."""
    if config.finetune.sampling != "balanced":
        return
    if config.finetune.class_weights != "none":
        raise ConfigError(
            f"config.finetune.class_weights={config.finetune.class_weights!r}: must be "
            "'none' where config.finetune.sampling='balanced', which would count small "
            "classes twice as much as is meant"
        )
    if config.data.block_size > 1:
        raise ConfigError(
            f"config.data.block_size={config.data.block_size}: must be 1 where "
            "config.finetune.sampling='balanced', which takes images one by one"
        )
    if config.augment.placement == "accelerator":
        raise ConfigError(
            "config.finetune.sampling='balanced': must be 'shuffled' where "
            "config.augment.placement='accelerator', which shuffles all images; "
            "'host_crop' leaves all but the crop to the accelerator"
        )


def weights(config: config_dict.ConfigDict, source: Source) -> tuple[float, ...] | None:
    """Weights in inverse proportion to the classes' numbers of images.

    Their mean over the images is 1. A class without images has weight 0, which nothing
    uses.
    """
    if config.finetune.class_weights == "none":
        return None
    counts = np.bincount(subsets.labels(source), minlength=source.num_classes or 0)
    present = np.count_nonzero(counts)
    found = np.where(counts > 0, counts.sum() / present / np.maximum(counts, 1), 0.0)
    return tuple(found.tolist())


def order_of(config: config_dict.ConfigDict, source: Source) -> BalancedOrder | None:
    """The order of `finetune.sampling='balanced'`; None for the usual one."""
    if "finetune" not in config or config.finetune.sampling != "balanced":
        return None
    return BalancedOrder.of_labels(subsets.labels(source))
