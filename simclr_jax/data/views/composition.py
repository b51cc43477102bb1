"""The operations of a view and where they are computed."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from simclr_jax.data.sampling import boxes, draws, order

# Where views are computed: on the host; crops on the host and the rest on the
# accelerator; on the accelerator, which then holds the dataset.
PLACEMENTS = ("host", "host_crop", "accelerator")
# How the host computes views: with machine code or TensorFlow's operations; 'auto'
# means machine code where it is available.
HOST_VIEWS = ("auto", "compiled", "graph")


@dataclasses.dataclass(frozen=True, eq=False)
class Composition:
    """A composition of augmentations; equal ones compare equal.

    Attributes:
      operations: names in `draws.COUNTS`, in the order in which they apply; 'crop' is
        the first or none, and without it the whole image is resized.
      settings: for each name the keyword arguments of its operation.
      image_size: side of a view in pixels.
      antialias: crops are resized as by Pillow, whose cubic widens where an image
        shrinks, and not as by TensorFlow, with four taps for any factor.
    """

    operations: tuple[str, ...]
    settings: Mapping[str, Mapping[str, Any]]
    image_size: int
    antialias: bool = False

    @property
    def num_draws(self) -> int:
        """Uniform numbers of a view, D."""
        return draws.count(self.operations)

    def box_draws(
        self, shape: tuple[int, int] | tuple[np.ndarray, np.ndarray]
    ) -> boxes.BoxDraws | None:
        """How boxes are drawn in images of `shape`; None for whole images."""
        if "crop" not in self.operations:
            return None
        return boxes.BoxDraws(shape, **self.settings["crop"])

    def draw_boxes(
        self,
        key: order.Key,
        shape: tuple[int, int] | tuple[np.ndarray, np.ndarray],
    ) -> np.ndarray:
        """The crop boxes of views, in NumPy.

        Args:
          key: uint32 arrays [...], of the views.
          shape: (height, width) of the images: numbers, or arrays [...].

        Returns:
          int32 [..., 4]: (y, x, height, width) in pixels; without 'crop' the whole
          image.
        """
        box_draws = self.box_draws(shape)
        if box_draws is not None:
            return boxes.random_boxes(key, box_draws)
        result = np.zeros((*key.first.shape, 4), np.int32)
        result[..., 2], result[..., 3] = shape
        return result

    def boxes_of_files(self, keys: np.ndarray, shapes: np.ndarray) -> np.ndarray:
        """The crop boxes of image files of different sizes.

        Args:
          keys: uint32 [n, V, 2].
          shapes: (height, width) of the images, [n, 2].

        Returns:
          int32 [n, V, 4], as `draw_boxes`.
        """
        key = order.Key(keys[..., 0], keys[..., 1])
        sides = np.broadcast_to(shapes[:, None], (*key.first.shape, 2))
        return self.draw_boxes(key, (sides[..., 0], sides[..., 1]))

    def without(self, name: str) -> "Composition":
        """The composition without one operation."""
        kept = tuple(other for other in self.operations if other != name)
        return dataclasses.replace(self, operations=kept)

    def crop_alone(self) -> "Composition":
        """The part that the host computes if it only crops."""
        kept = tuple(name for name in self.operations if name == "crop")
        return dataclasses.replace(self, operations=kept)

    def _identity(self) -> str:
        named = {name: dict(self.settings[name]) for name in self.operations}
        return repr((self.operations, named, self.image_size, self.antialias))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Composition):
            return NotImplemented
        return self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())
