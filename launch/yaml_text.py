"""Writes dicts, lists, strings, numbers and booleans as readable YAML."""

import json
import re

# What YAML 1.1 or 1.2 could take for something else than a string is quoted.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*", re.ASCII)
_WORDS = {"true", "false", "yes", "no", "on", "off", "y", "n", "null"}

Value = dict | list | str | int | bool


def dump(value: Value) -> str:
    """The value as a YAML document."""
    return "\n".join(_lines(value)) + "\n"


def _lines(value: Value) -> list[str]:
    lines: list[str] = []
    if isinstance(value, dict):
        for key, item in value.items():
            nested = isinstance(item, dict | list) and bool(item)
            if nested:
                indent = "  " if isinstance(item, dict) else ""
                lines.append(f"{_scalar(key)}:")
                lines += [indent + line for line in _lines(item)]
            else:
                lines.append(f"{_scalar(key)}: {_scalar(item)}")
    elif isinstance(value, list):
        for item in value:
            nested = isinstance(item, dict | list) and bool(item)
            first, *rest = _lines(item) if nested else [_scalar(item)]
            lines.append(f"- {first}")
            lines += [f"  {line}" for line in rest]
    else:
        lines.append(_scalar(value))
    return lines


def _scalar(value: Value) -> str:
    text = value if isinstance(value, str) else ""
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    return json.dumps(value, ensure_ascii=False)
