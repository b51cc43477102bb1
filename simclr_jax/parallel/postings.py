"""Texts that the processes of a job leave for process 0; nobody waits.

They lie in the key-value store of JAX's coordination service until process 0 takes
them.
"""

import itertools
import logging
from typing import Any

import jax

_LOG = logging.getLogger(__name__)
_KEY = "simclr_jax/postings"


class Postings:
    """The texts on one topic."""

    def __init__(self, client: Any, topic: str, *, process_id: int) -> None:
        """Opens a topic, which no other instance of the job may have had.

        Args:
          client: of JAX's coordination service; None for a process that is alone.
          topic: the same on all processes.
          process_id: of this process.
        """
        self._client = client
        self._folder = f"{_KEY}/{topic}/"
        self._process_id = process_id
        self._numbers = itertools.count()

    def post(self, text: str) -> None:
        """Leaves a text, unless this is process 0 or the service is gone."""
        if self._client is None or self._process_id == 0:
            return
        key = f"{self._folder}{self._process_id}/{next(self._numbers)}"
        try:
            self._client.key_value_set(key, text)
        except jax.errors.JaxRuntimeError as error:
            _LOG.debug("cannot be posted", exc_info=error)

    def collect(self) -> list[str]:
        """The texts that others have left since the last call; none except on 0."""
        if self._client is None or self._process_id != 0:
            return []
        try:
            found = self._client.key_value_dir_get(self._folder)
            for key, _ in found:
                self._client.key_value_delete(key)
        except jax.errors.JaxRuntimeError as error:
            _LOG.debug("cannot be collected", exc_info=error)
            return []
        return [text for _, text in found]
