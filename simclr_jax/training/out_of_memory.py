"""What a step needs and what would fit, where devices run out of memory."""

import os
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import config_dict

from simclr_jax.config import rules
from simclr_jax.errors import RunFailed, first_line

_GIB = 2**30
# Of the memory that an allocator may use, the share that a step can fill. On GPUs the
# rest is lost between blocks; a TPU gives a program one block, and keeps the next
# batches beside it.
_USABLE = {"gpu": 0.9, "tpu": 0.95}


def device_limit() -> int | None:
    """Bytes of a device's memory that this process may use; None if it does not say."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def usable(limit: float, platform: str | None = None) -> float:
    """Bytes that a step can fill of a device's memory; of this process's devices."""
    platform = platform or jax.local_devices()[0].platform
    return _USABLE.get(platform, 0.9) * limit


def explained(
    step: Callable[..., Any],
    config: config_dict.ConfigDict,
    next_level: Callable[[], str] = str,
) -> Callable[..., Any]:
    """The jitted step, with an error of one line where it does not fit.

    Args:
      step: from `compiling.compile_step`; asked for its compiler's figures then.
      config: resolved.
      next_level: with `parallel.remat = "auto"`, says which level to set by hand then,
        or ''.

    Returns:
      A function that raises RunFailed with what is needed and what would fit.
    """

    def run(*arguments: Any) -> Any:
        try:
            return step(*arguments)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            text = _explanation(step, arguments, config, error, next_level)
            raise RunFailed(text) from error

    return run


def _explanation(
    step: Callable[..., Any],
    arguments: tuple[Any, ...],
    config: config_dict.ConfigDict,
    error: Exception,
    next_level: Callable[[], str],
) -> str:
    device = jax.local_devices()[0]
    limit = device_limit()
    parts = [f"out of memory on {device.device_kind} ({first_line(error)})"]
    parts += _needs(step, arguments, config, limit)
    if level := next_level():
        parts.append(level)
    elif config.parallel.remat not in ("blocks", "auto"):
        parts.append("config.parallel.remat='blocks' trades memory for computation")
    fraction = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    if device.platform == "gpu" and fraction not in os.environ:
        parts.append(
            f"XLA takes three quarters of a GPU's memory, more with {fraction}=0.95 in "
            "the environment"
        )
    return "; ".join(parts)


def _needs(
    step: Callable[..., Any],
    arguments: tuple[Any, ...],
    config: config_dict.ConfigDict,
    limit: int | None,
) -> list[str]:
    """What the step needs, and which micro-batch would fit."""
    try:
        memory = step.lower(*shapes_of(arguments)).compile().memory_analysis()  # type: ignore[attr-defined]
    except jax.errors.JaxRuntimeError:
        return []  # the compiler itself found that it does not fit
    if memory is None:
        return []
    temporary, fixed = memory.temp_size_in_bytes, fixed_bytes(memory)
    of_limit = f" of {gib(limit)}" if limit else ""
    needed = [
        f"a step with config.batch.batch_size={config.batch.batch_size} needs "
        f"{gib(fixed + temporary)} of each device{of_limit}"
    ]
    if limit and (size := fitting(config, fixed, temporary, limit)):
        rest = temporary * size // _seen_at_once(config)
        needed.append(
            f"config.batch.micro_batch_size={size} would need about {gib(fixed + rest)}"
        )
    return needed


def shapes_of(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Shapes, dtypes and shardings of the arrays, for `lower`."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), arguments
    )


def fixed_bytes(memory: Any) -> int:
    """Bytes of arguments and outputs, by a compiled program's `memory_analysis()`."""
    # Outputs in the memory of inputs are counted once.
    return int(
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )


def needed_bytes(memory: Any) -> int:
    """Bytes of a device that a compiled program takes, by its `memory_analysis()`."""
    return fixed_bytes(memory) + int(memory.temp_size_in_bytes)


def fitting(
    config: config_dict.ConfigDict, fixed: int, temporary: int, limit: int
) -> int | None:
    """The largest micro-batch that fits, if memory grows in proportion to it.

    Args:
      config: resolved.
      fixed: bytes of the state and the batch.
      temporary: bytes of everything else, with the config's micro-batch.
      limit: bytes that a device has.

    Returns:
      A divisor of the batch of at least two images, and a multiple of the number of
      devices and of BatchNorm's parts, less than the config's micro-batch; None if none
      fits.
    """
    batch, seen = config.batch.batch_size, _seen_at_once(config)
    unit = rules.image_unit(config, jax.device_count())
    for size in range(seen - 1, 1, -1):
        if batch % size or size % unit:
            continue
        if fixed + temporary * size // seen <= usable(limit):
            return size
    return None


def _seen_at_once(config: config_dict.ConfigDict) -> int:
    """Images in one forward pass."""
    return int(config.batch.micro_batch_size or config.batch.batch_size)


def gib(number: float) -> str:
    """Bytes in words."""
    return f"{number / _GIB:.1f} GiB"
