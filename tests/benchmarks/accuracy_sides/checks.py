"""Comparisons of the two sides that need no training."""

from collections.abc import Mapping
from typing import Any

import numpy as np

Description = Mapping[str, Any]


def _views(views: np.ndarray) -> dict[str, float]:
    """Statistics of uint8 pairs of views [N, 2, H, W, 3], in levels of 255."""
    x = views.astype(np.float32)
    spread = x.max(-1) - x.min(-1)
    pixels = x.reshape(-1, 3)
    flat = x.reshape(*x.shape[:2], -1)
    centred = flat - flat.mean(-1, keepdims=True)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-6)
    result = {
        f"{what} {colour}": float(value)
        for what, values in (("mean", pixels.mean(0)), ("std", pixels.std(0)))
        for colour, value in zip(("red", "green", "blue"), values, strict=True)
    }
    return result | {
        "std of the views' means": float(flat.mean(-1).std()),
        "mean of the views' stds": float(flat.std(-1).mean()),
        "largest less smallest colour": float(spread.mean()),
        "grey views, %": float(100 * (spread.max((2, 3)) == 0).mean()),
        "step to the right neighbour": float(np.abs(np.diff(x, axis=3)).mean()),
        "step to the neighbour below": float(np.abs(np.diff(x, axis=2)).mean()),
        "pixels at 0 or 255, %": float(100 * ((x == 0) | (x == 255)).mean()),
        "correlation of the two views": float((unit[:, 0] * unit[:, 1]).sum(-1).mean()),
    }


def _effective_rank(x: np.ndarray) -> float:
    """exp of the entropy of the singular values' shares of the variance."""
    values = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
    shares = values / values.sum()
    return float(np.exp(-(shares * np.log(np.maximum(shares, 1e-30))).sum()))


def _features(x: np.ndarray) -> dict[str, float]:
    """Of features [N, D] before training."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = unit @ unit.T
    others = cosines[~np.eye(len(x), dtype=bool)]
    return {
        "mean": float(x.mean()),
        "std over images": float(x.std(0).mean()),
        "mean cosine of two images": float(others.mean()),
        "effective rank": _effective_rank(x),
    }


def check_equal(package: Description, lightly: Description, output_dim: int) -> None:
    """Checks that both train as many parameters, at the same rates.

    lightly's last BatchNorm has offsets [K], which a variant freezes and the package's
    head does not have.

    Raises:
      SystemExit: they do not.
    """
    counts = int(np.sum(package["sizes"])), int(np.sum(lightly["sizes"]))
    if counts[0] + output_dim != counts[1]:
        raise SystemExit(f"parameters: {counts[0]:,} of the package, {counts[1]:,}")
    ours, theirs = np.asarray(package["rates"]), np.asarray(lightly["rates"])
    # The package's are float32.
    if ours.shape != theirs.shape or np.abs(ours - theirs).max() > 1e-6 * theirs.max():
        raise SystemExit(f"learning rates differ: {ours}, {theirs}")


def table(package: Description, lightly: Description) -> str:
    """Both sides in Markdown."""
    rows: list[tuple[str, float, float]] = [
        ("trained parameters", np.sum(package["sizes"]), np.sum(lightly["sizes"])),
        ("steps", len(package["rates"]), len(lightly["rates"])),
    ]
    for step in (0, len(package["rates"]) // 2, len(package["rates"]) - 1):
        rates = package["rates"][step], lightly["rates"][step]
        rows.append((f"learning rate of step {step}", *rates))
    for what in ("h", "z"):
        both = _features(package[what]), _features(lightly[what])
        rows += [(f"{what} at the start: {k}", both[0][k], both[1][k]) for k in both[0]]
    both = _views(package["views"]), _views(lightly["views"])
    rows += [(f"views: {k}", both[0][k], both[1][k]) for k in both[0]]
    lines = ["| | this package | lightly |", "|---|---|---|"]
    return "\n".join(lines + [f"| {n} | {a:,.6g} | {b:,.6g} |" for n, a, b in rows])


def stds(description: Description) -> str:
    """The spread of each parameter at the start, a line each."""
    named = zip(description["names"], description["stds"], strict=True)
    return "\n".join(f"{std:10.5f}  {name}" for name, std in named)
