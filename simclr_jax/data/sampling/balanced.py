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
        sizes = np.array([len(images) for images in self.members])[classes]
        epochs, turns = np.divmod(rounds, sizes)
        shuffled = _permuted(
            turns, seed=seed, epochs=epochs, streams=classes + 1, sizes=sizes
        )
        starts = np.cumsum([0, *(len(images) for images in self.members[:-1])])
        return np.concatenate(self.members)[starts[classes] + shuffled], epochs


def _permuted(
    positions: np.ndarray,
    *,
    seed: int,
    epochs: np.ndarray,
    streams: np.ndarray,
    sizes: np.ndarray,
) -> np.ndarray:
    """As `order.permute`, for each position with its own epoch, stream and size [n]."""
    result = np.zeros(len(positions), np.int64)  # right for sizes of 1
    halves = np.array([order.Shuffle.half_bits(size) for size in sizes.tolist()])
    halves[sizes == 1] = 0
    for half in set(halves.tolist()) - {0}:
        rows = np.flatnonzero(halves == half)
        shuffle = order.Shuffle(
            seed=seed,
            epoch=epochs[rows].astype(np.uint32),
            size=int(sizes[rows].max()),
            stream=streams[rows].astype(np.uint32),
        )
        values = positions[rows].astype(np.uint32)
        outside = np.arange(len(rows))
        while outside.size:
            values[outside] = shuffle.once(values[outside], shuffle.keys[outside])
            outside = outside[values[outside] >= sizes[rows[outside]]]
        result[rows] = values
    return result
