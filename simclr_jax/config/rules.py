"""The rules of all config keys; `validate` checks them before anything else."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import config_dict

from simclr_jax import losses, models, optim
from simclr_jax.config import identity, log_writers, renamed
from simclr_jax.data import preprocessing
from simclr_jax.data.sampling import draws
from simclr_jax.data.views import composition
from simclr_jax.errors import ConfigError
from simclr_jax.models import normalization, resnet

Rule = tuple[str, Callable[[Any], bool], str]

# JAX counts steps in 32 bits.
MOST_STEPS = 2**31 - 1
# Of images in a batch, and of channels of a layer.
_MOST_IMAGES, _MOST_CHANNELS = 2**24, 2**20


def _is_whole(value: Any) -> bool:
    # True and False are integers in Python, but no numbers here.
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    # Comparisons of whole numbers with floats are exact, however large they are.
    return _is_whole(value) or isinstance(value, float)


def _whole(low: int, high: int, *keys: str, none: bool = False) -> list[Rule]:
    rule = f"must be a whole number from {low} to {high}"
    return [
        (
            key,
            lambda v: (none and v is None) or (_is_whole(v) and low <= v <= high),
            rule + (", or None" if none else ""),
        )
        for key in keys
    ]


def _between(low: float, high: float, *keys: str, none: bool = False) -> list[Rule]:
    sign = "must be positive, " if low > 0 else "must be "
    rule = f"{sign}between {low:g} and {high:g}"
    return [
        (
            key,
            lambda v: (none and v is None) or (_is_number(v) and low <= v <= high),
            rule + (", or None" if none else ""),
        )
        for key in keys
    ]


def _share(*keys: str) -> list[Rule]:
    return _between(0, 1, *keys)


def _decay(*keys: str) -> list[Rule]:
    rule = "must be at least 0 and below 1"
    return [(key, lambda v: _is_number(v) and 0 <= v < 1, rule) for key in keys]


def _fraction(*keys: str) -> list[Rule]:
    rule = "must be above 0 and at most 1"
    return [(key, lambda v: _is_number(v) and 0 < v <= 1, rule) for key in keys]


def _one_of(key: str, allowed: Any) -> list[Rule]:
    names = ", ".join(map(str, allowed))
    return [(key, lambda v: v in allowed, f"must be one of {names}")]


def _flag(*keys: str, none: bool = False) -> list[Rule]:
    rule = "must be True or False" + (", or None" if none else "")
    return [
        (key, lambda v: isinstance(v, bool) or (none and v is None), rule)
        for key in keys
    ]


def _text(*keys: str) -> list[Rule]:
    rule = "must be a text, not empty and without NUL"
    return [(key, _is_text, rule) for key in keys]


def _text_or_none(*keys: str) -> list[Rule]:
    rule = "must be None or a text, not empty and without NUL"
    return [(key, lambda v: v is None or _is_text(v), rule) for key in keys]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != "" and "\0" not in value


def as_tuple(value: Any) -> tuple[Any, ...]:
    """A setting that is one value or several."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _are(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: bool(as_tuple(v)) and all(map(holds, as_tuple(v)))


