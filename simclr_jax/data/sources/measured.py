"""The white level of a folder's images of more than 8 bits, measured once and kept."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from simclr_jax.data import own_images, white_level
from simclr_jax.data.image_files import NotAnImage
from simclr_jax.data.progress import Progress
from simclr_jax.data.sources import kept, storage
from simclr_jax.data.sources.folder_files import Files

_LOG = logging.getLogger(__name__)
_NAME = "white-level-1"
# Of more files so many are decoded, the same ones at each start. A file that was not,
# and exceeds the level, is no image of the dataset when its turn comes.
MOST_DECODED = 4096
_THREADS = 16


def measure(root: str, files: Files, *, what: str) -> int:
    """The white level of files of more than 8 bits; see `white_level.of_peaks`.

    Args:
      root: the folder.
      files: those below it that have more than 8 bits, at least one.
      what: they are, for messages.

    Raises:
      StoreFailed: a disk or store does not answer.
    """
    place = kept.Place(root)
    stamp = np.array(kept.stamp(*files.keys()))
    before = place.load(_NAME)
    if before is not None and before.get("stamp") == stamp:
        return int(before["white_level"])
    count = min(len(files.paths), MOST_DECODED)
    chosen = np.random.default_rng(0).permutation(len(files.paths))[:count]
    progress = Progress(_LOG, count, "files", what=f"Measuring the range of {what}: ")

    def peak_of(number: int) -> white_level.Peak | None:
        path = f"{root.rstrip('/')}/{files.paths[number]}"
        try:
            return own_images.peak(storage.read_file(path))
        except (NotAnImage, OSError):
            return None  # said when its turn comes
        finally:
            progress.add()

    with ThreadPoolExecutor(_THREADS) as pool:
        each: Callable = storage.each if storage.is_distant(root) else pool.map
        peaks = [peak for peak in each(peak_of, chosen.tolist()) if peak is not None]
    level = white_level.of_peaks(peaks) or white_level.FULL
    _LOG.info(
        "%s: white level %d, by the largest value, %g, of %d of %d images of more than "
        "8 bits",
        what,
        level,
        max((peak.value for peak in peaks), default=0),
        count,
        len(files.paths),
    )
    place.save(_NAME, {"stamp": stamp, "white_level": np.array(level)})
    return level
