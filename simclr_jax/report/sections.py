"""What a part of the page consists of."""

import dataclasses
from collections.abc import Mapping
from typing import Any


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
