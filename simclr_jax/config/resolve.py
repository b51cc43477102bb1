"""Decides what a config leaves open: the stem, and epochs as steps."""

import logging

from ml_collections import config_dict

from simclr_jax.config import rules
from simclr_jax.data.sampling import order
from simclr_jax.errors import ConfigError
from simclr_jax.models import normalization

_LOG = logging.getLogger(__name__)

# The largest side of an image for which the reference uses the CIFAR stem.
_CIFAR_STEM_MAX_SIZE = 32


def resolve(
    config: config_dict.ConfigDict, *, num_examples: int
) -> config_dict.ConfigDict:
    """A copy of the config with stem, training and warm-up steps decided.

    `encoder.normalization` gets its canonical form, except for 'dataset'.

    Args:
      config: valid.
      num_examples: images in the training split.

    Raises:
      ConfigError: the dataset is smaller than a batch, the training or the warm-up has
        too many steps, or the schedule is extended from its end on.
    """
    config = config.copy_and_resolve_references()
    if config.batch.batch_size > num_examples:
        raise ConfigError(
            f"config.batch.batch_size={config.batch.batch_size}: must not exceed the "
            f"{num_examples} images of {config.data.dataset}, since a batch holds no "
            "image twice"
        )
    automatic = suitable_stem(config.image_size)
    if config.encoder.stem == "auto":
        config.encoder.stem = automatic
    elif config.encoder.stem != automatic:
        _LOG.warning(
            "config.encoder.stem=%r does not suit config.image_size=%d: the %s stem is "
            "meant for it, and the other one costs many points of accuracy.",
            config.encoder.stem,
            config.image_size,
            automatic,
        )
    if config.encoder.normalization != normalization.MEASURED:
        config.encoder.normalization = normalization.canonical(
            config.encoder.normalization
        )
    _warn_of_blur_without_effect(config)
    steps_per_epoch = order.steps_per_epoch(
        num_examples=num_examples,
        batch_size=config.batch.batch_size,
        block_size=config.data.block_size,
    )
    if steps_per_epoch == 0:
        raise ConfigError(
            f"config.data.block_size={config.data.block_size}: leaves no batch of "
            f"{config.batch.batch_size} of the {num_examples} images in whole blocks"
        )
    _set_steps(config.schedule, steps_per_epoch)
    return config


def with_fitting_batch(
    config: config_dict.ConfigDict, num_examples: int, num_devices: int
) -> config_dict.ConfigDict:
    """A copy of a config whose batch is no larger than the dataset; says so.

    Args:
      config: valid.
      num_examples: images to train on.
      num_devices: that a batch is split over.

    Raises:
      ConfigError: no batch of two or more images is divisible by the devices, by
        `batch.micro_batch_size`, and by parts with BatchNorm statistics of their own.
    """
    batch_size, block_size = config.batch.batch_size, config.data.block_size
    usable = num_examples // block_size * block_size
    if batch_size <= usable:
        return config
    unit = rules.batch_unit(config, num_devices)
    largest = usable // unit * unit
    if largest < 2:
        raise ConfigError(
            f"config.batch.batch_size={batch_size}: must not exceed the {usable} "
            f"images of {config.data.dataset}, and no batch of two or more of them is "
            f"divisible by {unit} (devices, micro-batches, parts of BatchNorm)"
        )
    _LOG.warning(
        "config.batch.batch_size=%d: is now %d, since there are %d images to train on.",
        *(batch_size, largest, num_examples),
    )
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.batch.batch_size = largest
    return config


def suitable_stem(image_size: int) -> str:
    """What 'auto' stands for."""
    return "cifar" if image_size <= _CIFAR_STEM_MAX_SIZE else "imagenet"


def _warn_of_blur_without_effect(config: config_dict.ConfigDict) -> None:
    fraction = config.augment.blur.kernel_fraction
    if "blur" in config.augment.operations and config.image_size * fraction < 2:
        _LOG.warning(
            "config.augment.blur.kernel_fraction=%g: is less than 2 of "
            "config.image_size=%d pixels, so that 'blur' in config.augment.operations "
            "changes nothing.",
            fraction,
            config.image_size,
        )


def _set_steps(schedule: config_dict.ConfigDict, steps_per_epoch: int) -> None:
    """Turns epochs into steps, where these are not set."""
    for name in ("train", "warmup"):
        steps, key = f"{name}_steps", f"{name}_steps"
        if schedule[steps] is None:
            key = f"{name}_epochs"
            schedule[steps] = round(schedule[key] * steps_per_epoch)
        if schedule[steps] > rules.MOST_STEPS:
            raise ConfigError(
                f"config.schedule.{key}={schedule[key]}: makes {schedule[steps]} "
                f"steps, must be at most {rules.MOST_STEPS}"
            )
    schedule.train_steps = max(schedule.train_steps, 1)
    if (schedule.extend_step or 0) >= schedule.train_steps:
        raise ConfigError(
            f"config.schedule.extend_step={schedule.extend_step}: must be below "
            f"config.schedule.train_steps={schedule.train_steps}"
        )
    if schedule.warmup_steps >= schedule.train_steps:
        _LOG.warning(
            "config.schedule.warmup_steps=%d is not below train_steps=%d: the learning "
            "rate never reaches its peak.",
            schedule.warmup_steps,
            schedule.train_steps,
        )
