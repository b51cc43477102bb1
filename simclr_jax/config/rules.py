"""The rules of all config keys; `validate` checks them before anything else."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import config_dict

from simclr_jax import losses, models, optim
from simclr_jax.config import identity, renamed
from simclr_jax.data import preprocessing
from simclr_jax.data.sampling import draws
from simclr_jax.data.views import composition
from simclr_jax.errors import ConfigError
from simclr_jax.models import resnet

Rule = tuple[str, Callable[[Any], bool], str]


def _positive(*keys: str) -> list[Rule]:
    return [(key, lambda v: 0 < v < math.inf, "must be positive") for key in keys]


def _not_negative(*keys: str) -> list[Rule]:
    rule = "must be finite and not negative"
    return [(key, lambda v: 0 <= v < math.inf, rule) for key in keys]


def _at_least_one(*keys: str) -> list[Rule]:
    return [(key, lambda v: v >= 1, "must be at least 1") for key in keys]


def _none_or_at_least_one(*keys: str) -> list[Rule]:
    return [(key, lambda v: v is None or v >= 1, "must be at least 1") for key in keys]


def _none_or_positive(key: str) -> Rule:
    return (key, lambda v: v is None or 0 < v < math.inf, "must be positive")


def _share(*keys: str) -> list[Rule]:
    return [(key, lambda v: 0 <= v <= 1, "must be between 0 and 1") for key in keys]


def _decay(*keys: str) -> list[Rule]:
    return [
        (key, lambda v: 0 <= v < 1, "must be at least 0 and below 1") for key in keys
    ]


def _fraction(key: str) -> Rule:
    return (key, lambda v: 0 < v <= 1, "must be above 0 and at most 1")


def _one_of(key: str, allowed: Any) -> list[Rule]:
    names = ", ".join(map(str, allowed))
    return [(key, lambda v: v in allowed, f"must be one of {names}")]


def as_tuple(value: Any) -> tuple[Any, ...]:
    """A setting that is one value or several."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 1


