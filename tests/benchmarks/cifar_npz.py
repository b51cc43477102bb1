"""CIFAR-10 in one small file, for machines without TensorFlow Datasets.

    python tests/benchmarks/cifar_npz.py --data_dir=TFDS_DIR --output=cifar10.npz

Images are tiles of large JPEGs: 184 MB of pixels become 40 MB. Tiles of 32 pixels are
whole blocks of JPEG without subsampling, so no tile changes another. The last lines
printed say what the compression costs.
"""

import argparse
import io
import pathlib
from typing import Any

import numpy as np
from PIL import Image

SPLITS = ("train", "test")
SIDE, TILES = 32, 50  # pixels of an image, images in a row and in a column
QUALITY = 98


def encode(images: np.ndarray, quality: int) -> tuple[np.ndarray, np.ndarray]:
    """JPEGs of uint8 images [N, S, S, 3]: (all bytes, the end of each file)."""
    files = []
    for start in range(0, len(images), TILES**2):
        part = images[start : start + TILES**2]
        side = part.shape[1]
        sheet = np.zeros((TILES**2, side, side, 3), np.uint8)
        sheet[: len(part)] = part
        rows = sheet.reshape(TILES, TILES, side, side, 3).swapaxes(1, 2)
        buffer = io.BytesIO()
        Image.fromarray(rows.reshape(TILES * side, TILES * side, 3)).save(
            buffer, "JPEG", quality=quality, subsampling=0, optimize=True
        )
        files.append(np.frombuffer(buffer.getvalue(), np.uint8))
    return np.concatenate(files), np.cumsum([len(file) for file in files])


def decode(content: np.ndarray, ends: np.ndarray, count: int) -> np.ndarray:
    """The inverse of `encode`, up to the loss of JPEG."""
    sheets = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        with Image.open(io.BytesIO(content[start:end].tobytes())) as picture:
            pixels = np.asarray(picture)
        side = len(pixels) // TILES
        rows = pixels.reshape(TILES, side, TILES, side, 3).swapaxes(1, 2)
        sheets.append(rows.reshape(TILES**2, side, side, 3))
    return np.concatenate(sheets)[:count]


def write(
    path: pathlib.Path, splits: dict[str, tuple[Any, Any]], quality: int = QUALITY
) -> None:
    """Writes (images, labels) by split."""
    arrays = {"quality": np.array(quality)}
    for split, (images, labels) in splits.items():
        content, ends = encode(images, quality)
        arrays |= {
            f"{split}_content": content,
            f"{split}_ends": ends,
            f"{split}_labels": np.asarray(labels, np.uint8),
        }
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def read(path: pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(images uint8 [N, S, S, 3], labels int32 [N]) by split."""
    with np.load(path) as arrays:
        return {
            split: (
                decode(
                    arrays[f"{split}_content"],
                    arrays[f"{split}_ends"],
                    len(arrays[f"{split}_labels"]),
                ),
                arrays[f"{split}_labels"].astype(np.int32),
            )
            for split in SPLITS
        }


def quality_of(path: pathlib.Path) -> int:
    """The quality of the JPEGs in a file that `write` wrote."""
    with np.load(path) as arrays:
        return int(arrays["quality"])


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="of TensorFlow Datasets")
    parser.add_argument("--output", required=True, type=pathlib.Path)
    parser.add_argument("--quality", type=int, default=QUALITY)
    arguments = parser.parse_args()

    from simclr_jax.data.sources import in_memory, registry

    splits = {}
    for split in SPLITS:
        source = registry.open_source(
            "cifar10", split=split, data_dir=arguments.data_dir
        )
        splits[split] = in_memory.whole(in_memory.hold(source, limit_mb=1024))
    write(arguments.output, splits, arguments.quality)
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e6:.1f} MB")
    for split, (images, _) in read(arguments.output).items():
        error = images.astype(np.float32) - splits[split][0]
        mean, root = np.abs(error).mean(), np.sqrt(np.square(error).mean())
        print(
            f"{split}: {len(images)} images; mean error {mean:.2f} of 255 levels, "
            f"{20 * np.log10(255 / root):.1f} dB"
        )


if __name__ == "__main__":
    main()
