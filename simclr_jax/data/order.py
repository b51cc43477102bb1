"""Which image, and with which random draws, at which step: without any state.

Everything here is a pure function of (seed, step), so a run can start at any step at
the cost of starting at the first, and any number of hosts reads the same global
batches. Plain NumPy on 64-bit integers, the same on every machine.
"""

import numpy as np

_ROUNDS = 6
# Constants of SplitMix64 (Steele, Lea, Flood, 2014).
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _hash(*values: int | np.ndarray) -> np.ndarray:
    """Mixes non-negative integers (broadcast) into uniform 64-bit words."""
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        for value in values:
            state = (state ^ np.asarray(value).astype(np.uint64)) + _GAMMA
            state = (state ^ (state >> np.uint64(30))) * _MIX_1
            state = (state ^ (state >> np.uint64(27))) * _MIX_2
            state = state ^ (state >> np.uint64(31))
    return state


def permute(
    positions: np.ndarray, *, seed: int, epoch: np.ndarray, size: int
) -> np.ndarray:
    """Where a seeded random permutation of range(size) sends each position.

    A Feistel network over the smallest even number of bits that holds `size`; a result
    outside the range is sent round again until it falls inside (cycle walking, fewer
    than four rounds on average). Nothing is stored; a size of billions costs no more.

    Args:
      positions: integers in [0, size).
      seed: the run's seed; each (seed, epoch) is another permutation.
      epoch: integers, broadcast with `positions`.
      size: number of elements.

    Returns:
      int64 array of the broadcast shape; for one epoch a bijection of range(size).
    """
    positions, epoch = np.broadcast_arrays(positions, epoch)
    # Fewer than 3 bits a half would not mix; the walk is longer for tiny sizes instead.
    half = np.uint64(max(3, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = [_hash(seed, 1, epoch, i) for i in range(_ROUNDS)]
    result = positions.astype(np.uint64)
    outside = np.ones(result.shape, bool)
    while outside.any():
        left, right = result >> half, result & mask
        for key in keys:
            left, right = right, left ^ (_hash(right, key) & mask)
        result = np.where(outside, (left << half) | right, result)
        outside = result >= np.uint64(size)
    return result.astype(np.int64)


def batch_indices(
    step: int, *, seed: int, num_examples: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The images of one global batch.

    An epoch has num_examples // batch_size steps; the images left over are others in
    each epoch. So no batch holds an image twice, and no image is its own negative.

    Args:
      step: 0-based training step.
      seed: the run's seed.
      num_examples: images in the dataset, at least `batch_size`.
      batch_size: global.

    Returns:
      (indices [B] int64 into the dataset, epoch [B] int64).
    """
    steps_per_epoch = num_examples // batch_size
    epoch, step_in_epoch = divmod(step, steps_per_epoch)
    positions = step_in_epoch * batch_size + np.arange(batch_size)
    epochs = np.full(batch_size, epoch, np.int64)
    return permute(positions, seed=seed, epoch=epochs, size=num_examples), epochs


def view_seeds(
    indices: np.ndarray, epochs: np.ndarray, *, seed: int, num_views: int
) -> np.ndarray:
    """Seeds of the augmentation draws: a function of (seed, epoch, image, view).

    Returns:
      [B, V, 2] int64, for TensorFlow's stateless random operations.
    """
    views = np.arange(num_views)
    words = _hash(seed, 2, epochs[:, None], indices[:, None], views[None])
    pair = np.stack([words, _hash(words, 3)], axis=-1)
    return pair.astype(np.int64)