_RULES: list[Rule] = [
    *_not_negative("seed"),
    ("image_size", lambda v: v >= 8, "must be at least 8"),
    *_none_or_at_least_one("data.threads", "data.parallel_reads", "data.memory_mb"),
    *_at_least_one("data.block_size"),
    *_not_negative("data.in_memory_mb"),
    *_one_of("data.on_bad_record", ("replace", "stop")),
    *_share("data.bad_records_max"),
    *_one_of("augment.placement", composition.PLACEMENTS),
    *_one_of("augment.host_views", composition.HOST_VIEWS),
    ("batch.batch_size", lambda v: v >= 2, "must be at least 2"),
    ("batch.micro_batch_size", lambda v: v is None or v >= 2, "must be at least 2"),
    *_one_of("parallel.gradient_dtype", ("float32", "bfloat16")),
    *_one_of("parallel.remat", models.REMATERIALIZATIONS),
    *_one_of("augment.crop.sampler", ("reference", "torchvision")),
    *_positive(
        "augment.crop.area_min", "augment.crop.ratio_min", "augment.blur.sigma_min"
    ),
    *_share(
        "encoder.sk_ratio",
        "encoder.se_ratio",
        "augment.crop.area_max",
        "augment.flip.probability",
        "augment.color_jitter.probability",
        "augment.grayscale.probability",
        "augment.blur.probability",
        "augment.blur.kernel_fraction",
        "augment.rotation.probability",
        "augment.cutout.probability",
        "augment.cutout.size_fraction",
        "augment.noise.probability",
        "augment.sobel.probability",
    ),
    *_not_negative(
        "augment.color_jitter.strength",
        "augment.color_jitter.brightness",
        "augment.color_jitter.contrast",
        "augment.color_jitter.saturation",
        "augment.color_jitter.hue",
        "augment.noise.stddev_min",
    ),
    *_one_of("augment.color_jitter.brightness_mode", ("multiplicative", "additive")),
    *_one_of("encoder.depth", models.DEPTHS),
    *_positive("encoder.width"),
    *_one_of("encoder.stem", ("auto", *models.STEMS)),
    *_one_of("encoder.max_pool_padding", resnet.MAX_POOL_PADDINGS),
    *_one_of("encoder.normalization", resnet.NORMALIZATIONS),
    *_one_of("encoder.kernel_init", models.KERNEL_INITS),
    *_decay("encoder.batch_norm_momentum"),
    *_positive("encoder.batch_norm_epsilon"),
    *_one_of("encoder.compute_dtype", ("float32", "bfloat16")),
    *_one_of("head.kind", models.HEAD_KINDS),
    *_at_least_one("head.num_layers", "head.output_dim"),
    *_none_or_at_least_one("head.hidden_dim"),
    *_one_of("loss.name", losses.LOSSES),
    *_one_of("loss.form", ("auto", "global", "streaming")),
    *_positive("loss.temperature", "loss.weight_temperature", "loss.margin"),
    *_one_of("optimizer.name", optim.OPTIMIZERS),
    *_positive("optimizer.learning_rate", "optimizer.trust_coefficient"),
    *_one_of("optimizer.scaling", optim.SCALING_RULES),
    *_not_negative("optimizer.weight_decay"),
    *_decay("optimizer.momentum", "optimizer.b1", "optimizer.b2"),
    _none_or_positive("optimizer.clip_norm"),
    *_one_of("optimizer.on_nonfinite", ("stop", "skip")),
    *_at_least_one("optimizer.max_skipped_steps"),
    *_positive("schedule.train_epochs"),
    *_not_negative("schedule.warmup_epochs"),
    *_none_or_at_least_one("schedule.train_steps", "checkpoint.keep_every_steps"),
    ("schedule.warmup_steps", lambda v: v is None or v >= 0, "must not be negative"),
    *_one_of("schedule.extend", optim.EXTENSIONS),
    *_none_or_at_least_one("schedule.extend_step"),
    _none_or_positive("schedule.extend_learning_rate"),
    *_at_least_one(
        "log.every_steps",
        "checkpoint.every_steps",
        "checkpoint.keep_last",
        "evaluation.batch_size",
        "evaluation.lbfgs_steps",
        "evaluation.sgd_batch_size",
    ),
    _none_or_positive("checkpoint.every_secs"),
    _fraction("evaluation.crop_proportion"),
    *_one_of("evaluation.resize", preprocessing.RESIZES),
    ("evaluation.layer", lambda v: v >= -1, "must be at least -1"),
    (
        "evaluation.knn_k",
        lambda v: bool(as_tuple(v)) and all(_is_count(k) for k in as_tuple(v)),
        "must be one or more whole numbers of at least 1",
    ),
    *_positive(
        "evaluation.knn_temperature",
        "evaluation.sgd_epochs",
        "evaluation.sgd_learning_rate",
    ),
    *_decay("evaluation.sgd_momentum"),
    (
        "evaluation.l2_penalties",
        lambda v: len(v) > 0 and min(v) >= 0,
        "must be one or more numbers, none negative",
    ),
]

# Of groups that only some configs have.
_MORE_RULES: dict[str, list[Rule]] = {
    "finetune": [
        _fraction("finetune.label_fraction"),
        ("finetune.layer", lambda v: v >= -1, "must be at least -1"),
        ("finetune.after_group", lambda v: -1 <= v <= 4, "must be between -1 and 4"),
        *_one_of("finetune.batch_norm", ("train", "frozen")),
    ],
    "distill": [
        _fraction("distill.label_fraction"),
        *_positive("distill.temperature"),
        *_share("distill.labelled_weight"),
    ],
}

_ORDERED = (
    ("augment.crop.area_min", "augment.crop.area_max"),
    ("augment.crop.ratio_min", "augment.crop.ratio_max"),
    ("augment.blur.sigma_min", "augment.blur.sigma_max"),
    ("augment.noise.stddev_min", "augment.noise.stddev_max"),
)