_RULES: list[Rule] = [
    # Keys of random numbers are made from 32 bits.
    *_whole(0, 2**32 - 1, "seed"),
    *_whole(8, 4096, "image_size"),
    *_text("data.dataset", "data.split", "data.image_key", "data.label_key"),
    *_text_or_none("data.data_dir"),
    *_whole(1, 1024, "data.threads", none=True),
    *_whole(1, 2**16, "data.parallel_reads", none=True),
    *_whole(1, MOST_STEPS, "data.memory_mb", none=True),
    *_whole(1, 2**16, "data.block_size"),
    *_whole(0, MOST_STEPS, "data.in_memory_mb"),
    *_whole(1, 2**32 - 1, "data.white_level", none=True),
    *_flag("data.exif_orientation", none=True),
    *_one_of("data.on_bad_record", ("replace", "stop")),
    *_share("data.bad_records_max"),
    *_one_of("augment.placement", composition.PLACEMENTS),
    *_one_of("augment.host_views", composition.HOST_VIEWS),
    *_whole(2, _MOST_IMAGES, "batch.batch_size"),
    *_whole(2, _MOST_IMAGES, "batch.micro_batch_size", none=True),
    *_whole(1, _MOST_IMAGES, "batch.norm_group", none=True),
    *_whole(1, _MOST_IMAGES, "batch.norm_parts"),
    *_flag("parallel.shard_state", "parallel.deterministic"),
    *_one_of("parallel.gradient_dtype", ("float32", "bfloat16")),
    *_one_of("parallel.remat", ("auto", *models.REMATERIALIZATIONS)),
    *_one_of("augment.crop.sampler", ("reference", "torchvision")),
    *_flag("augment.crop.antialias"),
    # No smaller crop has pixels, and no more oblong one fits into an image.
    *_between(1e-6, 1, "augment.crop.area_min"),
    *_between(1e-3, 1, "augment.crop.area_max"),
    *_between(0.1, 10, "augment.crop.ratio_min", "augment.crop.ratio_max"),
    # Pixels; a wider kernel than `kernel_fraction` is cut off.
    *_between(0.01, 1000, "augment.blur.sigma_min", "augment.blur.sigma_max"),
    *_fraction("augment.blur.kernel_fraction", "augment.cutout.size_fraction"),
    *_share(
        "encoder.sk_ratio",
        "encoder.se_ratio",
        "augment.flip.probability",
        "augment.color_jitter.probability",
        "augment.grayscale.probability",
        "augment.blur.probability",
        "augment.rotation.probability",
        "augment.cutout.probability",
        "augment.noise.probability",
        "augment.sobel.probability",
        # Of pixels from 0 to 1.
        "augment.noise.stddev_min",
        "augment.noise.stddev_max",
    ),
    *_between(
        0,
        10,
        "augment.color_jitter.strength",
        "augment.color_jitter.brightness",
        "augment.color_jitter.contrast",
        "augment.color_jitter.saturation",
        "augment.color_jitter.hue",
    ),
    *_one_of("augment.color_jitter.brightness_mode", ("multiplicative", "additive")),
    *_one_of("encoder.depth", models.DEPTHS),
    # One filter in the first layer, or 1,024.
    *_between(1 / 64, 16, "encoder.width"),
    *_one_of("encoder.stem", ("auto", *models.STEMS)),
    *_flag("encoder.first_group_projection", "encoder.zero_init_residual"),
    *_one_of("encoder.max_pool_padding", resnet.MAX_POOL_PADDINGS),
    (
        "encoder.normalization",
        normalization.is_valid,
        f"{normalization.RULE}; or dataset",
    ),
    *_one_of("encoder.kernel_init", models.KERNEL_INITS),
    *_decay("encoder.batch_norm_momentum"),
    *_between(1e-12, 1, "encoder.batch_norm_epsilon"),
    *_one_of("encoder.compute_dtype", ("float32", "bfloat16")),
    *_one_of("head.kind", models.HEAD_KINDS),
    *_one_of("head.kernel_init", models.HEAD_KERNEL_INITS),
    *_whole(1, 100, "head.num_layers"),
    *_whole(1, _MOST_CHANNELS, "head.output_dim"),
    *_whole(1, _MOST_CHANNELS, "head.hidden_dim", none=True),
    *_one_of("loss.name", losses.LOSSES),
    *_one_of("loss.form", ("auto", "global", "streaming")),
    *_flag("loss.normalize", "loss.semi_hard"),
    # float32 holds exp(1 / temperature) down to 0.012, and differences of exponents
    # below that; at 0.001 one pair decides alone.
    *_between(
        1e-3,
        1e3,
        "loss.temperature",
        "loss.weight_temperature",
        "loss.margin",
        "evaluation.knn_temperature",
    ),
    *_one_of("optimizer.name", optim.OPTIMIZERS),
    # What float32 has; rates that make a training diverge end it with an error.
    *_between(
        1e-30,
        1e30,
        "optimizer.learning_rate",
        "optimizer.trust_coefficient",
        "evaluation.sgd_learning_rate",
    ),
    *_one_of("optimizer.scaling", optim.SCALING_RULES),
    *_between(0, 1, "optimizer.weight_decay"),
    *_one_of("optimizer.decayed", optim.DECAYED),
    *_flag("optimizer.nesterov", "probe.enabled"),
    *_decay("optimizer.momentum", "optimizer.b1", "optimizer.b2"),
    *_between(1e-30, 1e30, "optimizer.clip_norm", none=True),
    *_one_of("optimizer.on_nonfinite", ("stop", "skip")),
    *_whole(1, MOST_STEPS, "optimizer.max_skipped_steps"),
    *_between(1e-6, 1e6, "schedule.train_epochs", "evaluation.sgd_epochs"),
    *_between(0, 1e6, "schedule.warmup_epochs"),
    *_whole(1, MOST_STEPS, "schedule.train_steps", none=True),
    *_whole(0, MOST_STEPS, "schedule.warmup_steps", none=True),
    *_whole(1, MOST_STEPS, "checkpoint.keep_every_steps", none=True),
    *_one_of("schedule.extend", optim.EXTENSIONS),
    *_whole(1, MOST_STEPS, "schedule.extend_step", none=True),
    *_between(1e-30, 1e30, "schedule.extend_learning_rate", none=True),
    *_flag("checkpoint.checksums", "checkpoint.keep_best"),
    *_whole(
        1, MOST_STEPS, "evaluation.every_steps", "evaluation.bank_images", none=True
    ),
    *_text_or_none("evaluation.held_out_split"),
    *_whole(
        1,
        MOST_STEPS,
        "log.every_steps",
        "checkpoint.every_steps",
        "checkpoint.keep_last",
        "evaluation.lbfgs_steps",
    ),
    *_whole(1, _MOST_IMAGES, "evaluation.batch_size", "evaluation.sgd_batch_size"),
    (
        "checkpoint.every_secs",
        lambda v: v is None or (_is_number(v) and 0 < v <= MOST_STEPS),
        f"must be None, or positive and at most {MOST_STEPS}",
    ),
    ("log.writers", log_writers.are_names, log_writers.RULE),
    *_text("evaluation.train_split", "evaluation.test_split"),
    *_between(0.01, 1, "evaluation.crop_proportion"),
    *_one_of("evaluation.resize", preprocessing.RESIZES),
    *_whole(-1, 100, "evaluation.layer"),
    (
        "evaluation.knn_k",
        _are(lambda k: _is_whole(k) and 1 <= k <= MOST_STEPS),
        f"must be one or more whole numbers of at least 1 and at most {MOST_STEPS}",
    ),
    *_decay("evaluation.sgd_momentum"),
    (
        "evaluation.l2_penalties",
        _are(lambda p: _is_number(p) and 0 <= p <= 1e6),
        "must be one or more numbers between 0 and 1e+06",
    ),
]

