"""A verdict in words on whether contrastive learning works, from the logged metrics."""

import math
from collections.abc import Mapping

# A loss closer to chance than this fraction of it: hardly any images are told apart.
_CHANCE_MARGIN = 0.01
# A projection that varies along one direction only, or hardly varies, has collapsed.
_COLLAPSED_RANK = 1.5
_COLLAPSED_SIMILARITY = 0.99
# A softmax over views with less information than this, in nats, is uniform.
_LEAST_INFORMATION = 0.01
_PATIENCE = 3
# Verdicts that tell of no problem.
HEALTHY, TOO_EARLY = "healthy", "too early to tell"

_CAUSES = {
    "at chance": "the views of an image are no more alike than those of two images; "
    "try a lower temperature, a higher learning rate or weaker augmentations",
    "collapsed": "all images get nearly the same projection; try a lower learning "
    "rate, a longer warm-up or a higher temperature, and check that the images differ",
    "flat": "the loss weighs all negatives alike, however similar they are; try a "
    "lower temperature",
}


class HealthMonitor:
    """Follows the metrics of a run and says in words how it is doing."""

    def __init__(
        self, *, check_rank: bool = True, num_images: int | None = None
    ) -> None:
        """Starts without a verdict.

        Args:
          num_images: B, over whose view 2s the softmax of the metrics goes; None where
            the loss has another one.
          check_rank: whether few directions of z are a bad sign. With labels they are
            not: C classes apart from each other span C - 1 directions.
        """
        self._check_rank = check_rank
        self._num_images = num_images
        self._verdict = TOO_EARLY
        self._state = ""
        self._since = 0
        self._count = 0

    def update(self, step: int, metrics: Mapping[str, float]) -> str:
        """Judges the metrics of one logged step.

        Args:
          step: number of updates so far.
          metrics: `loss`, `effective_rank_z`, `positive_similarity`,
            `negative_similarity` and `contrastive_entropy`; `chance` for objectives
            that have such a level.

        Returns:
          'healthy', or 'at chance since step S: ...', 'collapsed since step S: ...' or
          'flat since step S: ...' with what to try. A problem counts once it shows in
          three logged steps in a row; until then the verdict stays, at first 'too early
          to tell'.
        """
        state = self._judge(metrics)
        if state != self._state:
            self._state, self._since, self._count = state, step, 0
        self._count += 1
        if state == HEALTHY:
            self._verdict = state
        elif self._count >= _PATIENCE:
            self._verdict = f"{state} since step {self._since}: {_CAUSES[state]}"
        return self._verdict

    def _judge(self, metrics: Mapping[str, float]) -> str:
        on_a_line = self._check_rank and metrics["effective_rank_z"] < _COLLAPSED_RANK
        if on_a_line or metrics["negative_similarity"] > _COLLAPSED_SIMILARITY:
            return "collapsed"
        if "chance" in metrics:
            at_chance = metrics["loss"] > (1 - _CHANCE_MARGIN) * metrics["chance"]
        else:
            gap = metrics["positive_similarity"] - metrics["negative_similarity"]
            at_chance = gap < _CHANCE_MARGIN
        if at_chance:
            return "at chance"
        return "flat" if self._is_flat(metrics) else HEALTHY

    def _is_flat(self, metrics: Mapping[str, float]) -> bool:
        if self._num_images is None:
            return False
        uniform = math.log(self._num_images)
        return uniform - metrics["contrastive_entropy"] < _LEAST_INFORMATION