@contextlib.contextmanager
def _as_config_error(key: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"config.{key}: missing or of the wrong type ({error})"
        ) from (error)


def validate(config: config_dict.ConfigDict) -> None:
    """Checks every value of a config.

    Raises:
      ConfigError: names the first key that breaks a rule, its value and the rule.
    """
    flat = identity.flatten(config)
    for old, new in renamed.KEYS.items():
        if old in flat:
            raise ConfigError(f"config.{old}={flat[old]!r}: is now called config.{new}")
    rules = [*_RULES]
    for group, more in _MORE_RULES.items():
        rules += more if group in config else []
    for key, holds, rule in rules:
        with _as_config_error(key):
            value = flat[key]
            valid = holds(value)
        if not valid:
            if isinstance(value, str) and value in renamed.VALUES.get(key, {}):
                rule = f"is now called {renamed.VALUES[key][value]!r}"
            raise ConfigError(f"config.{key}={value!r}: {rule}")
    for low, high in _ORDERED:
        with _as_config_error(high):
            ordered = flat[low] <= flat[high]
        if not ordered:
            raise ConfigError(
                f"config.{low}={flat[low]!r}: must not exceed "
                f"config.{high}={flat[high]!r}"
            )
    batch = config.batch
    if batch.batch_size % (batch.micro_batch_size or 1):
        raise ConfigError(
            f"config.batch.micro_batch_size={batch.micro_batch_size}: must divide "
            f"config.batch.batch_size={batch.batch_size}"
        )
    _check_extension(config.schedule)
    _check_augmentations(config)


def _check_extension(schedule: config_dict.ConfigDict) -> None:
    extend = schedule.extend
    needed = {
        "stretch": (),
        "restart": ("extend_step",),
        "constant": ("extend_step", "extend_learning_rate"),
    }[extend]
    for key in ("extend_step", "extend_learning_rate"):
        missing = key in needed and schedule[key] is None
        if missing or (extend == "stretch" and schedule[key] is not None):
            rule = "set" if missing else "left out"
            raise ConfigError(
                f"config.schedule.{key}={schedule[key]}: must be {rule} where "
                f"config.schedule.extend={extend!r}"
            )


def _check_augmentations(config: config_dict.ConfigDict) -> None:
    operations = tuple(config.augment.operations)
    known = draws.COUNTS
    for name in operations:
        if name not in known:
            raise ConfigError(
                f"config.augment.operations={operations!r}: {name!r} must be one of "
                f"{', '.join(sorted(known))}"
            )
    if not operations or len(set(operations)) < len(operations):
        raise ConfigError(
            f"config.augment.operations={operations!r}: must name one or more "
            "operations, each once"
        )
    if "crop" in operations[1:]:
        raise ConfigError(
            f"config.augment.operations={operations!r}: 'crop' must be the first, or "
            "left out"
        )
    if config.augment.placement == "accelerator" and config.data.block_size > 1:
        raise ConfigError(
            f"config.data.block_size={config.data.block_size}: must be 1 where "
            "config.augment.placement='accelerator', which reads nothing"
        )
    jitter = config.augment.color_jitter
    if jitter.hue * jitter.strength > 0.5:
        raise ConfigError(
            f"config.augment.color_jitter.hue={jitter.hue!r}: times strength="
            f"{jitter.strength!r} must be at most 0.5 (half a turn reaches every hue)"
        )


def check_devices(config: config_dict.ConfigDict, num_devices: int, group: str) -> None:
    """Checks that every device gets the same number of images.

    Args:
      config: valid.
      num_devices: that the batch is split over.
      group: 'batch' or 'evaluation'.

    Raises:
      ConfigError: a batch is not divisible by the devices.
    """
    for key, size in identity.flatten(config).items():
        is_size = key.startswith(f"{group}.") and key.endswith("batch_size")
        if is_size and size is not None and size % num_devices:
            raise ConfigError(
                f"config.{key}={size}: must be divisible by the {num_devices} devices"
            )
