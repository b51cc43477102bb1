"""Learning-rate scaling with the batch, and linear warm-up into a cosine."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

# name -> rate for a base rate and a global batch size (paper section 2.1, app. B.1).
SCALING_RULES = {
    "linear": lambda base, batch_size: base * batch_size / 256,
    "sqrt": lambda base, batch_size: base * math.sqrt(batch_size),
    "none": lambda base, batch_size: base,
}


def scaled_learning_rate(base: float, batch_size: int, rule: str) -> float:
    """Scales a base learning rate with the global batch size.

    Args:
      base: the rate before scaling.
      batch_size: images in the global batch.
      rule: 'linear' (base * B / 256), 'sqrt' (base * sqrt(B)) or 'none'.

    Raises:
      ValueError: unknown rule.
    """
    if rule not in SCALING_RULES:
        raise ValueError(f"rule={rule!r}: must be one of {', '.join(SCALING_RULES)}")
    return SCALING_RULES[rule](base, batch_size)


def warmup_cosine(
    peak: float, *, warmup_steps: int, total_steps: int
) -> optax.Schedule:
    """Linear warm-up from 0, then a cosine to 0, then 0.

    The rate of the update with 0-based index `step` is peak * step / warmup_steps while
    step < warmup_steps (so the very first update has rate 0 where there is a warm-up),
    then peak * (1 + cos(pi * t)) / 2 with t = (step - warmup_steps) / (total_steps -
    warmup_steps).

    Args:
      peak: the largest rate.
      warmup_steps: length of the warm-up; 0 starts at the peak.
      total_steps: including the warm-up; the rate is 0 from then on. With
        total_steps <= warmup_steps the warm-up is completed first.

    Returns:
      step -> rate, for integers and traced arrays.

    Raises:
      ValueError: warmup_steps is negative or total_steps is not positive.
    """
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps={warmup_steps}: must not be negative")
    if total_steps < 1:
        raise ValueError(f"total_steps={total_steps}: must be at least 1")
    cosine = optax.cosine_decay_schedule(
        peak, decay_steps=max(total_steps - warmup_steps, 1)
    )
    if warmup_steps == 0:
        return cosine
    return optax.join_schedules(
        [optax.linear_schedule(0.0, peak, warmup_steps), cosine], [warmup_steps]
    )


# What the rate does where a run goes on for longer than its first schedule.
EXTENSIONS = ("stretch", "restart", "constant")


def extended_cosine(
    peak: float,
    *,
    warmup_steps: int,
    total_steps: int,
    extend: str,
    extend_step: int | None,
    extend_peak: float | None,
) -> optax.Schedule:
    """`warmup_cosine`, of which the part from a step on may be another one.

    Args:
      peak: as in `warmup_cosine`.
      warmup_steps: as in `warmup_cosine`.
      total_steps: of the whole.
      extend: 'stretch': one cosine over all steps. 'restart': `warmup_cosine` of
        `extend_step` steps, then a cosine from `extend_peak` to 0 at `total_steps`.
        'constant': the same first part, then `extend_peak`.
      extend_step: the first step of the second part, below `total_steps`; None with
        'stretch'.
      extend_peak: of the second part; None for `peak`.

    Returns:
      step -> rate, for integers and traced arrays.

    Raises:
      ValueError: as `warmup_cosine`, or `extend` is unknown.
    """
    if extend not in EXTENSIONS:
        raise ValueError(f"extend={extend!r}: must be one of {', '.join(EXTENSIONS)}")
    if extend == "stretch" or extend_step is None:
        return warmup_cosine(peak, warmup_steps=warmup_steps, total_steps=total_steps)
    first = warmup_cosine(peak, warmup_steps=warmup_steps, total_steps=extend_step)
    again = peak if extend_peak is None else extend_peak
    rest: optax.Schedule = optax.constant_schedule(again)
    if extend == "restart":
        rest = warmup_cosine(
            again, warmup_steps=0, total_steps=total_steps - extend_step
        )
    return optax.join_schedules([first, rest], [extend_step])


def at_step(opt_state: Any, step: jax.Array | int) -> Any:
    """An optimiser's state with its schedule at a step; moments are unchanged.

    Args:
      opt_state: of any optimiser here; unchanged where its rate is constant.
      step: 0-based index of the next update.
    """

    def move(node: Any) -> Any:
        if not isinstance(node, optax.ScaleByScheduleState):
            return node
        return node._replace(count=jnp.asarray(step, node.count.dtype))

    return jax.tree.map(
        move, opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByScheduleState)
    )
