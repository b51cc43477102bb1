"""Optimisers with masks by parameter role, and learning-rate schedules."""

from simclr_jax.optim.optimizers import adamw, clipped, freeze, lars, sgd
from simclr_jax.optim.roles import DECAYED, parameter_role, role_table
from simclr_jax.optim.schedules import (
    EXTENSIONS,
    SCALING_RULES,
    at_step,
    extended_cosine,
    scaled_learning_rate,
    warmup_cosine,
)

# Names of the functions above that take a learning rate.
OPTIMIZERS = ("lars", "sgd", "adamw")

__all__ = [
    "DECAYED",
    "EXTENSIONS",
    "OPTIMIZERS",
    "SCALING_RULES",
    "adamw",
    "at_step",
    "clipped",
    "extended_cosine",
    "freeze",
    "lars",
    "parameter_role",
    "role_table",
    "scaled_learning_rate",
    "sgd",
    "warmup_cosine",
]
