"""Writes a folder of photographs as phones and sync tools leave it.

    python tests/messy_photos.py FOLDER

The pictures are parts of the photographs in scikit-image (the extra `smoke`), enlarged
to a phone's sizes. Around them: sensors held in every direction (EXIF orientation),
JPEGs named .HEIC by an import, copies of the same file, a panorama above the pixel
limit, a file that is cut short, thumbnails and side files of systems, a video, and
folders named Training and Validation.
"""

import pathlib
import shutil
import sys

import numpy as np
from PIL import Image

from simclr_jax.data.sources import photographs

# Folder of a class, the photograph it is cut from.
CLASSES = {
    "Cat": "chelsea.png",
    "Coffee": "coffee.png",
    "Motorcycle": "motorcycle_left.png",
    "Rocket": "rocket.jpg",
    "Café wall": "brick.png",
}
# Pictures of each class, and the part of the photograph's width that contains them.
SPLITS = {"Training": (32, 0.0, 0.65), "Validation": (10, 0.7, 1.0)}
SIZE = 1200, 900
# Of the panorama: 135.0 million pixels, where 134.2 million (2**27) is the most.
PANORAMA = 18_000, 7_500
_ORIENTATION = 0x0112
# How to turn an upright picture into the sensor's for each EXIF orientation of a phone.
_TO_SENSOR = {
    1: None,
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}


def write(folder: pathlib.Path) -> None:
    """Writes the folder; the same bytes each time."""
    whole = dict(zip(photographs.PHOTOGRAPHS, photographs.load_whole(), strict=True))
    rng = np.random.default_rng(0)
    number = 0
    for split, (count, left, right) in SPLITS.items():
        for name, photograph in CLASSES.items():
            place = folder / split / name
            place.mkdir(parents=True)
            for i in range(count):
                number += 1
                # Every eighth picture has been renamed by an import.
                suffix = "HEIC" if i % 8 == 3 else "JPG"
                picture = _part(whole[photograph], left, right, rng)
                _save(picture, place / f"IMG_{number:04}.{suffix}", rng)
    _add_clutter(folder, whole)


def _part(
    pixels: np.ndarray, left: float, right: float, rng: np.random.Generator
) -> Image.Image:
    """A part of a photograph with the aspect of a phone's picture, enlarged."""
    height, width = pixels.shape[:2]
    first, last = round(left * width), round(right * width)
    side = min(height * SIZE[0] // SIZE[1], last - first)
    crop_width = int(rng.integers(side // 3, side // 2))
    crop_height = crop_width * SIZE[1] // SIZE[0]
    x = int(rng.integers(first, last - crop_width + 1))
    y = int(rng.integers(0, height - crop_height + 1))
    part = Image.fromarray(pixels[y : y + crop_height, x : x + crop_width])
    return part.resize(SIZE, Image.Resampling.BICUBIC)


def _save(picture: Image.Image, path: pathlib.Path, rng: np.random.Generator) -> None:
    """As a phone does: the sensor's pixels, and how it was held."""
    orientation = int(rng.choice(list(_TO_SENSOR)))
    turn = _TO_SENSOR[orientation]
    if turn is not None:
        picture = picture.transpose(turn)
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    picture.save(path, "JPEG", quality=90, exif=exif)


def _add_clutter(folder: pathlib.Path, whole: dict[str, np.ndarray]) -> None:
    """What nobody meant to train on, and pictures that need care."""
    cats, rockets = folder / "Training" / "Cat", folder / "Training" / "Rocket"
    first = sorted(cats.glob("*.JPG"))[0]
    for copy in ("(1)", "(2)"):
        shutil.copyfile(first, cats / f"{first.stem} {copy}.JPG")
    wide = Image.fromarray(whole[CLASSES["Rocket"]]).resize(PANORAMA)
    wide.save(rockets / "PANO_0001.JPG", quality=80)
    whole_file = sorted(rockets.glob("IMG*.JPG"))[1].read_bytes()
    (rockets / "IMG_9001.JPG").write_bytes(whole_file[: len(whole_file) // 3])
    (rockets / "IMG_9002.MOV").write_bytes(b"\0\0\0\x14ftypqt  " + bytes(500))
    for hidden in (".thumbnails", "@eaDir", "__MACOSX"):
        place = folder / "Training" / hidden
        place.mkdir()
        Image.open(first).resize((64, 48)).save(place / "thumb.jpg")
    (cats / f"._{first.name}").write_bytes(b"\0\5\26\7" + bytes(100))
    (cats / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(100))
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "Album.txt").write_text("Photos of everybody\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/messy_photos.py FOLDER")
    write(pathlib.Path(sys.argv[1]))
