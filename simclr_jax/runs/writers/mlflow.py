"""MLflow: MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME say where.

Without the former, files in the folder `mlruns` of the run.
"""

import os
import pathlib
import re
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

# How long a server that does not answer keeps a training waiting.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from simclr_jax import paths
from simclr_jax.runs.writers import pictures
from simclr_jax.runs.writers.protocol import Place, Points, Writer

_AT_ONCE = 100  # parameters of a request
_MOST_CHARACTERS = 500  # of a parameter, in every version of its servers
_OLD_PLACE = re.compile(r"^(artifact_(?:location|uri): )file:.*/mlruns/", re.MULTILINE)


class _MLflow:
    def __init__(self, place: Place) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            # A database needs packages that the extra does not have.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = _local_files(place)
        self._client = MlflowClient(tracking_uri=uri)
        self._logged_to = -1
        self.run_id: str | None = place.run_id
        if place.run_id is None or not self._has(place.run_id):
            created = self._client.create_run(self._experiment(), run_name=place.name)
            self._id = self.run_id = created.info.run_id
            return
        self._id = place.run_id
        self._client.update_run(self._id, status="RUNNING")
        # Steps cannot be taken back: those that a killed start has logged stay, and a
        # resumed run has the same figures.
        history = self._client.get_metric_history(self._id, "loss")
        self._logged_to = max((metric.step for metric in history), default=-1)

    def _has(self, run_id: str) -> bool:
        """Whether there is such a run; not where a start was killed before its copy."""
        try:
            self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return True

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "simclr_jax")
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found else self._client.create_experiment(name)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step > self._logged_to:
            now = int(time.time() * 1000)
            metrics = [Metric(name, value, now, step) for name, value in values.items()]
            self._client.log_batch(self._id, metrics=metrics)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        self._client.log_image(self._id, image, artifact_file=f"{name}_{step}.png")

    def hparams(self, values: Mapping[str, Any]) -> None:
        texts = {key: str(value)[:_MOST_CHARACTERS] for key, value in values.items()}
        old = self._client.get_run(self._id).data.params
        new = [Param(key, text) for key, text in texts.items() if key not in old]
        for start in range(0, len(new), _AT_ONCE):
            some = new[start : start + _AT_ONCE]
            self._client.log_batch(self._id, params=some)
        # Parameters cannot change, as some keys of a resumed run may.
        changed = [
            RunTag(f"changed.{key}", text)
            for key, text in texts.items()
            if old.get(key, text) != text
        ]
        self._client.log_batch(self._id, tags=changed)

    def embeddings(self, step: int, points: Points) -> None:
        with tempfile.TemporaryDirectory() as folder:
            pictures.write_projector(pathlib.Path(folder), points)
            self._client.log_artifacts(self._id, folder, f"embeddings_{step}")

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _local_files(place: Place) -> str:
    """The URI of `mlruns`, with what earlier starts have written."""
    folder = (place.folder / "mlruns").absolute()
    kept = place.workdir / "mlruns"
    if not folder.exists() and kept.is_dir():
        paths.download(kept, folder)
    # They name the folder in which they were made.
    for path in (*folder.glob("*/meta.yaml"), *folder.glob("*/*/meta.yaml")):
        text = path.read_text(encoding="utf-8")
        moved = _OLD_PLACE.sub(rf"\g<1>{folder.as_uri()}/", text)
        if moved != text:
            path.write_text(moved, encoding="utf-8")
    return folder.as_uri()


def open_writer(place: Place) -> Writer:
    """A writer of a new run of MLflow, or of the one that it has begun."""
    return _MLflow(place)
