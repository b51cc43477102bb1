"""Decoding of JPEG and PNG files with Pillow, in Python.

Pixels equal those of `tf_decode.py`, since both use libjpeg with its accurate
transform; CMYK is converted to RGB in another way, by up to some levels.
"""

import io

import numpy as np
from PIL import Image

from simclr_jax.data.image_files import open_image


def decode_rgb(content: bytes) -> np.ndarray:
    """JPEG or PNG bytes to uint8 [H, W, 3].

    Grey becomes three equal channels, alpha is dropped, and of 16 bits the upper 8
    remain.

    Raises:
      Exception: whatever Pillow raises on damaged data.
    """
    with _opened(content) as image:
        return rgb_pixels(image)


def rgb_pixels(image: Image.Image) -> np.ndarray:
    """An opened image, of any mode, as uint8 [H, W, 3]; see `decode_rgb`.

    Raises:
      ValueError: its mode has no range of its own (floats, 32 bits).
      Exception: whatever Pillow raises on damaged data.
    """
    if image.mode == "F":
        raise ValueError("image of mode F: has no range; pass an array in [0, 1]")
    if image.mode.startswith("I"):  # 16 bits of grey
        wide = np.asarray(image).astype(np.int64)
        if wide.size and not (wide.min() >= 0 and wide.max() < 2**16):
            raise ValueError(
                f"image of mode {image.mode}: values in [{wide.min()}, {wide.max()}] "
                "do not fit 16 bits; pass an array in [0, 1]"
            )
        grey = (wide >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    straight = {"RGBa": "RGBA", "La": "LA"}.get(image.mode)  # premultiplied by alpha
    return np.array((image.convert(straight) if straight else image).convert("RGB"))


def image_shape(content: bytes) -> tuple[int, int]:
    """(height, width) of an image file, read from its header."""
    with _opened(content) as image:
        return image.height, image.width


def _opened(content: bytes) -> Image.Image:
    return open_image(io.BytesIO(content), num_bytes=len(content))
