"""Renamed config keys and values, for old runs and for error messages."""

from collections.abc import Callable
from typing import Any

# Old key -> new key.
KEYS = {
    "augment.device": "augment.placement",
    "log.tensorboard": "log.writers",
}
# New key -> what an old value means, where it has another type.
MEANINGS: dict[str, Callable[[Any], Any]] = {
    "log.writers": lambda is_on: ["tensorboard"] if is_on else [],
}
# New key -> {old value: new value}.
VALUES: dict[str, dict[Any, Any]] = {
    "augment.placement": {"split": "host_crop"},
    "loss.form": {"blockwise": "streaming"},
}


def hint(text: str) -> str:
    """What to say where a text uses an old key; '' where none does.

    Args:
      text: a flag such as '--config.augment.device=host', or the message of an error in
        a config file, which names only the last part of a key.
    """
    for old, new in KEYS.items():
        leaf = old.rpartition(".")[2]
        unknown = f'"{leaf}" does not exist' in text
        if unknown or text.partition("=")[0] == f"--config.{old}":
            return f"config.{old} is now called config.{new}"
    return ""
