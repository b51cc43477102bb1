"""Checks in order, a verdict for each: how `doctor` and `rehearse` print them."""

import dataclasses
from collections.abc import Iterable

from simclr_jax.errors import RunFailed, printable_lines
from simclr_jax.parallel import processes


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The result of one check.

    Attributes:
      name: of the check.
      ok: whether the check passed; None if it was not made.
      detail: what was found, after a failure how to fix it, or why it was not made.
      secs: how long it took, where that is of interest.
    """

    name: str
    ok: bool | None
    detail: str
    secs: float | None = None

    def __str__(self) -> str:
        mark = {True: "ok", False: "BAD", None: "-"}[self.ok]
        secs = "" if self.secs is None else f"{self.secs:7.1f} s  "
        return f"{mark:<3}  {self.name:<15} {secs}{self.detail}"


def print_all(verdicts: Iterable[Verdict]) -> None:
    """Prints the verdicts as they come; process 0 does.

    Raises:
      RunFailed: a check failed.
    """
    bad = 0
    for verdict in verdicts:
        bad += verdict.ok is False
        if processes.is_main():
            print(printable_lines(str(verdict)), flush=True)
    if bad:
        raise RunFailed(f"{bad} check{'s' if bad > 1 else ''} failed")
    if processes.is_main():
        print("All checks passed.")
