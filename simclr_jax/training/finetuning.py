"""Supervised training of a pretrained encoder, on all or a share of the labels.

SimCLR fine-tunes the whole network with a new linear classifier (appendix B.5).
SimCLRv2 puts the classifier on a middle layer of the projection head instead of h, and
so fine-tunes the layers of the head below it too (section 2.2).
"""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import optax
from jax.sharding import Mesh
from ml_collections import config_dict

from simclr_jax import models, optim, parallel
from simclr_jax.config import resolve, rules
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.data.sources import subsets
from simclr_jax.data.sources.base import Source
from simclr_jax.errors import ConfigError
from simclr_jax.models.simclr import Outputs, Tree
from simclr_jax.parallel import processes
from simclr_jax.training import (
    build,
    class_balance,
    input_pipeline,
    loop,
    pixel_moments,
    step,
)
from simclr_jax.training.objectives import (
    Batch,
    Metrics,
    Objective,
    classification,
    kernel_decay,
)
from simclr_jax.training.step import TrainState

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Supervised:
    """Cross entropy of the labels, of one view.

    Attributes:
      classifier_weight_decay: of the classifier's kernel, as half the squared norm.
      class_weights: factors of the loss by class; None for equal ones.
    """

    classifier_weight_decay: float = 0.0
    class_weights: tuple[float, ...] | None = None
    chance: float | None = None
    num_views: int = 1

    def __call__(
        self, outputs: Outputs, params: Tree, batch: Batch
    ) -> tuple[jax.Array, Metrics]:
        """See `Objective`."""
        assert outputs.logits is not None
        loss, accuracy = classification(
            outputs.logits, batch["labels"], self.class_weights
        )
        decay = kernel_decay(params, self.classifier_weight_decay)
        return loss + decay, {"loss": loss, "accuracy": accuracy}

    def diagnostics(self, outputs: Outputs) -> Metrics:
        """See `Objective`; none."""
        return {}


class Weights(Protocol):
    """A network to start from, as `simclr_jax.load` returns it.

    Attributes:
      model: its modules.
      variables: {'params', 'batch_stats'} of the encoder.
      heads: those of the projection head and the classifier, by part.
      preprocessing: of its images.
    """

    @property
    def model(self) -> models.SimCLR:
        """The modules."""
        ...

    @property
    def variables(self) -> Tree:
        """Of the encoder."""
        ...

    @property
    def heads(self) -> Tree:
        """Of the rest."""
        ...

    @property
    def preprocessing(self) -> Preprocessing:
        """Of its images."""
        ...


def make_job(
    config: config_dict.ConfigDict, weights: Weights, *, fit_batch: bool = False
) -> loop.TrainingJob:
    """Checks and opens everything that fine-tuning needs; no step runs yet.

    Args:
      config: as in `configs/finetune.py`; encoder, head and the preprocessing of
        evaluation are those of the weights.
      weights: to start from.
      fit_batch: lower a batch size that exceeds the number of images, instead of
        raising an error.

    Raises:
      ConfigError, DataError: something cannot be run.
    """
    with processes.all_or_none():
        config = adopt(config, weights)
        check(config, weights)
        source = input_pipeline.open_labelled(
            config, config.data.split, why="fine-tuning needs them", to_train=True
        )
        config = input_pipeline.with_handling(config, source)
        source = subsets.class_balanced(
            source, config.finetune.label_fraction, seed=config.seed
        )
        mesh = parallel.create_mesh()
        if fit_batch:
            config = resolve.with_fitting_batch(config, source.num_examples, mesh.size)
        config, source = resolve_and_load(config, source)
        settings = config.finetune
        parts = make_supervised(
            config,
            Supervised(
                classifier_weight_decay=config.optimizer.weight_decay,
                class_weights=class_balance.weights(config, source),
            ),
            num_classes=source.num_classes or 0,
            mesh=mesh,
            kept_layers=num_kept_layers(settings.layer, weights.model.head),
            frozen_through=settings.after_group,
            frozen_batch_norm=settings.batch_norm == "frozen",
        )
    return loop.TrainingJob(
        config,
        source,
        parts,
        mesh,
        initialize=initialize_from(weights.variables, weights.heads),
    )


def check(config: config_dict.ConfigDict, weights: Weights) -> None:
    """Checks the settings of a fine-tuning, without its images.

    Raises:
      ConfigError: one cannot be used.
    """
    rules.validate(config)
    check_head(config.finetune.layer, weights.model.head)
    class_balance.check(config)


def adopt(config: config_dict.ConfigDict, weights: Weights) -> config_dict.ConfigDict:
    """A copy of a config with the architecture and preprocessing of some weights."""
    config = config.copy_and_resolve_references()
    encoder, head = weights.model.encoder, weights.model.head
    with config.unlocked(), config.ignore_type():
        for key in build.encoder_settings(config):
            if key != "dtype":  # the config decides how it is computed
                config.encoder[key] = getattr(encoder, key)
        for key in ("kind", "num_layers", "hidden_dim", "output_dim"):
            config.head[key] = getattr(head, key)
        config.evaluation.crop_proportion = weights.preprocessing.crop_proportion
        config.evaluation.resize = weights.preprocessing.resize
        if config.data.white_level is None:
            config.data.white_level = weights.preprocessing.white_level
    warn_of_other_size(config, weights, "weights were")
    return config


