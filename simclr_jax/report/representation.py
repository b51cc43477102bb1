"""The parts of the page that show images and what the encoder makes of them."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import config_dict

from simclr_jax.errors import InvalidInput, RunFailed, first_line, printable
from simclr_jax.evaluation.overrides import with_overrides
from simclr_jax.report import (
    class_receipts,
    classes,
    embedding_map,
    neighbours,
    pairs,
    sample,
)
from simclr_jax.report.sample import Sample
from simclr_jax.report.sections import MISSING, Section

_LOG = logging.getLogger(__name__)
_NUM_IMAGES = 1500


def sections(
    workdir: str,
    config: Mapping[str, Any],
    *,
    num_images: int = _NUM_IMAGES,
    seed: int = 0,
) -> list[Section]:
    """Pairs of views, neighbours in h, a map of h, and classes.

    The run may go on meanwhile: it is only read. A part that cannot be made has the
    template `missing.html`, with the reason in one line, and does not prevent others.

    Args:
      workdir: the run directory; may be on a store.
      config: of the run, as `directory.read_config` gives it.
      num_images: at most so many are encoded; the dataset is not read as a whole.
      seed: chooses images, and is that of the map.

    Returns:
      Four sections, always in this order.
    """
    of_run = with_overrides(dict(config), ())
    taken = _Once(
        lambda: sample.take(workdir, of_run, num_images=num_images, seed=seed)
    )
    return [
        _made(pairs.NAME, pairs.TITLE, lambda: pairs.section(workdir, of_run)),
        _made(
            neighbours.NAME,
            neighbours.TITLE,
            lambda: neighbours.section(taken.get()),
        ),
        _made(
            embedding_map.NAME,
            embedding_map.TITLE,
            lambda: embedding_map.section(taken.get(), seed=seed),
        ),
        _made(classes.NAME, classes.TITLE, lambda: _classes(workdir, of_run, taken)),
    ]


class _Once:
    """A sample that is taken when the first part needs it; or why there is none."""

    def __init__(self, take: Callable[[], Sample]) -> None:
        self._take = take
        self._sample: Sample | None = None
        self._error: InvalidInput | RunFailed | None = None

    def get(self) -> Sample:
        """The sample; raises the error of the first call again."""
        if self._error is not None:
            raise self._error
        if self._sample is None:
            try:
                self._sample = self._take()
            except (InvalidInput, RunFailed) as error:
                self._error = error
                raise
        return self._sample


def _classes(workdir: str, config: config_dict.ConfigDict, taken: _Once) -> Section:
    judged = class_receipts.read(workdir)
    if judged is None:
        judged = classes.of_sample(taken.get(), config)
    return classes.section(judged)


def _made(name: str, title: str, make: Callable[[], Section]) -> Section:
    try:
        return make()
    except (InvalidInput, RunFailed) as error:
        reason = printable(first_line(error))
        _LOG.warning("%s: cannot be shown (%s)", title, reason)
        return Section(name, title, MISSING, {"reason": reason})
