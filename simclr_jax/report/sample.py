"""Some images of a run's dataset with their representations h."""

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from ml_collections import config_dict

from simclr_jax import host_resources
from simclr_jax.data.sampling import order
from simclr_jax.data.sources import pixels
from simclr_jax.data.sources.base import Source
from simclr_jax.errors import BadRecord, DataError, RunFailed, first_line
from simclr_jax.report import names, newest, thumbnails
from simclr_jax.training import input_pipeline
from simclr_jax.weights.encoder import PretrainedEncoder

THUMBNAIL = 64  # pixels
_CHUNK = 128  # images that are decoded, encoded and dropped together
_PART = 16  # of a chunk, for one thread


@dataclasses.dataclass(frozen=True)
class Sample:
    """Images with their h, in a random order.

    Attributes:
      h: float32 [n, D].
      labels: int32 [n], -1 for images without one.
      thumbnails: uint8 [n, 64, 64, 3].
      image_names: [n], printable.
      class_names: by label, printable; None for a dataset without labels.
      split: where the images are from.
      note: why they are not from the split that evaluation uses; '' if they are.
      num_bad: images that were chosen and cannot be read.
      num_images: of the split.
      step: of the checkpoint.
    """

    h: np.ndarray
    labels: np.ndarray
    thumbnails: np.ndarray
    image_names: tuple[str, ...]
    class_names: tuple[str, ...] | None
    split: str
    note: str
    num_bad: int
    num_images: int
    step: int

    @property
    def has_labels(self) -> bool:
        """Whether any image has a class."""
        return self.class_names is not None and bool((self.labels >= 0).any())

    def class_of(self, image: int) -> str | None:
        """The name of an image's class; None where it has none."""
        label = int(self.labels[image])
        if self.class_names is None or label < 0:
            return None
        known = label < len(self.class_names)
        return self.class_names[label] if known else str(label)


def take(
    workdir: str, config: config_dict.ConfigDict, *, num_images: int, seed: int
) -> Sample:
    """Encodes images of the held-out split, or of the training split without one.

    Args:
      workdir: the run directory, which is only read.
      config: of the run.
      num_images: at most so many, at least 1; as many are read.
      seed: chooses them.

    Raises:
      CheckpointNotFound, CheckpointError: there is no encoder that can be read.
      DataError: the images cannot be read.
      RunFailed: h is not finite.
    """
    # First, since it takes less time to find out that there is none.
    encoder = newest.load(workdir)
    source, split, note = _open(config)
    chosen = order.permute(
        np.arange(min(num_images, source.num_examples)),
        seed=seed,
        epoch=np.array(0),
        size=source.num_examples,
    )
    h, labels, pictures, kept = _encoded(encoder, source, chosen)
    if not np.isfinite(h).all():
        raise RunFailed(
            f"{workdir}: h is not finite, so the weights of step {encoder.step} are "
            "of no use"
        )
    return Sample(
        h=h,
        labels=labels,
        thumbnails=pictures,
        image_names=tuple(names.shown(source.describe(i)) for i in kept),
        class_names=names.of_classes(source, workdir),
        split=names.shown(split),
        note=names.shown(note),
        num_bad=len(chosen) - len(kept),
        num_images=source.num_examples,
        step=encoder.step,
    )


def _open(config: config_dict.ConfigDict) -> tuple[Source, str, str]:
    """(source, its split, why it is not the split that evaluation uses)."""
    evaluation, data = config.evaluation, config.data
    split = evaluation.get("held_out_split") or evaluation.test_split
    try:
        return input_pipeline.open_source(config, split, to_train=True), split, ""
    except DataError as error:
        source = input_pipeline.open_source(config, data.split, to_train=True)
        note = f"these are training images, since others cannot be had: {error}"
        return source, data.split, note


def _encoded(
    encoder: PretrainedEncoder, source: Source, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """(h, labels, thumbnails, numbers) of those of some images that can be read."""
    # Neighbours in the dataset are read together; the order comes back at the end.
    ascending = np.sort(chosen)
    size = min(_CHUNK, len(chosen))
    h, labels, pictures, kept = [], [], [], []
    error: BadRecord | None = None
    for numbers, read in _chunks(source, ascending):
        good = []
        for number, result in zip(numbers.tolist(), read, strict=True):
            if isinstance(result, BadRecord):
                error = result
                continue
            good.append(result[0])
            labels.append(int(result[1]))
            kept.append(number)
            pictures.append(thumbnails.of_image(result[0], THUMBNAIL))
        if good:
            # Filled up, so that there is one compilation.
            filled = good + good[-1:] * (size - len(good))
            h.append(encoder.encode(filled, batch_size=size)[: len(good)])
    if not kept:
        reason = first_line(error) if error else "holds no image"
        raise DataError(f"{source.name}: none of {len(chosen)} images: {reason}")
    places = {number: place for place, number in enumerate(kept)}
    back = [places[number] for number in chosen.tolist() if number in places]
    return (
        np.concatenate(h)[back],
        np.array(labels, np.int32)[back],
        np.stack(pictures)[back],
        [kept[place] for place in back],
    )


_Read = list[tuple[np.ndarray, int] | BadRecord]


def _chunks(source: Source, numbers: np.ndarray) -> Iterator[tuple[np.ndarray, _Read]]:
    """Images chunk by chunk; threads decode one while its predecessor is encoded."""
    starts = range(0, len(numbers), _CHUNK)
    with ThreadPoolExecutor(host_resources.num_cpus()) as pool:

        def begin(start: int) -> list:
            chunk = numbers[start : start + _CHUNK]
            parts = [chunk[i : i + _PART] for i in range(0, len(chunk), _PART)]
            return [pool.submit(pixels.read_each, source, part) for part in parts]

        ahead = begin(0) if len(numbers) else []
        for start in starts:
            parts, ahead = ahead, begin(start + _CHUNK)
            read = [result for part in parts for result in part.result()]
            yield numbers[start : start + _CHUNK], read
