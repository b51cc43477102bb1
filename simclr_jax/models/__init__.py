"""Encoder f, projection head g and the model that joins them (Flax Linen)."""

from simclr_jax.models.heads import HEAD_KINDS, ProjectionHead, create_projection_head
from simclr_jax.models.heads import KERNEL_INITS as HEAD_KERNEL_INITS
from simclr_jax.models.resnet import (
    DEPTHS,
    KERNEL_INITS,
    REMATERIALIZATIONS,
    STEMS,
    ResNet,
    create_encoder,
)
from simclr_jax.models.simclr import Outputs, SimCLR

__all__ = [
    "DEPTHS",
    "HEAD_KERNEL_INITS",
    "HEAD_KINDS",
    "KERNEL_INITS",
    "REMATERIALIZATIONS",
    "STEMS",
    "Outputs",
    "ProjectionHead",
    "ResNet",
    "SimCLR",
    "create_encoder",
    "create_projection_head",
]