# Of groups that only some configs have.
_MORE_RULES: dict[str, list[Rule]] = {
    "finetune": [
        *_fraction("finetune.label_fraction"),
        *_whole(-1, 100, "finetune.layer"),
        *_whole(-1, 4, "finetune.after_group"),
        *_one_of("finetune.batch_norm", ("train", "frozen")),
        *_one_of("finetune.class_weights", ("none", "balanced")),
        *_one_of("finetune.sampling", ("shuffled", "balanced")),
        *_text_or_none("finetune.init_from", "finetune.init_checksum"),
    ],
    "pretrain": _text_or_none("pretrain.init_from", "pretrain.init_checksum"),
    "distill": [
        *_fraction("distill.label_fraction"),
        *_between(1e-3, 1e3, "distill.temperature"),
        *_share("distill.labelled_weight"),
        *_text_or_none(
            "distill.teacher",
            "distill.teacher_checksum",
            "distill.init_from",
            "distill.init_checksum",
        ),
    ],
}

_ORDERED = (
    ("augment.crop.area_min", "augment.crop.area_max"),
    ("augment.crop.ratio_min", "augment.crop.ratio_max"),
    ("augment.blur.sigma_min", "augment.blur.sigma_max"),
    ("augment.noise.stddev_min", "augment.noise.stddev_max"),
)


