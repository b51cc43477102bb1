"""Builds models, optimisers and schedules from a config, and describes weights."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import config_dict

from simclr_jax import losses, models, optim
from simclr_jax.config import identity, rules
from simclr_jax.errors import ConfigError
from simclr_jax.runs.health import HealthMonitor
from simclr_jax.training.objectives import NUM_VIEWS

Schedule = Callable[[jax.Array | int], jax.Array | float]


def encoder_settings(config: config_dict.ConfigDict) -> dict[str, Any]:
    """Keyword arguments of `models.create_encoder`, as JSON values."""
    encoder = config.encoder
    return {
        "depth": encoder.depth,
        "width": encoder.width,
        "sk_ratio": encoder.sk_ratio,
        "se_ratio": encoder.se_ratio,
        "stem": encoder.stem,
        "first_group_projection": encoder.first_group_projection,
        "max_pool_padding": encoder.max_pool_padding,
        "normalization": encoder.normalization,
        "kernel_init": encoder.kernel_init,
        "zero_init_residual": encoder.zero_init_residual,
        "batch_norm_momentum": encoder.batch_norm_momentum,
        "batch_norm_epsilon": encoder.batch_norm_epsilon,
        "dtype": encoder.compute_dtype,
    }


def make_encoder(settings: dict[str, Any], **execution: Any) -> models.ResNet:
    """The inverse of `encoder_settings`.

    Args:
      settings: what the weights depend on, as stored with them.
      **execution: how it is computed; further arguments of `models.create_encoder`.
    """
    dtype = jnp.dtype(settings["dtype"])
    return models.create_encoder(**{**settings, "dtype": dtype}, **execution)


def head_settings(config: config_dict.ConfigDict) -> dict[str, Any]:
    """Keyword arguments of `models.create_projection_head`, as JSON values."""
    head, encoder = config.head, config.encoder
    return {
        "kind": head.kind,
        "num_layers": head.num_layers,
        "hidden_dim": head.hidden_dim,
        "output_dim": head.output_dim,
        "kernel_init": head.kernel_init,
        "batch_norm_momentum": encoder.batch_norm_momentum,
        "batch_norm_epsilon": encoder.batch_norm_epsilon,
        # The head has 0.1 % of the FLOPs: it stays in float32, and so does the
        # all-reduce of its gradients.
        "dtype": "float32",
    }


def make_head(settings: dict[str, Any], **execution: Any) -> models.ProjectionHead:
    """The inverse of `head_settings`; `execution` as in `make_encoder`."""
    dtype = jnp.dtype(settings["dtype"])
    return models.create_projection_head(**{**settings, "dtype": dtype}, **execution)


def execution_settings(
    config: config_dict.ConfigDict, mesh: Mesh | None
) -> dict[str, Any]:
    """Arguments of `models.create_encoder` on which weights do not depend."""
    remat = config.parallel.remat
    return {
        # Chosen when the step is compiled: see `rematerialization`.
        "remat": "none" if remat == "auto" else remat,
        "gradient_dtype": config.parallel.gradient_dtype,
        "batch_norm_groups": batch_norm_groups(config, mesh),
        # By the TPU compiler's estimate, and as measured on a CPU; not known for GPUs.
        "pointwise_norm": _platform(mesh) == "tpu",
    }


def _platform(mesh: Mesh | None) -> str:
    """Of the devices that run the step."""
    device = mesh.devices.flat[0] if mesh else jax.devices()[0]
    return str(device.platform)


def batch_norm_groups(config: config_dict.ConfigDict, mesh: Mesh | None) -> int:
    """Parts of the batch with BatchNorm statistics of their own; 1 without a mesh."""
    if mesh is None:
        return 1
    return rules.num_norm_groups(config, mesh.size)


def make_model(
    config: config_dict.ConfigDict, *, num_classes: int | None, mesh: Mesh | None = None
) -> models.SimCLR:
    """Encoder and head, and a probe where it is enabled and labels exist."""
    encoder = make_encoder(encoder_settings(config), **execution_settings(config, mesh))
    groups = batch_norm_groups(config, mesh)
    return models.SimCLR(
        encoder=encoder,
        head=make_head(head_settings(config), batch_norm_groups=groups),
        num_classes=num_classes if config.probe.enabled else None,
    )


def make_health_monitor(config: config_dict.ConfigDict) -> HealthMonitor:
    """The monitor of a pretraining's metrics."""
    num_images = config.batch.batch_size if config.loss.normalize else None
    # With labels, a low rank of z is expected.
    check_rank = not losses.LOSSES[config.loss.name].needs_labels
    return HealthMonitor(check_rank=check_rank, num_images=num_images)


