"""Comparisons with independent sources, and the page that lists them all.

A test that takes the fixture `fidelity` compares through it, as with
`np.testing.assert_allclose`, and so adds a row to the page:

    bash launch/test.sh -m fidelity --fidelity-page=docs/fidelity.md
"""

import pathlib
import platform
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

GOOGLE = "google-research/simclr, recorded outputs"
EQUATIONS = "float64 NumPy written from the equations"
PUBLISHED = "published figures"
TENSORFLOW = "TensorFlow's own operations"

_HEADER = """\
# Fidelity

What this code computes, against sources that are not this code. Every row is a test;
the page is what they wrote when run by

```bash
JAX_DISABLE_MOST_OPTIMIZATIONS=0 bash launch/test.sh -m fidelity \\
  --fidelity-page=docs/fidelity.md
```

on {machine}, {versions}.

*Values* counts the numbers compared. A tolerance `r + a` means |ours - theirs| <=
r |theirs| + a for every one of them; *of largest* relates the difference to the array's
largest value. *Used* is the largest difference as a share of its tolerance: more than
100 % would fail. `p` is a chi-square test's. Where tolerances are wide, the test says
why: most often, float32 and the side of 0 on which a ReLU's input falls.

The recorded outputs come from google-research/simclr, folder `tf2`, commit 383d414, run
unmodified in float32 on a CPU; see [`tests/golden`](../tests/golden/README.md).
"""


class Fidelity:
    """Compares and records; what the fixture `fidelity` gives to a test."""

    def __init__(self, properties: list[tuple[str, Any]]) -> None:
        self._properties = properties

    def __call__(
        self,
        what: str,
        got: Any,
        want: Any,
        *,
        source: str = GOOGLE,
        rtol: float = 0.0,
        atol: float = 0.0,
        of_largest: float = 0.0,
        err_msg: str = "",
    ) -> None:
        """Asserts |got - want| <= rtol |want| + atol + of_largest max|want|.

        Args:
          what: the row's name; comparisons of one name and source share a row.
          got: ours.
          want: theirs, of the same shape.
          source: where `want` comes from.
          rtol: relative tolerance.
          atol: absolute tolerance.
          of_largest: tolerance relative to the largest value.
          err_msg: added to the message where it does not hold.
        """
        got, want = (np.asarray(x, np.float64) for x in (got, want))
        allowed = atol + of_largest * np.max(np.abs(want), initial=0.0)
        np.testing.assert_allclose(
            got, want, rtol, allowed, err_msg=f"{what} {err_msg}"
        )
        difference = np.abs(got - want)
        exact = difference == 0
        share = np.where(
            exact, 0.0, difference / np.where(exact, 1.0, rtol * np.abs(want) + allowed)
        )
        parts = [f"{rtol:.2g}"] if rtol else []
        parts += [f"{of_largest:.2g} of largest"] if of_largest else []
        parts += [f"{atol:.2g}"] if atol else []
        tolerance = " + ".join(parts) or "equal"
        self._add(source, what, want.size, tolerance, np.max(share, initial=0.0))

    def at_least(
        self, what: str, p_value: float, least: float, *, source: str = GOOGLE
    ) -> None:
        """Asserts that two samples may come from one distribution.

        Args:
          what: the row's name.
          p_value: of a test that they do.
          least: the smallest p that passes.
          source: of the other sample.
        """
        assert p_value > least, f"{what}: p = {p_value}"
        self._add(source, what, 1, f"p > {least:.2g}", least / p_value)

    def _add(
        self, source: str, what: str, values: int, tolerance: str, used: float
    ) -> None:
        row = {
            "source": source,
            "what": what,
            "values": int(values),
            "tolerance": tolerance,
            "used": float(used),
        }
        self._properties.append(("fidelity", row))


def page(rows: Iterable[dict[str, Any]]) -> str:
    """The page, in Markdown."""
    table: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        merged = table.setdefault((row["source"], row["what"]), {**row, "values": 0})
        merged["values"] += row["values"]
        if row["used"] > merged["used"]:
            merged.update(used=row["used"], tolerance=row["tolerance"])
    versions = f"Python {platform.python_version()}, JAX {jax.__version__}"
    lines = [_HEADER.format(machine=_machine(), versions=versions)]
    sources = {source for source, _ in table}
    for source in sorted(sources, key=lambda name: (name != GOOGLE, name)):
        lines += [
            f"## Against {source}\n",
            "| what | values | tolerance | used |",
            "|---|---:|---|---:|",
        ]
        lines += [
            f"| {row['what']} | {row['values']:,} | {row['tolerance']} "
            f"| {100 * row['used']:.0f} % |"
            for key, row in sorted(table.items())
            if key[0] == source
        ]
        lines.append("")
    return "\n".join(lines)


def _machine() -> str:
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    names = [line for line in text.splitlines() if line.startswith("model name")]
    return names[0].partition(": ")[2] if names else platform.machine()
