"""Renamed config keys and values, for old runs and for error messages."""

from typing import Any

# Old key -> new key.
KEYS = {"augment.device": "augment.placement"}
# New key -> {old value: new value}.
VALUES: dict[str, dict[Any, Any]] = {
    "augment.placement": {"split": "host_crop"},
    "loss.form": {"blockwise": "streaming"},
}


def hint(text: str) -> str:
    """What to say where a text names an old key, such as a flag; '' where none does.

    Args:
      text: a flag, a line of a config file, or an error message about either. Such a
        message names only the last part of a key.
    """
    for old, new in KEYS.items():
        leaf = old.rpartition(".")[2]
        if f"config.{old}" in text or f'"{leaf}"' in text or f"'{leaf}'" in text:
            return f"config.{old} is now called config.{new}"
    return ""
