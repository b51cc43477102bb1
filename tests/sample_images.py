"""Images that tests write."""

import io
import pathlib
from typing import Any

import numpy as np
from PIL import Image


def encoded(
    kind: str,
    mode: str = "RGB",
    *,
    size: tuple[int, int] = (48, 40),
    frames: int = 1,
    **options: Any,
) -> bytes:
    """A file of random pixels, by Pillow; `size` is (width, height)."""
    generator = np.random.default_rng(0)
    shape = (size[1], size[0], 3)
    images = [
        Image.fromarray(generator.integers(0, 256, shape, np.uint8)).convert(mode)
        for _ in range(frames)
    ]
    if frames > 1:
        options |= {"save_all": True, "append_images": images[1:]}
    buffer = io.BytesIO()
    images[0].save(buffer, kind, **options)
    return buffer.getvalue()


def write_colours(folder: pathlib.Path, counts: dict[str, int]) -> None:
    """Labelled images of three colours, so many of each in each split."""
    generator = np.random.default_rng(0)
    for split, count in counts.items():
        for label, colour in enumerate(np.eye(3)):
            place = folder / split / str(label)
            place.mkdir(parents=True)
            for number in range(count):
                noise = generator.random((16, 16, 3))
                pixels = (255 * (0.6 * noise + 0.4 * colour)).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")


# Flags of a training on such images that takes seconds.
SMALL_TRAINING = (
    "--config=folder",
    "--config.image_size=8",
    "--config.encoder.depth=10",
    "--config.encoder.width=0.0625",
    "--config.batch.batch_size=16",
    "--config.evaluation.batch_size=16",
    "--config.evaluation.knn_k=(5,)",
    "--config.data.split=train",
    "--config.schedule.warmup_steps=2",
    "--config.checkpoint.keep_last=3",
)
