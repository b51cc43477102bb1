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
        if image.mode.startswith("I"):  # 16 bits of grey
            grey = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=-1)
        return np.array(image.convert("RGB"))


def image_shape(content: bytes) -> tuple[int, int]:
    """(height, width) of an image file, read from its header."""
    with _opened(content) as image:
        return image.height, image.width


def _opened(content: bytes) -> Image.Image:
    return open_image(io.BytesIO(content), num_bytes=len(content))
