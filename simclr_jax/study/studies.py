"""The studies by name. Each is a function of the scale."""

from collections.abc import Callable

from simclr_jax.study.architecture_studies import (
    depth_width,
    head_depth_labels,
    projection_head,
    transformations,
)
from simclr_jax.study.augmentation_studies import augmentation_pairs, color_strength
from simclr_jax.study.definitions import Study
from simclr_jax.study.training_studies import (
    batch_size_epochs,
    learning_rate,
    objectives,
    temperature,
)

# By the name for --study.
STUDIES: dict[str, Callable[[str], Study]] = {
    "augmentation_pairs": augmentation_pairs,
    "color_strength": color_strength,
    "depth_width": depth_width,
    "projection_head": projection_head,
    "transformations": transformations,
    "objectives": objectives,
    "temperature": temperature,
    "batch_size_epochs": batch_size_epochs,
    "learning_rate": learning_rate,
    "head_depth_labels": head_depth_labels,
}
