"""Contrastive losses and diagnostics, computed over the global batch."""

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


class LossSpec(NamedTuple):
    """A loss, its settings and its chance level.

    Attributes:
      function: (z [B, V, K], labels [B] if `needs_labels`, settings by keyword) ->
        float32 scalar.
      chance: (B, V, settings by keyword) -> the loss where all similarities are 0; None
        where a good encoder need not get below it.
      settings: keys of the config's group `loss` that the function takes by keyword.
      needs_labels: the function takes the labels after `z`.
      can_stream: the function takes `streaming`; see `Streaming`.
    """

    function: Callable[..., jax.Array]
    chance: Callable[..., float | None]
    settings: tuple[str, ...]
    needs_labels: bool = False
    can_stream: bool = False


def _unless_semi_hard(chance: float, semi_hard: bool) -> float | None:
    # Semi-hard negatives are chosen to be almost as similar as the positive, so the
    # loss stays high however good the encoder is.
    return None if semi_hard else chance


# By name in the config.
LOSSES = {
    "nt_xent": LossSpec(
        nt_xent,
        chance=lambda b, v, **_: chance_level(b, v),
        settings=("temperature", "normalize"),
        can_stream=True,
    ),
    "nt_logistic": LossSpec(
        nt_logistic,
        chance=lambda b, v, semi_hard, **_: _unless_semi_hard(
            2 * math.log(2), semi_hard
        ),
        settings=("temperature", "normalize", "semi_hard"),
    ),
    "margin_triplet": LossSpec(
        margin_triplet,
        chance=lambda b, v, margin, semi_hard, **_: _unless_semi_hard(
            margin, semi_hard
        ),
        settings=("margin", "normalize", "semi_hard"),
    ),
    "dcl": LossSpec(
        dcl,
        chance=lambda b, v, **_: math.log(b * v - v),
        settings=("temperature", "normalize"),
        can_stream=True,
    ),
    "dclw": LossSpec(
        dclw,
        chance=lambda b, v, **_: math.log(b * v - v),
        settings=("temperature", "weight_temperature", "normalize"),
        can_stream=True,
    ),
    "sup_con": LossSpec(
        sup_con,
        chance=lambda b, v, **_: chance_level(b, v),
        settings=("temperature", "normalize"),
        needs_labels=True,
    ),
}

__all__ = [
    "LOSSES",
    "LossSpec",
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
