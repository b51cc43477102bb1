"""The images that a user hands to an encoder: what counts as one, and how many.

One image is an array [H, W, 3], [H, W, 1] or [H, W] (grey), a Pillow image of any mode,
or the path of an image file, which is read as training reads it. Several are a list or
tuple of such, or one array [N, H, W, 3], [N, H, W, 1] or [N, H, W].

An array with three axes is one image if the last has length 3 or 1, else N grey images:
grey images that are 1 or 3 pixels wide are passed as [N, H, W, 1]. What could be meant
in another way is refused: channels before pixels ([3, H, W]), and an alpha channel.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from simclr_jax import host_resources
from simclr_jax.data import image_files, own_images, pillow_decode, white_level
from simclr_jax.data.preprocessing import Preprocessing, as_array
from simclr_jax.data.sources import bad_records, storage
from simclr_jax.errors import first_line

_COLOURS, _GREY = 3, 1
_ONE = "must be [H, W, 3], or [H, W, 1] or [H, W] if it is grey"


class GivenImages:
    """Images by number; each is read and decoded when its batch is prepared."""

    def __init__(self, images: Any) -> None:
        """Looks at shapes; no file is opened.

        Args:
          images: see the module.

        Raises:
          ValueError: they are no images, or an array has another shape.
        """
        self._are_many = True
        self._items: Sequence[Any] | np.ndarray
        if isinstance(images, list | tuple):
            self._items = images
        elif isinstance(images, str | os.PathLike | Image.Image):
            self._items, self._are_many = [images], False
        elif _is_column(images):
            self._items = [*images]
        else:
            self._items = _stack(as_array(images))

    def __len__(self) -> int:
        return len(self._items)

    def prepare(
        self, preprocessing: Preprocessing, start: int, stop: int
    ) -> np.ndarray:
        """Some of the images, preprocessed.

        Args:
          preprocessing: of the images.
          start: number of the first.
          stop: one past the last.

        Returns:
          float32 [stop - start, S, S, 3] in [0, 1].

        Raises:
          ValueError: an image cannot be read, or has a wrong shape, dtype or range; the
            message has its number in a list.
        """
        if isinstance(self._items, np.ndarray):
            images = self._items[start:stop]
            try:
                return preprocessing(np.broadcast_to(images, (*images.shape[:-1], 3)))
            except ValueError:
                if len(self) == 1:
                    raise
                # Once more one by one, to find the bad one.

        def one(number: int) -> np.ndarray:
            try:
                return preprocessing(_pixels(self._items[number], preprocessing))[0]
            except ValueError as error:
                if not self._are_many:
                    raise
                raise ValueError(f"images[{number}]: {error}") from error

        with ThreadPoolExecutor(host_resources.num_cpus()) as pool:
            return np.stack([*pool.map(one, range(start, stop))])


def _is_column(images: Any) -> bool:
    """Whether an array holds paths or images of several sizes, as tables have them."""
    if not hasattr(images, "__array__"):
        return False
    dtype = getattr(images, "dtype", None)
    return getattr(dtype, "kind", "") in "OU" and getattr(images, "ndim", 0) == 1


def _stack(array: np.ndarray) -> np.ndarray:
    """One array of one image or more as [N, H, W, 1 or 3]."""
    if array.ndim == 4:
        _check_channels(array.shape[1:])
        return array
    if array.ndim == 3 and array.shape[-1] not in (_COLOURS, _GREY):
        if array.shape[0] == _COLOURS:
            _check_channels(array.shape, " (three grey images: [3, H, W, 1])")
        if array.shape[-1] in (2, 4):
            _check_channels(array.shape)
        return array[..., None]
    return _one(array)[None]


def _pixels(image: Any, preprocessing: Preprocessing) -> np.ndarray:
    """One image as [H, W, 3]."""
    if isinstance(image, str | os.PathLike):
        return _read(os.fspath(image), preprocessing)
    if isinstance(image, Image.Image):
        try:
            return preprocessing.pixels(image)
        except (OSError, SyntaxError) as error:  # of a file that is decoded only now
            raise ValueError(f"cannot be decoded ({first_line(error)})") from error
    return np.broadcast_to(one := _one(as_array(image)), (*one.shape[:2], 3))


def _one(array: np.ndarray) -> np.ndarray:
    """An array of one image as [H, W, 1 or 3]."""
    if array.ndim == 2:
        return array[..., None]
    if array.ndim != 3:
        raise ValueError(f"image has shape {array.shape}: {_ONE}")
    _check_channels(array.shape)
    return array


def _check_channels(shape: tuple[int, ...], hint: str = "") -> None:
    """Raises ValueError unless the shape of an image is [H, W, 1 or 3]."""
    height, _, channels = shape
    if channels in (_COLOURS, _GREY):
        return
    if height in (_COLOURS, _GREY):
        raise ValueError(
            f"image has shape {shape}, channels first: must be [H, W, 3]; "
            f"np.moveaxis(images, -3, -1) makes it so{hint}"
        )
    if channels in (2, 4):
        raise ValueError(
            f"image has shape {shape}, {channels} channels: {_ONE}; alpha is dropped "
            f"by images[..., :{channels - 1}]"
        )
    raise ValueError(f"image has shape {shape}: {_ONE}")


def _read(path: str, preprocessing: Preprocessing) -> np.ndarray:
    """Reads and decodes an image file, as training does where it uses Pillow.

    Raises:
      DataError: there is no such file, or it cannot be read or decoded.
    """
    what = "cannot be read"
    level = preprocessing.white_level
    handling = own_images.Handling(
        preprocessing.exif_orientation, white_level.FULL if level is None else level
    )
    try:
        content = storage.read_file(storage.expanded(path))
        if level is None:
            _check_bits(content)
        content = own_images.as_jpeg_or_png(content, handling)
        what = "cannot be decoded"
        return pillow_decode.decode_rgb(content)
    except Exception as error:  # decoders raise anything on broken data
        bad_records.fail(0, f"file {path}", what, error)


def _check_bits(content: bytes) -> None:
    """Raises ValueError for a file of more than 8 bits, of which white is not known."""
    with image_files.opened(content) as image:
        if image_files.is_deep(image):
            raise ValueError(
                "has more than 8 bits, and training saw 8 bits alone; pass an array in "
                "[0, 1]"
            )