def warn_of_other_size(
    config: config_dict.ConfigDict, weights: Weights, subject: str
) -> None:
    """Warns if weights see images of another size than in their training."""
    size = weights.preprocessing.image_size
    if config.image_size != size:
        _LOG.warning(
            "config.image_size=%d: the %s trained at %d pixels.",
            config.image_size,
            subject,
            size,
        )


def check_group(config: config_dict.ConfigDict, group: str) -> None:
    """Raises ConfigError if a config is not of this kind of training."""
    if group not in config:
        raise ConfigError(
            f"--config: has no group {group!r}; use configs/{group}.py:NAME, which "
            "takes dataset and sizes from configs/NAME.py"
        )


def num_kept_layers(layer: int, head: models.ProjectionHead) -> int:
    """Number of the head's layers below a classifier on `layer`."""
    return layer if layer >= 0 else head.num_outputs - 1


def check_head(layer: int, head: models.ProjectionHead) -> None:
    """Raises ConfigError if a projection head has no such layer."""
    if not -1 <= layer < head.num_outputs:
        raise ConfigError(
            f"config.finetune.layer={layer}: must be 0 (h), -1 (z) or up to "
            f"{head.num_outputs - 1}, the layers of the weights' projection head"
        )


def resolve_and_load(
    config: config_dict.ConfigDict, source: Source
) -> tuple[config_dict.ConfigDict, Source]:
    """(the resolved config, the images in memory if the config wants them there)."""
    source = input_pipeline.hold_in_memory(config, source, num_views=1)
    return pixel_moments.resolve(config, source), source


def make_supervised(
    config: config_dict.ConfigDict,
    objective: Objective,
    *,
    num_classes: int,
    mesh: Mesh,
    kept_layers: int,
    frozen_through: int = -1,
    frozen_batch_norm: bool = False,
) -> step.StepParts:
    """The parts of a step with a new classifier on the remaining layers of the head.

    Args:
      config: resolved.
      objective: of one view.
      num_classes: of the classifier.
      mesh: of the devices that run the step.
      kept_layers: layers of the projection head below the classifier.
      frozen_through: as in `models.create_encoder`.
      frozen_batch_norm: train with the running statistics, and leave them and
        BatchNorm's scales and offsets unchanged.
    """
    schedule = build.make_schedule(config)
    model = models.SimCLR(
        encoder=build.make_encoder(
            build.encoder_settings(config),
            frozen_through=frozen_through,
            frozen_batch_norm=frozen_batch_norm,
            **build.execution_settings(config, mesh),
        ),
        head=build.make_head(
            build.head_settings(config)
            | {"kept_layers": kept_layers, "frozen_batch_norm": frozen_batch_norm},
            batch_norm_groups=build.batch_norm_groups(config, mesh),
        ),
        num_classes=num_classes,
        fine_tuned=True,
    )
    optimizer = build.make_optimizer(config.optimizer, schedule)
    if frozen_through >= 0 or frozen_batch_norm:
        optimizer = _freeze(optimizer, frozen_through, frozen_batch_norm)
    return step.StepParts(
        model=model,
        objective=objective,
        optimizer=optimizer,
        schedule=schedule,
        num_micro_batches=build.count_micro_batches(config),
        shard_state=config.parallel.shard_state,
        skip_nonfinite=config.optimizer.on_nonfinite == "skip",
    )


def _freeze(
    optimizer: optax.GradientTransformation, through: int, batch_norm: bool
) -> optax.GradientTransformation:
    parts = ["stem", *(f"group{i}" for i in range(1, through + 1))]
    frozen_parts = parts if through >= 0 else []

    def is_frozen(path: Sequence[Any]) -> bool:
        names = [jax.tree_util.keystr((key,), simple=True) for key in path]
        if names[0] == "encoder" and names[1] in frozen_parts:
            return True
        # BatchNorms are called bn1, bn2, ..., fc1_bn and bn in all modules.
        return batch_norm and names[-2].rpartition("_")[2].startswith("bn")

    return optim.freeze(optimizer, is_frozen)


def initialize_from(variables: Tree, heads: Tree) -> jax.tree_util.Partial:
    """A function that puts weights into a new state, except for its classifier.

    Args:
      variables: of the encoder, as in `Weights`.
      heads: as in `Weights`; without a projection head, that of the state stays.
    """
    return jax.tree_util.Partial(_initialize, variables, heads)


def _initialize(variables: Tree, heads: Tree, state: TrainState) -> TrainState:
    def replaced(drawn: Tree, name: str) -> Tree:
        weights = {"encoder": variables[name]}
        if "head" in drawn and "head" in heads.get(name, {}):
            head = heads[name]["head"]
            # The new state has only the layers below the classifier.
            weights["head"] = {layer: head[layer] for layer in drawn["head"]}
        return drawn | weights

    return TrainState(
        step=state.step,
        params=replaced(state.params, "params"),
        batch_stats=replaced(state.batch_stats, "batch_stats"),
        opt_state=state.opt_state,
    )