def make_streaming(
    config: config_dict.ConfigDict, mesh: Mesh | None
) -> losses.Streaming | None:
    """How loss and diagnostics walk over the similarities; None: as one matrix.

    Raises:
      ConfigError: the loss is to stream and has no such form.
    """
    form = config.loss.form
    if form == "global":
        return None
    if form == "streaming":
        if not losses.LOSSES[config.loss.name].can_stream:
            raise ConfigError(
                f"config.loss.form='streaming': config.loss.name={config.loss.name!r} "
                "has no such form"
            )
        return losses.Streaming(mesh)
    return losses.choose_streaming(config.batch.batch_size * NUM_VIEWS, mesh)


def make_schedule(config: config_dict.ConfigDict) -> Schedule:
    """Step -> learning rate, of a resolved config."""

    def scaled(rate: float) -> float:
        size, rule = config.batch.batch_size, config.optimizer.scaling
        return optim.scaled_learning_rate(rate, size, rule)

    schedule = config.schedule
    again = schedule.extend_learning_rate
    return optim.extended_cosine(
        scaled(config.optimizer.learning_rate),
        warmup_steps=schedule.warmup_steps,
        total_steps=schedule.train_steps,
        extend=schedule.extend,
        extend_step=schedule.extend_step,
        extend_peak=None if again is None else scaled(again),
    )


def count_micro_batches(config: config_dict.ConfigDict) -> int:
    """Parts in which the model sees the batch."""
    batch = config.batch
    return batch.batch_size // (batch.micro_batch_size or batch.batch_size)


def make_optimizer(
    optimizer: config_dict.ConfigDict, schedule: Schedule
) -> optax.GradientTransformation:
    """The optimiser of a config's group `optimizer`."""
    made = optim.clipped(_unclipped(optimizer, schedule), optimizer.clip_norm)
    # Tells `plan` where its work is.
    return optax.GradientTransformation(
        made.init, jax.named_scope("optimizer")(made.update)
    )


def _unclipped(
    optimizer: config_dict.ConfigDict, schedule: Schedule
) -> optax.GradientTransformation:
    decay: dict[str, Any] = {
        "weight_decay": optimizer.weight_decay,
        "decayed": optimizer.decayed,
    }
    if optimizer.name == "adamw":
        return optim.adamw(schedule, **decay, b1=optimizer.b1, b2=optimizer.b2)
    trace = {"momentum": optimizer.momentum, "nesterov": optimizer.nesterov}
    if optimizer.name == "sgd":
        return optim.sgd(schedule, **decay, **trace)
    if optimizer.name == "lars":
        coefficient = optimizer.trust_coefficient
        return optim.lars(schedule, **decay, **trace, trust_coefficient=coefficient)
    raise ValueError(
        f"optimizer.name={optimizer.name!r}: must be one of {optim.OPTIMIZERS}"
    )


def describe(config: config_dict.ConfigDict, model: models.SimCLR) -> dict[str, Any]:
    """How to rebuild a model and prepare its images: a checkpoint's `description`.

    Args:
      config: resolved.
      model: of the config.
    """
    kept = {"kept_layers": model.head.kept_layers}
    return {
        "encoder": encoder_settings(config),
        "head": head_settings(config) | kept,
        "num_classes": model.num_classes,
        "fine_tuned": model.fine_tuned,
        "preprocessing": {
            "image_size": config.image_size,
            "crop_proportion": config.evaluation.crop_proportion,
            "resize": config.evaluation.resize,
            "white_level": config.data.white_level,
            "exif_orientation": bool(config.data.exif_orientation),
        },
        "batch_size": config.batch.batch_size,
        "config_hash": identity.config_hash(identity.as_json(config)),
    }
