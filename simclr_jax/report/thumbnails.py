"""Small pictures, and data URIs that hold them inside a page."""

import base64
import io
import math

import numpy as np
from PIL import Image

from simclr_jax.runs.writers.pictures import grid

_QUALITY = 80


def of_image(image: np.ndarray, side: int) -> np.ndarray:
    """The central square of an image, uint8 [side, side, 3].

    Args:
      image: uint8 [H, W, 3].
      side: of the result, in pixels; smaller images are enlarged without smoothing.
    """
    size = min(image.shape[:2])
    top, left = ((length - size) // 2 for length in image.shape[:2])
    square = Image.fromarray(image[top : top + size, left : left + size])
    smooth = size >= side
    resample = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return np.asarray(square.resize((side, side), resample))


def data_uri(picture: np.ndarray, *, lossless: bool = False) -> str:
    """A picture uint8 [H, W, 3] as a `data:` URI: WebP, or PNG without loss."""
    file, kind = io.BytesIO(), "png" if lossless else "webp"
    Image.fromarray(picture).save(file, kind, quality=_QUALITY)
    content = base64.b64encode(file.getvalue()).decode()
    return f"data:image/{kind};base64,{content}"


def sheet(pictures: np.ndarray) -> tuple[np.ndarray, int]:
    """Pictures in one, row by row.

    Args:
      pictures: uint8 [n, side, side, 3], at least one.

    Returns:
      (uint8 [rows * side, columns * side, 3], columns); picture i is in row
      i // columns and column i % columns, and the rest is black.
    """
    columns = math.ceil(math.sqrt(len(pictures)))
    return grid(pictures, columns), columns
