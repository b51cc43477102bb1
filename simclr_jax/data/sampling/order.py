"""The images and random draws of each step, without state.

Everything here is a pure function of (seed, step), so starting at any step costs the
same, and any number of hosts reads the same global batches. Random numbers come from
Threefry (Salmon et al., 2011) in 32-bit arithmetic that is equal in NumPy and JAX:
functions take and return arrays of either, and `resident.py` computes the same batches
on an accelerator.
"""

from typing import Any, NamedTuple

import numpy as np

Array = Any  # of NumPy or JAX

# Purposes of random numbers; each has a separate stream.
_SHUFFLE, _VIEWS = 1, 2

_FEISTEL_ROUNDS = 6
# Threefry-2x32 with 20 rounds.
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
# Larger positions would not fit into the 32 bits of the shuffle.
MAX_EXAMPLES = 2**31 - 1


class Key(NamedTuple):
    """Two uint32 words (arrays of one shape) that name a stream of random numbers."""

    first: Array
    second: Array


def threefry(key: Key, first: Array, second: Array) -> tuple[Array, Array]:
    """Two random uint32 words for each key and counter (first, second), broadcast."""
    words = (key.first, key.second, key.first ^ key.second ^ np.uint32(_PARITY))
    x, y = first + words[0], second + words[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x = x + y
            y = (y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation))
            y = x ^ y
        x = x + words[(group + 1) % 3]
        y = y + words[(group + 2) % 3] + np.uint32(group + 1)
    return x, y


def _word(number: int) -> np.ndarray:
    # An array, since NumPy warns of overflow in scalars and not in arrays.
    return np.array([number & 0xFFFFFFFF], np.uint32)


def _key(seed: int, purpose: int, first: Array, second: Array) -> Key:
    """The key of (seed, purpose, two uint32 arrays)."""
    root = Key(_word(seed), _word(seed >> 32))
    root = Key(*threefry(root, _word(purpose), _word(0)))
    return Key(*threefry(root, first, second))


