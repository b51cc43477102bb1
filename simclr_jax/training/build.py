"""The parts of a train step, made from a config."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import config_dict

from simclr_jax import losses, models, optim
from simclr_jax.errors import ConfigError
from simclr_jax.training.objectives import NUM_VIEWS, Contrastive, Loss, Objective

Schedule = Callable[[jax.Array | int], jax.Array | float]
_ARRAYS = ("z", "labels")
OPTIMIZERS = ("lars", "sgd", "adamw")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a train step is made of. Hashable: a static argument of `jax.jit`.

    Attributes:
      model: encoder, head and optional probe.
      objective: what is minimised.
      optimizer: of all parameters.
      schedule: step -> learning rate; for the log, since `optimizer` holds it too.
      num_micro_batches: parts in which the model sees the batch; see `micro_batches`.
      shard_state: hold parameters and optimiser state once over all devices instead of
        on each of them.
    """

    model: models.SimCLR
    objective: Objective
    optimizer: optax.GradientTransformation
    schedule: Schedule
    num_micro_batches: int = 1
    shard_state: bool = False


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
        "batch_norm_momentum": encoder.batch_norm_momentum,
        "batch_norm_epsilon": encoder.batch_norm_epsilon,
        # Too small to be worth rounding: a thousandth of the encoder's work. Its weight
        # gradients are so summed in float32 too.
        "dtype": "float32",
    }


def make_head(settings: dict[str, Any]) -> models.ProjectionHead:
    """The inverse of `head_settings`."""
    dtype = jnp.dtype(settings["dtype"])
    return models.create_projection_head(**{**settings, "dtype": dtype})


def convolutions_for(platform: str) -> str:
    """The formulation of convolutions that is fast on 'cpu', 'gpu' or 'tpu'."""
    return "cpu" if platform == "cpu" else "direct"


def execution_settings(config: config_dict.ConfigDict, platform: str) -> dict[str, Any]:
    """Arguments of `models.create_encoder` on which weights do not depend."""
    return {
        "remat": config.parallel.remat,
        "convolutions": convolutions_for(platform),
        "gradient_dtype": config.parallel.gradient_dtype,
    }


def make_model(
    config: config_dict.ConfigDict, *, num_classes: int | None, platform: str
) -> models.SimCLR:
    """Encoder and head, and a probe where it is enabled and labels exist."""
    return models.SimCLR(
        encoder=make_encoder(
            encoder_settings(config), **execution_settings(config, platform)
        ),
        head=make_head(head_settings(config)),
        num_classes=num_classes if config.probe.enabled else None,
    )


def make_loss(
    config: config_dict.ConfigDict, *, num_classes: int | None, mesh: Mesh | None = None
) -> tuple[Loss, float | None, losses.Streaming | None]:
    """The config's objective.

    Args:
      config: the whole config; the objective's settings are in its group `loss`.
      num_classes: of the training labels; None where there are none.
      mesh: that the batch is split over; None for one device.

    Returns:
      The loss, its value at chance as in `Recipe`, and how it walks over similarities.

    Raises:
      ConfigError: the objective needs labels and there are none, or has no block-wise
        form and is to have one.
    """
    name = config.loss.name
    objective = losses.LOSSES[name]
    streaming = _make_streaming(config, objective, mesh)
    parameters = inspect.signature(objective.loss).parameters
    given = {"streaming": streaming} if objective.can_stream else {}
    settings = {
        key: config.loss[key]
        for key in parameters
        if key not in _ARRAYS and key not in given
    }
    chance = objective.chance(config.batch.batch_size, NUM_VIEWS, **settings)
    settings |= given
    if not objective.needs_labels:
        return lambda z, labels: objective.loss(z, **settings), chance, streaming
    if num_classes is None:
        raise ConfigError(
            f"config.loss.name={name!r}: needs labels, and config.data.dataset="
            f"{config.data.dataset!r} has none"
        )
    return lambda z, labels: objective.loss(z, labels, **settings), chance, streaming


def _make_streaming(
    config: config_dict.ConfigDict, objective: losses.Objective, mesh: Mesh | None
) -> losses.Streaming | None:
    form = config.loss.form
    if form == "global":
        return None
    if form == "streaming":
        if not objective.can_stream:
            raise ConfigError(
                f"config.loss.form='streaming': config.loss.name={config.loss.name!r} "
                "has no such form"
            )
        return losses.Streaming(mesh)
    return losses.choose_streaming(config.batch.batch_size * NUM_VIEWS, mesh)


def make_schedule(config: config_dict.ConfigDict) -> Schedule:
    """Step -> learning rate, of a resolved config."""
    return optim.warmup_cosine(
        optim.scaled_learning_rate(
            config.optimizer.learning_rate,
            config.batch.batch_size,
            config.optimizer.scaling,
        ),
        warmup_steps=config.schedule.warmup_steps,
        total_steps=config.schedule.train_steps,
    )


def count_micro_batches(config: config_dict.ConfigDict) -> int:
    """Parts in which the model sees the batch."""
    batch = config.batch
    return batch.batch_size // (batch.micro_batch_size or batch.batch_size)


def make_optimizer(
    optimizer: config_dict.ConfigDict, schedule: Schedule
) -> optax.GradientTransformation:
    """The optimiser of a config's group `optimizer`."""
    if optimizer.name == "lars":
        return optim.lars(
            schedule,
            weight_decay=optimizer.weight_decay,
            momentum=optimizer.momentum,
            trust_coefficient=optimizer.trust_coefficient,
            nesterov=optimizer.nesterov,
        )
    if optimizer.name == "sgd":
        return optim.sgd(
            schedule,
            weight_decay=optimizer.weight_decay,
            momentum=optimizer.momentum,
            nesterov=optimizer.nesterov,
        )
    if optimizer.name == "adamw":
        return optim.adamw(
            schedule,
            weight_decay=optimizer.weight_decay,
            b1=optimizer.b1,
            b2=optimizer.b2,
        )
    raise ValueError(f"optimizer.name={optimizer.name!r}: must be one of {OPTIMIZERS}")


def make_recipe(
    config: config_dict.ConfigDict, *, num_classes: int | None, mesh: Mesh | None = None
) -> Recipe:
    """Everything a train step needs.

    Args:
      config: resolved, so with training and warm-up steps decided.
      num_classes: of the training labels; None where there are none.
      mesh: that the step is to run on; None for one device.

    Raises:
      ConfigError: as `make_loss`.
    """
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    schedule = make_schedule(config)
    loss, chance, streaming = make_loss(config, num_classes=num_classes, mesh=mesh)
    return Recipe(
        model=make_model(config, num_classes=num_classes, platform=platform),
        objective=Contrastive(
            loss=loss,
            temperature=config.loss.temperature,
            chance=chance,
            streaming=streaming,
            probe_weight_decay=config.optimizer.weight_decay,
        ),
        optimizer=make_optimizer(config.optimizer, schedule),
        schedule=schedule,
        num_micro_batches=count_micro_batches(config),
        shard_state=config.parallel.shard_state,
    )
