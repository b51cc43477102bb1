"""What is worth saying about image files: their formats, and what is done with them."""

import collections
from collections.abc import Iterable, Mapping

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from simclr_jax.data import image_files, upright

TURNED, DEEP, FRAMES, ALPHA, CMYK, BANDS = (1 << bit for bit in range(6))
_WORDS = {
    TURNED: "turned upright (EXIF orientation)",
    DEEP: "of more than 8 bits, scaled",
    FRAMES: "of several frames or pages, the first one is used",
    ALPHA: "with transparency, which is dropped",
    CMYK: "in CMYK, converted to RGB",
    BANDS: "with further bands, which are dropped",
}
# Above the bits of traits: the number of the format in `image_files.FORMATS`.
_FORMAT_SHIFT = 8


def of_image(image: Image.Image, *, loaded: bool = False) -> int:
    """The traits of an opened image, as bits, with its format.

    Args:
      image: from `image_files.open_image`.
      loaded: as in `upright.of_image`.
    """
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    found = image_files.FORMATS.index(kind) << _FORMAT_SHIFT
    tags = getattr(image, "tag_v2", {})
    turned = upright.of_image(image, loaded=loaded) > 1
    # Which Pillow deletes when it has turned the image.
    turned |= tags.get(ExifTags.Base.Orientation, 1) > 1
    found |= TURNED * turned
    found |= DEEP * (not loaded and image_files.is_deep(image))
    # A JPEG of several pictures (MPO) is its first one to every decoder.
    found |= FRAMES * (kind != "JPEG" and _is_animated(image))
    has_alpha = "A" in image.getbands() or "a" in image.getbands()
    found |= ALPHA * (has_alpha or "transparency" in image.info)
    found |= CMYK * (image.mode == "CMYK")
    count = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 0)
    found |= BANDS * (count > len(image.getbands()))
    return int(found)


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a second frame that is damaged
        return True


def counts(traits: Iterable[int] | np.ndarray) -> dict[str, int]:
    """How many images have each format and each trait, by what a log says of it."""
    values = collections.Counter(np.asarray(traits, np.int64).tolist())
    found: collections.Counter[str] = collections.Counter()
    for value, number in values.items():
        found[image_files.FORMATS[value >> _FORMAT_SHIFT]] += number
    for bit, words in _WORDS.items():
        number = sum(n for value, n in values.items() if value & bit)
        if number:
            found[words] = number
    return dict(found)


def in_words(counted: Mapping[str, int]) -> str:
    """Counts as a line: '24 JPEG, 24 TIFF; 3 turned upright (EXIF orientation)'."""
    formats = [f"{n:,} {name}" for name, n in counted.items() if name not in _SAID]
    handled = [f"{n:,} {name}" for name, n in counted.items() if name in _SAID]
    return "; ".join(filter(None, (", ".join(formats), ", ".join(handled))))


_SAID = frozenset(_WORDS.values())