def uniform(words: Array) -> Array:
    """Random words as float32 in [0, 1), multiples of 2^-24."""
    return (words >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


def _mixed(words: Array) -> Array:
    """Words each of whose bits depends on all of the argument's (MurmurHash3's end)."""
    words = (words ^ (words >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    words = (words ^ (words >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return words ^ (words >> np.uint32(16))


class Shuffle:
    """A seeded random permutation of range(size) for each epoch.

    A Feistel network over the smallest even number of bits that holds `size`; a result
    outside the range is sent round again until it falls inside (cycle walking, fewer
    than four rounds on average). Nothing is stored; a size of billions costs no more.
    """

    def __init__(
        self, *, seed: int, epoch: Array, size: int, stream: Array | None = None
    ) -> None:
        """Prepares the keys.

        Args:
          seed: the run's seed; each (seed, epoch, stream) is another permutation.
          epoch: uint32 array [n], or [1] for one epoch of all values.
          size: number of elements.
          stream: likewise, for several permutations of an epoch; 0 where None.
        """
        half = self.half_bits(size)
        self._half, self._mask = np.uint32(half), np.uint32(2**half - 1)
        key = _key(seed, _SHUFFLE, epoch, _word(0) if stream is None else stream)
        each = Key(key.first[:, None], key.second[:, None])
        rounds = np.arange(_FEISTEL_ROUNDS, dtype=np.uint32)
        # [n or 1, rounds]
        self.keys, _ = threefry(each, rounds[None], _word(0))

    @staticmethod
    def half_bits(size: int) -> int:
        """Half the bits of the network for a size."""
        # Fewer than 3 bits a half would not mix; tiny sizes walk longer instead.
        return max(3, ((size - 1).bit_length() + 1) // 2)

    def once(self, values: Array, keys: Array) -> Array:
        """One pass of the network: uint32 values [m], of which some may be >= size.

        Args:
          values: to be shuffled.
          keys: `self.keys`, or the rows of it that belong to the values.
        """
        left, right = values >> self._half, values & self._mask
        for number in range(_FEISTEL_ROUNDS):
            mixed = _mixed(right ^ keys[:, number])
            left, right = right, left ^ (mixed & self._mask)
        return (left << self._half) | right


def permute(
    positions: np.ndarray, *, seed: int, epoch: np.ndarray, size: int
) -> np.ndarray:
    """Where the `Shuffle` of each epoch sends each position.

    Args:
      positions: integers in [0, size).
      seed: the run's seed.
      epoch: one integer, or integers, broadcast with `positions`.
      size: number of elements, at most `MAX_EXAMPLES`.

    Returns:
      int64 array of the broadcast shape; for one epoch a bijection of range(size).
    """
    epoch = np.asarray(epoch, np.uint32)
    if epoch.size > 1:
        positions, epoch = np.broadcast_arrays(positions, epoch)
    values = positions.reshape(-1).astype(np.uint32)
    shuffle = Shuffle(seed=seed, epoch=epoch.reshape(-1), size=size)
    outside = np.arange(values.size)
    while outside.size:
        keys = shuffle.keys if epoch.size == 1 else shuffle.keys[outside]
        values[outside] = shuffle.once(values[outside], keys)
        outside = outside[values[outside] >= size]
    return values.reshape(positions.shape).astype(np.int64)


def steps_per_epoch(*, num_examples: int, batch_size: int, block_size: int = 1) -> int:
    """Batches in an epoch: as many as whole blocks fill."""
    return num_examples // block_size * block_size // batch_size


def batch_indices(
    step: int, *, seed: int, num_examples: int, batch_size: int, block_size: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """The images of one global batch.

    An epoch has num_examples // batch_size steps and leaves out different images each
    time. No batch holds an image twice, so no image is its own negative.

    With blocks, runs of `block_size` consecutive images are shuffled instead of single
    images, with different borders in each epoch, so that a few large requests read
    them. Neighbours in the dataset share a batch more often, so a dataset must not be
    stored in the order of its classes.

    Args:
      step: 0-based training step.
      seed: the run's seed.
      num_examples: images in the dataset, at least `batch_size` in whole blocks.
      batch_size: global.
      block_size: 1 shuffles single images.

    Returns:
      (indices [B] int64 into the dataset, epoch [B] int64).
    """
    num_steps = steps_per_epoch(
        num_examples=num_examples, batch_size=batch_size, block_size=block_size
    )
    epoch, step_in_epoch = divmod(step, num_steps)
    positions = step_in_epoch * batch_size + np.arange(batch_size)
    epochs = np.full(batch_size, epoch, np.int64)
    if block_size == 1:
        one_epoch = np.array(epoch)
        return permute(positions, seed=seed, epoch=one_epoch, size=num_examples), epochs
    blocks, within = np.divmod(positions, block_size)
    blocks = permute(
        blocks, seed=seed, epoch=np.array(epoch), size=num_examples // block_size
    )
    # The dataset is a ring that each epoch cuts at a different place.
    words, _ = threefry(
        _key(seed, _SHUFFLE, _word(epoch), _word(1)), _word(0), _word(0)
    )
    start = int(words[0]) % num_examples
    return (start + blocks * block_size + within) % num_examples, epochs


def view_keys(indices: Array, epochs: Array, *, seed: int, num_views: int) -> Key:
    """Keys of the augmentation draws: a function of (seed, epoch, image, view).

    Args:
      indices: uint32 [B].
      epochs: uint32 [B].
      seed: the run's seed.
      num_views: V.

    Returns:
      A key of shape [B, V].
    """
    of_image = _key(seed, _VIEWS, epochs[:, None], indices[:, None])
    views = np.arange(num_views, dtype=np.uint32)
    return Key(*threefry(of_image, views[None], _word(0)))
