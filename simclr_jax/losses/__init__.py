"""Contrastive objectives and what is read off them, on whole global batches."""

import inspect
import math
from collections.abc import Callable
from typing import NamedTuple

import jax

from simclr_jax.losses.dcl import dcl, dclw
from simclr_jax.losses.diagnostics import (
    chance_level,
    contrastive_metrics,
    effective_rank,
)
from simclr_jax.losses.margin_triplet import margin_triplet
from simclr_jax.losses.nt_logistic import nt_logistic
from simclr_jax.losses.nt_xent import nt_xent
from simclr_jax.losses.similarities import l2_normalize
from simclr_jax.losses.streaming import Streaming, choose_streaming
from simclr_jax.losses.sup_con import sup_con


class Objective(NamedTuple):
    """A loss and the value of it that tells nothing about the images."""

    # z [B, V, K], labels [B] if it has such a parameter, settings by keyword -> scalar
    loss: Callable[..., jax.Array]
    # B, V, settings by keyword -> the loss where all similarities are 0; None where a
    # good encoder need not get below it
    chance: Callable[..., float | None]

    @property
    def needs_labels(self) -> bool:
        """Whether the loss takes the labels [B] behind z."""
        return "labels" in inspect.signature(self.loss).parameters

    @property
    def can_stream(self) -> bool:
        """Whether the loss can walk over the similarities in blocks."""
        return "streaming" in inspect.signature(self.loss).parameters


def _unless_mined(chance: float, semi_hard: bool) -> float | None:
    # Semi-hard negatives are by choice almost as similar as the positive, so their loss
    # stays high however good the encoder is.
    return None if semi_hard else chance


# Objectives by their name in the config. A loss gets those keys of the config's group
# `loss` that its signature names.
LOSSES = {
    "nt_xent": Objective(nt_xent, lambda b, v, **_: chance_level(b, v)),
    "nt_logistic": Objective(
        nt_logistic,
        lambda b, v, semi_hard, **_: _unless_mined(2 * math.log(2), semi_hard),
    ),
    "margin_triplet": Objective(
        margin_triplet,
        lambda b, v, margin, semi_hard, **_: _unless_mined(margin, semi_hard),
    ),
    "dcl": Objective(dcl, lambda b, v, **_: math.log(b * v - v)),
    "dclw": Objective(dclw, lambda b, v, **_: math.log(b * v - v)),
    "sup_con": Objective(sup_con, lambda b, v, **_: chance_level(b, v)),
}

__all__ = [
    "LOSSES",
    "Objective",
    "Streaming",
    "chance_level",
    "choose_streaming",
    "contrastive_metrics",
    "dcl",
    "dclw",
    "effective_rank",
    "l2_normalize",
    "margin_triplet",
    "nt_logistic",
    "nt_xent",
    "sup_con",
]
