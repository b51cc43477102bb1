"""Receipts of evaluations as rows of a table."""

import json
import math
from collections.abc import Sequence
from typing import Any

from simclr_jax.report.run_files import RunFiles

# Shown in columns, or by a section of their own.
_NOT_IN_DETAILS = {"by_class", "value", "protocol", "metric"}


def rows(run: RunFiles) -> list[dict[str, Any]]:
    """A row for each receipt, in words; a receipt may lack any key but `value`."""
    return [_row(name, receipt) for name, receipt in run.receipts.items()]


def _row(name: str, receipt: dict[str, Any]) -> dict[str, Any]:
    baselines = receipt.get("baselines")
    rest = {key: receipt[key] for key in receipt if key not in _NOT_IN_DETAILS}
    return {
        "file": name,
        "protocol": receipt.get("protocol", name.removesuffix(".json")),
        "metric": receipt.get("metric", ""),
        "value": _share(receipt["value"]),
        "interval": _interval(receipt.get("interval")),
        "baselines": [
            f"{other} {_share(value)}"
            for other, value in (
                baselines.items() if isinstance(baselines, dict) else ()
            )
        ],
        "dataset": receipt.get("dataset", ""),
        "split": receipt.get("test_split", ""),
        "num_test": receipt.get("num_test", ""),
        "step": receipt.get("checkpoint_step", ""),
        "is_unchanged": _is_unchanged(receipt),
        "details": json.dumps(rest, indent=1, sort_keys=True),
    }


def _share(value: Any) -> str:
    if isinstance(value, int | float) and math.isfinite(value):
        return f"{100 * value:.2f} %"
    return str(value)


def _interval(limits: Any) -> str:
    if (
        isinstance(limits, Sequence)
        and len(limits) == 2
        and all(isinstance(limit, int | float) for limit in limits)
    ):
        return f"{100 * limits[0]:.1f} to {100 * limits[1]:.1f} %"
    return ""


def _is_unchanged(receipt: dict[str, Any]) -> bool | None:
    """Whether the encoder had one checksum before and after; None where unknown."""
    sums = [receipt.get(f"encoder_checksum_{when}") for when in ("before", "after")]
    return sums[0] == sums[1] if all(sums) else None
