"""Compares the antialiased bicubic with the reference's four taps.

    python tests/benchmarks/resizing.py --images=FOLDER

Prints three tables: by how many of 256 levels each path differs from Pillow; the cosine
of an encoder's features of a photograph and of its copy that Lanczos shrunk to 256
pixels, with each evaluation resize; and processor milliseconds of a compiled crop of
224 pixels by the factor by which it shrinks, the two forms and Pillow's in turn. The
photographs are JPEG files of a folder, enlarged four times with a camera's grain, and
those of scikit-image; --workdir names a run whose encoder is used in place of a random
ResNet-18 of 224 pixels.
"""

import argparse
import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import jax

import simclr_jax
from simclr_jax.configs import base
from simclr_jax.data import augment_jax
from simclr_jax.data.preprocessing import resize_antialiased
from simclr_jax.data.sources import photographs
from simclr_jax.data.tf_cpu import tf
from simclr_jax.data.views import definition, host_program
from simclr_jax.data.views.composition import Composition
from simclr_jax.weights import encoder

SIZE, SHORT_SIDE = 224, 256
FACTORS = (0.6, 1.0, 1.3, 2.0, 4.0, 8.0)
CUBIC, LANCZOS = Image.Resampling.BICUBIC, Image.Resampling.LANCZOS


def compiled_crop(image: np.ndarray, *, antialias: bool) -> Callable[[], np.ndarray]:
    """A call of the compiled crop of a whole image uint8 [H, W, 3]."""
    crop = host_program.compose(Composition((), {}, SIZE, antialias))
    box = np.int32([[[0, 0, *image.shape[:2]]]])
    no_draws = np.zeros((1, 1, 0), np.float32)
    result = np.empty((1, 1, SIZE, SIZE, 3), np.uint8)

    def call() -> np.ndarray:
        crop(image[None], box, no_draws, result)
        return result[0, 0]

    return call


def differences(images: list[np.ndarray]) -> None:
    """The first table."""
    size = (SIZE, SIZE)
    paths: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "compiled": lambda image: compiled_crop(image, antialias=True)(),
        "graph": lambda image: definition.to_uint8(
            definition.crop_and_resize(
                tf.constant(image), (0, 0, *image.shape[:2]), size, antialias=True
            )
        ).numpy(),
        "accelerator's": lambda image: (
            np.asarray(
                augment_jax.crop_and_resize(
                    image[None] / np.float32(255),
                    np.int32([[0, 0, *image.shape[:2]]]),
                    size,
                    antialias=True,
                )
            )[0]
            * 255
        ),
        "NumPy": lambda image: (
            resize_antialiased(image / np.float32(255), SIZE) * np.float32(255)
        ),
    }
    print("\n| path | largest difference from Pillow, levels | mean |\n|---|---|---|")
    for name, path in paths.items():
        found = []
        for image in images:
            levels = np.rint(np.clip(path(image), 0, 255)).astype(int)
            expected = np.asarray(Image.fromarray(image).resize(size, CUBIC))
            found.append(np.abs(levels - expected))
        mean = np.mean([one.mean() for one in found])
        print(f"| {name} | {max(one.max() for one in found)} | {mean:.4f} |")


def cosines(images: list[np.ndarray], workdir: str | None) -> None:
    """The second table."""
    config = base.get_config()
    config.encoder.depth, config.encoder.compute_dtype = 18, "float32"
    opened = simclr_jax.load(workdir) if workdir else encoder.initialize(config)
    assert isinstance(opened, encoder.PretrainedEncoder)
    shrunk = []
    for image in images:
        factor = SHORT_SIDE / min(image.shape[:2])
        size = [round(side * factor) for side in image.shape[1::-1]]
        shrunk.append(np.asarray(Image.fromarray(image).resize(size, LANCZOS)))
    print("\n| evaluation.resize | lowest cosine | mean |\n|---|---|---|")
    for resize in ("bicubic", "bicubic_antialias"):
        changed = dataclasses.replace(opened.preprocessing, resize=resize)
        with_it = dataclasses.replace(opened, preprocessing=changed)
        first, second = with_it.encode(images), with_it.encode(shrunk)
        lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        found = (first * second).sum(axis=1) / lengths
        print(f"| {resize} | {found.min():.4f} | {found.mean():.4f} |")


def rates(image: np.ndarray, rounds: int) -> None:
    """The third table."""
    print(
        "\n| factor | four taps, ms | antialiased, ms | Pillow, ms |\n|---|---|---|---|"
    )
    for factor in FACTORS:
        side = round(SIZE * factor)
        square = np.asarray(Image.fromarray(image).resize((side, side), CUBIC))
        picture = Image.fromarray(square)
        calls = (
            compiled_crop(square, antialias=False),
            compiled_crop(square, antialias=True),
            lambda picture=picture: picture.resize((SIZE, SIZE), CUBIC),
        )
        best = [float("inf")] * len(calls)
        for _ in range(rounds):
            for number, call in enumerate(calls):
                start = time.process_time()
                for _ in range(10):
                    call()
                best[number] = min(best[number], (time.process_time() - start) / 10)
        cells = " | ".join(f"{1000 * secs:.2f}" for secs in best)
        print(f"| {factor:g} | {cells} |", flush=True)


def grainy(path: pathlib.Path) -> np.ndarray:
    """A picture enlarged four times, with a camera's grain."""
    picture = Image.open(path).convert("RGB")
    enlarged = picture.resize([4 * side for side in picture.size], CUBIC)
    levels = np.asarray(enlarged).astype(np.int16)
    generator = np.random.default_rng(0)
    grain = generator.integers(-25, 25, levels.shape, np.int16)
    return np.clip(levels + grain, 0, 255).astype(np.uint8)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", help="a folder of JPEG files")
    parser.add_argument("--workdir", help="a run whose encoder is used")
    parser.add_argument("--num_images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    images = list(photographs.load_whole())
    if arguments.images:
        files = sorted(pathlib.Path(arguments.images).glob("*.[jJ][pP]*"))
        images += [grainy(path) for path in files[: arguments.num_images]]
    print(f"{len(images)} photographs; JAX on {jax.default_backend()}")
    rates(images[0], arguments.rounds)
    # Tall ones are left out: Pillow 13 resizes them in another order.
    differences([image for image in images if image.shape[0] <= image.shape[1]])
    cosines(images, arguments.workdir)


if __name__ == "__main__":
    main()
