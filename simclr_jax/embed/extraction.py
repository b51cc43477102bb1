"""Features of all images of a dataset, part by part.

One pipeline reads all parts that are missing. Its order is that of `features.extract`,
which gives each device consecutive images of a part. Where a batch cannot be read, the
images of its part are tried one by one, the broken ones are left out, and the pipeline
starts again at that part.
"""

import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from simclr_jax import parallel
from simclr_jax.data import pipeline
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.data.progress import Progress
from simclr_jax.data.sources import bad_records
from simclr_jax.data.sources.bad_records import BatchFailed
from simclr_jax.data.sources.base import Batch, Source
from simclr_jax.embed import broken
from simclr_jax.embed.parts import Part
from simclr_jax.errors import RunFailed
from simclr_jax.evaluation import features
from simclr_jax.evaluation.features import Encode

_LOG = logging.getLogger(__name__)
# A kill costs the time of so many images at most.
PART_IMAGES = 4096


@dataclasses.dataclass(frozen=True)
class Extraction:
    """What is encoded, and how.

    Attributes:
      source: of the images.
      encode: prepared images [B, S, S, 3] -> features [B, D].
      preprocessing: of the images.
      batch_size: B, a multiple of the number of devices.
      mesh: all devices.
    """

    source: Source
    encode: Encode
    preprocessing: Preprocessing
    batch_size: int
    mesh: Mesh

    @property
    def num_parts(self) -> int:
        """How many parts the dataset has."""
        return math.ceil(self.source.num_examples / PART_IMAGES)

    def parts(self, missing: list[int]) -> Iterator[tuple[int, Part]]:
        """The features of parts; every process has to iterate.

        Args:
          missing: their numbers, ascending.

        Yields:
          (number, part); the same on all processes.

        Raises:
          InvalidInput: an image cannot be read, and may be intact.
          RunFailed: features are not finite.
        """
        known = {e.index: e.reason for e in bad_records.of(self.source)}
        images = {number: _images_of(self.source, number) for number in missing}
        done = self.source.num_examples - sum(map(len, images.values()))
        what = f"Encoding {self.source.name}: "
        total = self.source.num_examples
        progress = Progress(_LOG, total, "images", what=what, done=done)
        counted = dict.fromkeys(missing, 0)

        def report(number: int, done: int) -> None:
            # A part that begins again is not counted twice.
            if done > counted[number]:
                progress.add(done - counted[number])
                counted[number] = done

        while images:
            tried = next(iter(images))
            try:
                for number, part in self._good_parts(images, known, report):
                    tried = next((n for n in images if n > number), number)
                    del images[number]
                    yield number, part
            except BatchFailed:
                found = broken.find(self.source, images[tried])
                if found.keys() <= known.keys():
                    raise
                known |= found

    def _good_parts(
        self,
        images: Mapping[int, np.ndarray],
        known: Mapping[int, str],
        report: Callable[[int, int], None],
    ) -> Iterator[tuple[int, Part]]:
        """The parts of images, without those that are known to be broken."""
        images = dict(images)
        good = {n: part[~np.isin(part, [*known])] for n, part in images.items()}
        orders = {n: self._in_order_of_batches(part) for n, part in good.items()}
        batches = self._batches(orders)
        for number, part in good.items():
            reasons = {i: known[i] for i in images[number].tolist() if i in known}
            x, labels = self._extract(part, batches, functools.partial(report, number))
            report(number, len(images[number]))
            if not np.isfinite(x).all():
                row = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
                raise RunFailed(
                    f"{self.source.describe(int(part[row]))}: its features are not "
                    "finite, so the weights are of no use"
                )
            yield number, Part(x, part, labels, reasons)

    def _batches(self, orders: Mapping[int, np.ndarray]) -> Iterator[Batch]:
        indices = np.concatenate([np.empty(0, np.int64), *orders.values()])
        if not len(indices):
            return iter(())
        batches = pipeline.eval_batches(
            self.source,
            self.preprocessing,
            batch_size=self.batch_size,
            host_index=jax.process_index(),
            num_hosts=jax.process_count(),
            images=indices,
        )
        return broken.agreed(iter(batches))

    def _in_order_of_batches(self, images: np.ndarray) -> np.ndarray:
        """Images in the order in which batches have them, each device its own rows.

        Returns:
          [batches * B]; the last image fills the last batch up.
        """
        if not len(images):
            return images
        return images[np.minimum(self._positions(len(images)), len(images) - 1)]

    def _positions(self, count: int) -> np.ndarray:
        num_batches = math.ceil(count / self.batch_size)
        by_device = np.arange(num_batches * self.batch_size).reshape(
            self.mesh.size, num_batches, -1
        )
        return by_device.transpose(1, 0, 2).reshape(-1)

    def _extract(
        self,
        images: np.ndarray,
        batches: Iterator[Batch],
        report: Callable[[int], None],
    ) -> tuple[np.ndarray, np.ndarray]:
        """(features [n, D], labels [n]) of the images of the next batches."""
        if not len(images):
            return np.zeros((0, self.width()), np.float32), np.zeros(0, np.int32)
        is_first = self._positions(len(images)) < len(images)
        host = np.split(
            is_first.reshape(-1, self.batch_size), jax.process_count(), axis=1
        )[jax.process_index()]
        found = features.extract(
            self.encode,
            (
                {**batch, "mask": mask}
                for mask, batch in zip(
                    host, itertools.islice(batches, len(host)), strict=False
                )
            ),
            self.mesh,
            num_examples=len(images),
            name=self.source.name,
            report=lambda done: report(min(done, len(images))),
        )
        x = parallel.fetch(self.mesh, found.x)
        return found.by_image(np.asarray(x)), found.labels

    def width(self) -> int:
        """D."""
        size = self.preprocessing.image_size
        shape = (self.batch_size, size, size, 3)
        like = jax.ShapeDtypeStruct(shape, jnp.float32)
        return int(jax.eval_shape(self.encode, like).shape[1])


def _images_of(source: Source, number: int) -> np.ndarray:
    stop = min((number + 1) * PART_IMAGES, source.num_examples)
    return np.arange(number * PART_IMAGES, stop)
