"""An order in which all classes are equally frequent, without state.

Slots of all batches in a row are divided into rounds, in which each class has one slot,
in a random order. In round r, a class of n images shows image r modulo n of a shuffle
that is new for every n rounds. So a batch has each class B / C times, give or take one,
all images of a class are equally frequent, and any step costs the same.
"""

import dataclasses

import numpy as np

from simclr_jax.data.sampling import order


@dataclasses.dataclass(frozen=True)
class BalancedOrder:
    """The images of each class that has one.

    Attributes:
      members: numbers of images, by class.
    """

    members: tuple[np.ndarray, ...]

    @classmethod
    def of_labels(cls, labels: np.ndarray) -> "BalancedOrder":
        """The order of a dataset.

        Args:
          labels: integers [N]; images with -1 are left out.
        """
        classes = np.unique(labels[labels >= 0])
        return cls(tuple(np.flatnonzero(labels == number) for number in classes))

    def batch_indices(
        self, step: int, *, seed: int, batch_size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The images of one global batch; see `order.batch_indices`.

        Args:
          step: 0-based training step.
          seed: the run's seed.
          batch_size: B, global.

        Returns:
          (indices [B] int64 into the dataset, epoch [B] int64: how often the class was
          gone through before, so that an image with its epoch never comes twice).
        """
        slots = step * batch_size + np.arange(batch_size)
        rounds, places = np.divmod(slots, len(self.members))
        classes = order.permute(places, seed=seed, epoch=rounds, size=len(self.members))
        indices, epochs = np.empty(batch_size, np.int64), np.empty(batch_size, np.int64)
        for number in np.unique(classes):
            images, here = self.members[number], classes == number
            epochs[here], turns = np.divmod(rounds[here], len(images))
            # Seeds of runs have 32 bits, so each class has a stream of its own.
            shuffled = order.permute(
                turns,
                seed=seed | (int(number) + 1) << 32,
                epoch=epochs[here],
                size=len(images),
            )
            indices[here] = images[shuffled]
        return indices, epochs
