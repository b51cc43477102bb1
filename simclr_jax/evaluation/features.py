"""Features of a whole dataset, computed on all devices and split over them.

No device and no process holds all features: device d has a contiguous part of the
dataset, and what is computed from features is computed where they are.
"""

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from simclr_jax import parallel
from simclr_jax.errors import DataError
from simclr_jax.evaluation import blocks
from simclr_jax.evaluation.blocks import Block
from simclr_jax.parallel import SPLIT, WHOLE

_LOG = logging.getLogger(__name__)
_SECS_BETWEEN_LINES = 20.0
# Raw pixels are compared at this size at most: 3072 features, not 150,528.
MAX_PIXELS_SIDE = 32
# Rows that are computed at a time when features are computed from features.
_ROWS_AT_A_TIME = 4096

# Prepared images [N, S, S, 3] in [0, 1] -> features [N, D] float32. A pytree, so that
# its weights are arguments of compiled programs: constants cannot span processes.
Encode = jax.tree_util.Partial


@jax.tree_util.Partial
def pixels(images: jax.Array) -> jax.Array:
    """The pixels as features: a baseline.

    Args:
      images: [N, S, S, 3].

    Returns:
      [N, s * s * 3], where s is at most `MAX_PIXELS_SIDE`: larger images are shrunk,
      with antialiasing.
    """
    count, side = len(images), min(images.shape[1], MAX_PIXELS_SIDE)
    if side < images.shape[1]:
        images = jax.image.resize(images, (count, side, side, 3), "bilinear")
    return images.reshape(count, -1)


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of N labelled images, split over the devices.

    Attributes:
      x: [P, D] float32, split over 'data'; P >= N, since each device has the same
        number of rows.
      positions: [P], the number of each row's image in the dataset; -1 for rows that
        only fill a device's part up. On the host, as a whole in every process.
      labels: int32 [N], or [N, classes], in the order of the dataset; likewise.
      mesh: of the devices.
    """

    x: jax.Array
    positions: np.ndarray
    labels: np.ndarray
    mesh: Mesh

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def width(self) -> int:
        """D."""
        return int(self.x.shape[1])

    def by_image(self, rows: np.ndarray) -> np.ndarray:
        """Values [N, ...] in the order of the dataset, from one for each row [P, ...].

        Args:
          rows: on the host.
        """
        filled = self.positions >= 0
        values = np.empty((len(self), *rows.shape[1:]), rows.dtype)
        values[self.positions[filled]] = rows[filled]
        return values

    def by_row(self, values: np.ndarray, *, fill: float) -> jax.Array:
        """The inverse of `by_image`, split over the devices like `x`.

        Args:
          values: [N, ...], the same on all processes.
          fill: for rows without an image.
        """
        rows = np.full((len(self.positions), *values.shape[1:]), fill, values.dtype)
        filled = self.positions >= 0
        rows[filled] = values[self.positions[filled]]
        return parallel.put(parallel.batch_sharding(self.mesh), rows)

    def take(self, images: np.ndarray) -> "Features":
        """The features of some images; each row stays on its device.

        Args:
          images: [M], different numbers of images in the dataset; they are the images
            0, 1, ... of the result.
        """
        num_devices = self.mesh.size
        row_of = self.by_image(np.arange(len(self.positions)))
        devices, local_rows = np.divmod(
            row_of[images], len(self.positions) // num_devices
        )
        counts = np.bincount(devices, minlength=num_devices)
        by_device = np.argsort(devices, kind="stable")
        places = np.concatenate([np.arange(count) for count in counts])
        chosen = np.zeros((num_devices, counts.max()), np.int32)
        positions = np.full((num_devices, counts.max()), -1)
        chosen[devices[by_device], places] = local_rows[by_device]
        positions[devices[by_device], places] = by_device
        split = parallel.batch_sharding(self.mesh)
        x = _take(self.x, parallel.put(split, chosen.reshape(-1)), mesh=self.mesh)
        return Features(x, positions.reshape(-1), self.labels[images], self.mesh)

    def map(self, function: Encode) -> "Features":
        """Other features, computed from these.

        Args:
          function: [n, D] -> [n, K], each row from one row.
        """
        return dataclasses.replace(self, x=_map(function, self.x, mesh=self.mesh))


def put(x: np.ndarray, labels: np.ndarray, mesh: Mesh) -> Features:
    """Splits features that every process holds as a whole.

    Args:
      x: [N, D].
      labels: int32 [N], or [N, classes].
      mesh: from `parallel.create_mesh`.
    """
    missing = -len(x) % mesh.size
    rows = np.pad(x.astype(np.float32), ((0, missing), (0, 0)))
    positions = np.pad(np.arange(len(x)), (0, missing), constant_values=-1)
    split = parallel.batch_sharding(mesh)
    return Features(parallel.put(split, rows), positions, labels, mesh)


def extract(
    encode: Encode,
    batches: Iterable[dict[str, np.ndarray]],
    mesh: Mesh,
    *,
    num_examples: int,
    name: str = "images",
    verb: str = "encoded",
    report: Callable[[int], None] | None = None,
) -> Features:
    """Encodes every image once.

    Beside the features, memory holds the batches under way and nothing that grows with
    the dataset, except its labels.

    Args:
      encode: computes the features of a batch, which is split over the mesh.
      batches: from `pipeline.eval_batches` with as many parts as the mesh has devices:
        images, labels, mask.
      mesh: from `parallel.create_mesh`.
      num_examples: N, the number of images.
      name: of the dataset, for messages.
      verb: what is done with the images, for messages.
      report: called after each batch with the number of images so far; by default
        logs it now and then.

    Raises:
      DataError: the batches are not all images.
    """
    num_local = mesh.local_mesh.size
    split = parallel.batch_sharding(mesh)
    x: jax.Array | None = None
    previous: jax.Array | None = None
    rows_at_a_time = num_batches = 0
    labels, masks = [], []
    report = report or _Progress(num_examples, name, verb).log
    for number, batch in enumerate(batches):
        rows_at_a_time = len(batch["mask"]) // num_local
        num_batches = math.ceil(num_examples / (rows_at_a_time * mesh.size))
        if number == num_batches:
            raise DataError(f"{name}: gave more than its {num_examples} images")
        images = parallel.shard_batch(mesh, {"images": batch["images"]})["images"]
        h = _encode(encode, images, mesh=mesh)
        if x is None:
            shape = (num_batches * rows_at_a_time * mesh.size, h.shape[1])
            x = _zeros(shape, mesh=mesh)
        x = _write(x, h, number * rows_at_a_time, mesh=mesh)
        # One batch is encoded while the next is prepared; more would only use memory.
        jax.block_until_ready(previous)
        previous = h
        labels.append(_by_device(batch["labels"], num_local))
        masks.append(_by_device(batch["mask"], num_local))
        report((number + 1) * rows_at_a_time * mesh.size)

    # A figure of some of the images would pass for a figure of all of them.
    if x is None or len(masks) < num_batches:
        done = len(masks) * rows_at_a_time * mesh.size
        raise DataError(f"{name}: gave {done} of its {num_examples} images")
    positions = np.arange(len(x))
    positions[num_examples:] = -1
    mask, label_rows = (
        parallel.fetch(mesh, _from_local_parts(split, parts))
        for parts in (masks, labels)
    )
    if not np.array_equal(mask, positions >= 0):
        raise DataError(f"{name}: gave {mask.sum()} of its {num_examples} images")
    return Features(x, positions, label_rows[:num_examples], mesh)


def _by_device(rows: np.ndarray, num_devices: int) -> np.ndarray:
    """[n, ...] as [devices of this process, n / devices, ...]."""
    return rows.reshape(num_devices, -1, *rows.shape[1:])


def _from_local_parts(split: NamedSharding, parts: list[np.ndarray]) -> jax.Array:
    """A global array from this process's [devices, n, ...] of all batches."""
    joined = np.concatenate(parts, axis=1)
    rows = joined.reshape(-1, *joined.shape[2:])
    return jax.make_array_from_process_local_data(split, rows)


