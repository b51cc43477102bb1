"""Runs with weights by the formula: no scale is 0, all statistics have moved."""

import pathlib
from typing import Any

import jax
import numpy as np
import reference_weights

from simclr_jax.configs import finetune, smoke
from simclr_jax.data.sources.listings import Listing
from simclr_jax.models import SimCLR
from simclr_jax.runs import dataset_record, directory
from simclr_jax.runs.checkpoints import Checkpoints
from simclr_jax.training import build
from simclr_jax.training.build import describe

TINY = {"depth": 18, "width": 1 / 16, "stem": "imagenet"}
STEP = 7


def write(
    workdir: pathlib.Path,
    *,
    image_size: int = 32,
    crop_proportion: float = 1.0,
    resize: str = "bicubic",
    steps: tuple[int, ...] = (STEP,),
    classes: tuple[str, ...] | None = None,
    kept_layers: int = 0,
    named: bool = True,
    **encoder: Any,
) -> str:
    """Writes a run; each checkpoint scales the formula's weights differently.

    Args:
      workdir: of the run.
      image_size: of its encoder's inputs.
      crop_proportion: of its preprocessing.
      resize: of its preprocessing.
      steps: of its checkpoints.
      classes: of a classifier, which makes the run a fine-tuned one.
      kept_layers: layers of the projection head below the classifier.
      named: whether the run records the names of its classes.
      **encoder: keys of the config's group `encoder`, in addition to `TINY`.

    Returns:
      `workdir`, as text.
    """
    config = smoke.get_config()
    config.image_size = image_size
    config.evaluation.crop_proportion = crop_proportion
    config.evaluation.resize = resize
    config.head.output_dim = 8
    for key, value in {**TINY, **encoder}.items():
        config.encoder[key] = value
    if classes is not None:
        config = finetune.adapt(config, 0.1)
        config.finetune.init_from = "runs/first"
        config.finetune.layer = kept_layers
    model = build.make_model(config, num_classes=None)
    if classes is not None:
        head = model.head.clone(kept_layers=kept_layers)
        model = SimCLR(model.encoder, head, len(classes), fine_tuned=True)
    shape = (1, image_size, image_size, 3)
    like = jax.eval_shape(model.init, jax.random.key(0), np.zeros(shape, "f4"))
    params, batch_stats = map(reference_weights.fill, like)
    checkpoints = Checkpoints(str(workdir), keep_last=5, keep_every_steps=None)
    for step in steps:
        scaled = jax.tree.map(lambda x, step=step: x * (step / steps[-1]), params)
        description = describe(config, model)
        checkpoints.save_weights(step, scaled, batch_stats, description)
    checkpoints.close()
    directory.write_config(str(workdir), config)
    if classes is not None and named:
        listing = Listing(1, len(classes), list(classes), "file", {})
        dataset_record.write(str(workdir), listing)
    return str(workdir)
