"""Contrastive objectives and what is read off them, on whole global batches."""

from simclr_jax.losses.diagnostics import (
    chance_level,
    contrastive_metrics,
    effective_rank,
)
from simclr_jax.losses.nt_xent import l2_normalize, nt_xent

# Objectives by their name in the config: loss(z [B, V, K], *, temperature) -> scalar.
LOSSES = {"nt_xent": nt_xent}

__all__ = [
    "LOSSES",
    "chance_level",
    "contrastive_metrics",
    "effective_rank",
    "l2_normalize",
    "nt_xent",
]