def check_keys(config: dict[str, Any], *, file: str) -> None:
    """Checks that a file has every key, whatever its value.

    Raises:
      ConfigError: one is missing, or is no name of a key.
    """
    flat = identity.flatten(config)
    missing = sorted({key for key, _, _ in _RULES} - flat.keys())
    if missing:
        raise ConfigError(f"file {file}: lacks the key {missing[0]}")
    names = [name for key in flat for name in key.split(".")]
    if not all(map(str.isidentifier, names)):
        raise ConfigError(f"file {file}: has keys that are no names")


@contextlib.contextmanager
def _as_config_error(key: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"config.{key}: missing or of the wrong type ({error})"
        ) from error


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
            raise ConfigError(f"config.{key}={_shown(value)}: {rule}")
    _check_pairs(config, flat)
    _check_augmentations(config)


def _check_pairs(config: config_dict.ConfigDict, flat: dict[str, Any]) -> None:
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
    if config.checkpoint.keep_best and config.evaluation.every_steps is None:
        raise ConfigError(
            "config.checkpoint.keep_best=True: must come with "
            "config.evaluation.every_steps, whose figures say which one is the best"
        )
    _check_extension(config.schedule)


def _shown(value: Any) -> str:
    """A value as Python writes it; the ends of a long one."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 200 else f"{text[:150]} ... {text[-30:]}"


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
    operations = config.augment.operations
    are_names = isinstance(operations, tuple | list) and all(
        isinstance(name, str) for name in operations
    )
    if not are_names:
        raise ConfigError(
            f"config.augment.operations={_shown(operations)}: must be a tuple of names"
        )
    operations = tuple(operations)
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
            f"config.augment.color_jitter.hue={jitter.hue!r}: times "
            f"config.augment.color_jitter.strength={jitter.strength!r} must be at most "
            "0.5 (half a turn reaches every hue)"
        )


def check_devices(config: config_dict.ConfigDict, num_devices: int, group: str) -> None:
    """Checks that every device gets the same number of images.

    Args:
      config: valid.
      num_devices: that the batch is split over.
      group: 'batch' or 'evaluation'.

    Raises:
      ConfigError: a batch is not divisible by the devices, or they by
        `batch.norm_group`, or its images by the parts of `batch.norm_parts`.
    """
    size = config.batch.norm_group
    if group == "batch" and size is not None and num_devices % size:
        raise ConfigError(
            f"config.batch.norm_group={size}: must divide the {num_devices} devices"
        )
    for key, size in identity.flatten(config).items():
        is_size = key.startswith(f"{group}.") and key.endswith("batch_size")
        if is_size and size is not None and size % num_devices:
            raise ConfigError(
                f"config.{key}={size}: must be divisible by the {num_devices} devices"
            )
    batch = config.batch
    images = batch.micro_batch_size or batch.batch_size
    if group == "batch" and images % num_norm_groups(config, num_devices):
        raise ConfigError(
            f"config.batch.norm_parts={batch.norm_parts}: must divide the {images} "
            "images of a batch, micro-batch or, with batch.norm_group, group of devices"
        )


def num_norm_groups(config: config_dict.ConfigDict, num_devices: int) -> int:
    """Parts of a batch, or micro-batch, with BatchNorm statistics of their own.

    Args:
      config: valid for the devices.
      num_devices: that the batch is split over.
    """
    group = config.batch.norm_group or num_devices
    return int(config.batch.norm_parts * (num_devices // group))


def image_unit(config: config_dict.ConfigDict, num_devices: int) -> int:
    """What the number of images in one forward pass must be a multiple of.

    Args:
      config: valid; `batch.norm_group` counts where it divides the devices.
      num_devices: that they are split over.
    """
    return math.lcm(num_devices, num_norm_groups(config, num_devices) or 1)


def batch_unit(config: config_dict.ConfigDict, num_devices: int) -> int:
    """`image_unit` of a batch, which is made of whole micro-batches too."""
    unit = image_unit(config, num_devices)
    return math.lcm(unit, config.batch.micro_batch_size or 1)
