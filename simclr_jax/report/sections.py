"""What a part of the page consists of."""

import dataclasses
from collections.abc import Mapping
from typing import Any

# The template of a part that cannot be made; its data are the `reason`.
MISSING = "missing.html"


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page about one run.

    Attributes:
      name: its anchor.
      title: its heading.
      template: file name under `simclr_jax/report/templates/`.
      data: what the template gets.
    """

    name: str
    title: str
    template: str
    data: Mapping[str, Any]