@functools.partial(jax.jit, static_argnames="mesh")
def _encode(encode: Encode, images: jax.Array, *, mesh: Mesh) -> jax.Array:
    h = encode(images).astype(jnp.float32)
    return jax.lax.with_sharding_constraint(h, parallel.batch_sharding(mesh))


@functools.partial(jax.jit, static_argnames=("shape", "mesh"))
def _zeros(shape: tuple[int, int], *, mesh: Mesh) -> jax.Array:
    zeros = jnp.zeros(shape, jnp.float32)
    return jax.lax.with_sharding_constraint(zeros, parallel.batch_sharding(mesh))


@functools.partial(jax.jit, static_argnames="mesh", donate_argnames="x")
def _write(x: jax.Array, rows: jax.Array, start: int, *, mesh: Mesh) -> jax.Array:
    """`x` with the rows of each device at `start` of its part, in the same memory."""

    def write(x: jax.Array, rows: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(x, rows, start, axis=0)

    return parallel.on_each_device(write, mesh, (SPLIT, SPLIT, WHOLE), SPLIT)(
        x, rows, start
    )


@functools.partial(jax.jit, static_argnames="mesh")
def _take(x: jax.Array, rows: jax.Array, *, mesh: Mesh) -> jax.Array:
    take = parallel.on_each_device(lambda x, rows: x[rows], mesh, (SPLIT, SPLIT), SPLIT)
    return take(x, rows)


@functools.partial(jax.jit, static_argnames="mesh")
def _map(function: Encode, x: jax.Array, *, mesh: Mesh) -> jax.Array:
    def compute(function: Encode, x: jax.Array) -> jax.Array:
        def fill(block: Block, y: jax.Array) -> jax.Array:
            return block.put(y, function(block.of(x)).astype(jnp.float32))

        width = jax.eval_shape(function, x).shape[1]
        y = jnp.zeros((len(x), width), jnp.float32)
        return blocks.fold(fill, y, len(x), _ROWS_AT_A_TIME)

    return parallel.on_each_device(compute, mesh, (WHOLE, SPLIT), SPLIT)(function, x)


class _Progress:
    """A log line with the time left, every `_SECS_BETWEEN_LINES`."""

    def __init__(self, num_examples: int, name: str, verb: str) -> None:
        self._num_examples, self._name, self._verb = num_examples, name, verb
        self._start = self._last_line = time.monotonic()

    def log(self, done: int) -> None:
        now = time.monotonic()
        if now - self._last_line < _SECS_BETWEEN_LINES:
            return
        self._last_line = now
        done = min(done, self._num_examples)
        rate = done / (now - self._start)
        _LOG.info(
            "%s: %s %d of %d images, %.0f images/s, %.1f minutes left",
            self._name,
            self._verb,
            done,
            self._num_examples,
            rate,
            (self._num_examples - done) / rate / 60,
        )
