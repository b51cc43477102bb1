"""What every contender is to do, and whether it did it."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

# Batches [n, 2, side, side, 3], endlessly, each image once in as many as hold them all.
Batches = Iterator[Any]

JITTER_PROBABILITY, GRAY_PROBABILITY, BLUR_PROBABILITY = 0.8, 0.2, 0.5
BRIGHTNESS, HUE = 0.8, 0.2  # contrast and saturation have the range of brightness
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
SIGMA = (0.1, 2.0)
# A mean outside means a view that is black, white or scaled wrongly.
_MEAN = (0.3, 0.6)
_LEAST_DEVIATION = 0.1
_ROUNDING = 1e-5


@dataclasses.dataclass(frozen=True)
class Task:
    """Two views of each image.

    Attributes:
      records: JPEG files in memory, or uint8 images [side, side, 3].
      side: of a view, in pixels.
      batch_size: images in a batch; divides their number.
      strength: of the colour jitter.
      blur: whether there is one.
    """

    records: Sequence[Any]
    side: int
    batch_size: int
    strength: float
    blur: bool

    def __post_init__(self) -> None:
        if len(self.records) % self.batch_size:
            raise SystemExit(
                f"--images_per_round={len(self.records)}: must be a multiple of "
                f"{self.batch_size}, a batch"
            )

    @property
    def are_files(self) -> bool:
        """Whether the records have to be decoded."""
        return isinstance(self.records[0], bytes)

    @property
    def taps(self) -> int:
        """Of the blur: a tenth of the side, made odd."""
        return 2 * (self.side // 10 // 2) + 1

    def chunks(self) -> Iterator[list[Any]]:
        """The records of one batch after the other, endlessly."""
        while True:
            for start in range(0, len(self.records), self.batch_size):
                yield list(self.records[start : start + self.batch_size])


def imagenet(folder: str, num_images: int) -> Task:
    """SimCLR's recipe for ImageNet, on JPEG files spread evenly over a folder's."""
    files = sorted(
        path
        for path in pathlib.Path(folder).rglob("*")
        if path.suffix.lower() in (".jpg", ".jpeg")
    )
    if len(files) < num_images:
        raise SystemExit(f"{folder}: has {len(files)} JPEG files, not {num_images}")
    chosen = [files[i * len(files) // num_images] for i in range(num_images)]
    return Task([path.read_bytes() for path in chosen], 224, 32, 1.0, True)


def cifar(file: str) -> Task:
    """SimCLR's recipe for CIFAR-10, on uint8 images of an .npy file."""
    import numpy as np

    return Task(list(np.load(file)), 32, 512, 0.5, False)


def check(task: Task, batch: Any) -> float:
    """Looks at two views of each image and returns their mean, 0 to 1."""
    import numpy as np

    expected = (task.batch_size, 2, task.side, task.side, 3)
    if batch.shape != expected or batch.dtype not in (np.uint8, np.float32):
        raise SystemExit(f"{batch.dtype}{list(batch.shape)}: must be {expected}")
    scaled = batch.astype(np.float64) / (255 if batch.dtype == np.uint8 else 1)
    if scaled.min() < -_ROUNDING or scaled.max() > 1 + _ROUNDING:
        raise SystemExit(f"Pixels lie in [{scaled.min()}, {scaled.max()}].")
    if (np.abs(scaled[:, 0] - scaled[:, 1]).mean(axis=(1, 2, 3)) < 1e-3).any():
        raise SystemExit("The views of an image are equal.")
    mean, deviation = scaled.mean(), scaled.std()
    if not _MEAN[0] < mean < _MEAN[1] or deviation < _LEAST_DEVIATION:
        raise SystemExit(f"Pixels have mean {mean}, standard deviation {deviation}.")
    return float(mean)
