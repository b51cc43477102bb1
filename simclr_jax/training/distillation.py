"""Self-training: a fine-tuned teacher labels images for a student (SimCLRv2).

Teacher and student see the same views. The student may be as large as the teacher or
smaller, and start from random or pretrained weights.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
import optax
from ml_collections import config_dict

from simclr_jax import parallel
from simclr_jax.config import rules
from simclr_jax.data.sources import subsets
from simclr_jax.data.sources.base import Source
from simclr_jax.errors import ConfigError
from simclr_jax.models.simclr import Outputs, Tree
from simclr_jax.parallel import processes
from simclr_jax.training import finetuning, input_pipeline, loop
from simclr_jax.training.finetuning import Weights
from simclr_jax.training.objectives import Batch, Metrics, classification, kernel_decay


@dataclasses.dataclass(frozen=True)
class Distillation:
    """A teacher's soft labels of one view (SimCLRv2, equations 2 and 3).

    Attributes:
      temperature: tau, of both softmaxes.
      labelled_weight: 1 - alpha, the weight of the true labels' cross entropy.
      classifier_weight_decay: as in `Supervised`.
    """

    temperature: float
    labelled_weight: float = 0.0
    classifier_weight_decay: float = 0.0
    chance: float | None = None
    num_views: int = 1

    def __call__(
        self, outputs: Outputs, params: Tree, batch: Batch
    ) -> tuple[jax.Array, Metrics]:
        """See `Objective`; the batch has `teacher_logits` [B, classes]."""
        assert outputs.logits is not None
        teacher = batch["teacher_logits"]
        distilled = jnp.mean(
            optax.softmax_cross_entropy(
                outputs.logits / self.temperature,
                jax.nn.softmax(teacher / self.temperature),
            )
        )
        labelled, accuracy = classification(outputs.logits, batch["labels"])
        weight = self.labelled_weight
        loss = (1 - weight) * distilled + weight * labelled
        agree = jnp.argmax(outputs.logits, -1) == jnp.argmax(teacher, -1)
        metrics = {
            "loss": loss,
            "distillation_loss": distilled,
            "labelled_loss": labelled,
            "accuracy": accuracy,
            "teacher_agreement": jnp.mean(agree.astype(jnp.float32)),
        }
        return loss + kernel_decay(params, self.classifier_weight_decay), metrics

    def diagnostics(self, outputs: Outputs) -> Metrics:
        """See `Objective`; none."""
        return {}


class Classifying(Weights, Protocol):
    """Weights with a classifier.

    Attributes:
      class_names: of its classes, where they are known.
    """

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Of its classes."""
        ...

    def classifier(self) -> jax.tree_util.Partial:
        """Prepared images [N, S, S, 3] in [0, 1] -> logits [N, classes]."""
        ...


def make_job(
    config: config_dict.ConfigDict, teacher: Classifying, weights: Weights | None = None
) -> loop.TrainingJob:
    """Checks and opens everything that distillation needs; no step runs yet.

    Args:
      config: as in `configs/distill.py`; its encoder is the student's.
      teacher: labels the images.
      weights: that the student starts from and whose architecture it then has; random
        weights when None.

    Raises:
      ConfigError, DataError: something cannot be run.
    """
    with processes.all_or_none():
        num_classes = teacher.model.num_classes
        if num_classes is None:
            raise ConfigError(
                "--teacher: has no classifier; fine-tune it first with "
                "`python -m simclr_jax.finetune`"
            )
        if weights is not None:
            config = finetuning.adopt(config, weights)
        rules.validate(config)
        finetuning.warn_of_other_size(config, teacher, "teacher was")
        source = input_pipeline.open_source(config, config.data.split, to_train=True)
        config = input_pipeline.with_handling(config, source)
        source = _usable_labels(config, source)
        if source.num_classes not in (None, num_classes):
            raise ConfigError(
                f"config.data.dataset={config.data.dataset!r}: has "
                f"{source.num_classes} classes and the teacher {num_classes}; use "
                "images of the teacher's classes, or images without labels"
            )
        config, source = finetuning.resolve_and_load(config, source)
        mesh = parallel.create_mesh()
        parts = finetuning.make_supervised(
            config,
            Distillation(
                temperature=config.distill.temperature,
                labelled_weight=config.distill.labelled_weight,
                classifier_weight_decay=config.optimizer.weight_decay,
            ),
            num_classes=num_classes,
            mesh=mesh,
            kept_layers=0,
        )
    initialize = None
    if weights is not None:
        initialize = finetuning.initialize_from(weights.variables, weights.heads)
    return loop.TrainingJob(
        config,
        source,
        parts,
        mesh,
        initialize=initialize,
        teacher=teacher.classifier(),
        teacher_classes=teacher.class_names,
    )


def _usable_labels(config: config_dict.ConfigDict, source: Source) -> Source:
    """The source with the labels that the loss may use; all of them if it uses none.

    Labels without a weight in the loss only serve the log.
    """
    settings = config.distill
    if settings.labelled_weight == 0:
        return source
    if source.num_classes is None:
        raise ConfigError(
            f"config.distill.labelled_weight={settings.labelled_weight}: must be 0 for "
            f"{source.name}, which has no labels"
        )
    return subsets.hide_labels(source, settings.label_fraction, seed=config.seed)
