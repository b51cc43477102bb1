"""Held-out figures of a pretraining on the way: kNN, and the online probe.

The same code measures them as `simclr_jax.evaluate`: `evaluation.knn_k`, its
temperature and its preprocessing are those of the protocol `knn`.
"""

import dataclasses
import hashlib
import json

import numpy as np
from ml_collections import config_dict

from simclr_jax import parallel
from simclr_jax.config import identity, rules
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.data.sources import bad_records, in_memory, pixels, subsets
from simclr_jax.data.sources.base import Source
from simclr_jax.errors import ConfigError, DataError, printable
from simclr_jax.evaluation import datasets, finetune_protocols, protocols
from simclr_jax.evaluation.context import Context
from simclr_jax.evaluation.datasets import Dataset
from simclr_jax.parallel import processes
from simclr_jax.runs import checkpoints
from simclr_jax.runs.writers import Points
from simclr_jax.training import build
from simclr_jax.training.loop import TrainingJob
from simclr_jax.training.step import TrainState
from simclr_jax.training.watching import PREFIX, Figures, HeldOut
from simclr_jax.weights.encoder import PretrainedEncoder

_MOST_CHARACTERS = 200  # of `HeldOut.of`
# Of maps of embeddings: images, pixels of their thumbnails, images read at a time.
_MOST_POINTS, _MOST_THUMBNAIL, _AT_ONCE = 1000, 48, 64


def watched(job: TrainingJob) -> TrainingJob:
    """A pretraining that is measured every `evaluation.every_steps`, if that is set.

    Opens the images, and holds them in memory if they fit in `data.in_memory_mb`.

    Args:
      job: from `training.loop.pretraining_job`.

    Raises:
      ConfigError, DataError: a split or its labels are missing, or the settings do not
        fit them.
    """
    config = job.config
    if config.evaluation.every_steps is None:
        return job
    with processes.all_or_none():
        rules.check_devices(config, job.mesh.size, "evaluation")
        dataset = _open(config)
    measurement = _Measurement(job, dataset)
    held_out = HeldOut(
        measurement, "knn", _describe(config, dataset), measurement.points
    )
    return dataclasses.replace(job, held_out=held_out)


def _open(config: config_dict.ConfigDict) -> Dataset:
    """The images that kNN searches, and those that are held out."""
    evaluation = config.evaluation
    split = evaluation.held_out_split or evaluation.test_split
    if split == config.data.split:
        key = "held_out_split" if evaluation.held_out_split else "test_split"
        raise ConfigError(
            f"config.evaluation.{key}={split!r}: must not be config.data.split, since "
            "config.evaluation.every_steps measures images that are not trained on"
        )
    of_split = config.copy_and_resolve_references().unlock()
    with of_split.ignore_type():
        of_split.evaluation.test_split = split
    try:
        dataset = datasets.open_dataset(of_split)
    except DataError as error:
        raise DataError(
            f"config.evaluation.every_steps={evaluation.every_steps}: needs a labelled "
            f"split to search and one that is held out; {error}"
        ) from error
    bank = dataset.train
    if (
        evaluation.bank_images is not None
        and evaluation.bank_images < bank.num_examples
    ):
        share = evaluation.bank_images / bank.num_examples
        bank = subsets.class_balanced(bank, share, seed=config.seed)
    if max(evaluation.knn_k) > bank.num_examples:
        raise ConfigError(
            f"config.evaluation.knn_k={evaluation.knn_k}: must not exceed the "
            f"{bank.num_examples} images of {bank.name} that "
            "config.evaluation.every_steps searches"
        )
    limit_mb = config.data.in_memory_mb
    return dataclasses.replace(
        dataset, train=_hold(bank, limit_mb), test=_hold(dataset.test, limit_mb)
    )


def _hold(source: Source, limit_mb: int) -> Source:
    """The images, decoded once if they fit into memory."""
    held = in_memory.hold(source, limit_mb=limit_mb, on_bad_record=bad_records.refuse)
    return held or source


def _describe(config: config_dict.ConfigDict, dataset: Dataset) -> str:
    """See `HeldOut.of`: the data, and all settings on which the figures depend."""
    evaluation = config.evaluation
    settings = {
        key: value
        for key, value in identity.flatten(identity.as_json(config)).items()
        if key in ("image_size", "seed", "data.dataset", "data.label_key")
        or key.startswith(("evaluation.knn_", "evaluation.crop_", "evaluation.resize"))
    }
    sizes = [dataset.train.num_examples, dataset.test.num_examples]
    splits = [dataset.train_split, dataset.test_split]
    text = json.dumps([settings, sizes, splits], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    words = (
        f"knn (k = {evaluation.knn_k[0]}) of {sizes[1]} images of {splits[1]} by "
        f"{sizes[0]} of {splits[0]}"
    )
    return f"{words[: _MOST_CHARACTERS - 20]}, settings {digest}"


def _label_names(source: Source, labels: np.ndarray) -> list[str]:
    """Names of classes, which may be those of folders; '' for images without one."""
    names = source.class_names or range(source.num_classes or 0)
    return [printable(str(names[n])) if n >= 0 else "" for n in labels]


@dataclasses.dataclass(frozen=True)
class _Measurement:
    """What `HeldOut.measure` calls."""

    job: TrainingJob
    dataset: Dataset

    def __call__(self, state: TrainState) -> Figures:
        context = self._context(state)
        figures = {PREFIX + "knn": protocols.PROTOCOLS["knn"](context).value}
        if self._has_probe():
            figures[PREFIX + "probe"] = finetune_protocols.classifier(context).value
        # Near ties may turn on another machine, and all must save the same steps.
        return json.loads(processes.gather_texts(json.dumps(figures))[0])

    def points(self, state: TrainState) -> Points:
        """See `HeldOut.points`: of images at even distances in the split."""
        test = self.dataset.test
        count = min(test.num_examples, _MOST_POINTS)
        images = np.linspace(0, test.num_examples - 1, count).round().astype(np.int64)
        some = subsets.Subset(test, images, name=f"{count} images of {test.name}")
        context = self._context(state)
        context = context.with_dataset(dataclasses.replace(self.dataset, test=some))
        h = context.test_features
        rows = h.by_image(parallel.fetch(h.mesh, h.x))
        return Points(
            h=rows,
            labels=_label_names(test, h.labels),
            images=images.tolist(),
            thumbnails=self._thumbnails(images, context.preprocessing),
        )

    def _thumbnails(
        self, images: np.ndarray, preprocessing: Preprocessing
    ) -> np.ndarray:
        """Small images uint8 [N, s, s, 3], for process 0, which writes them."""
        side = min(preprocessing.image_size, _MOST_THUMBNAIL)
        small = dataclasses.replace(preprocessing, image_size=side)
        if not processes.is_main():
            return np.zeros((0, side, side, 3), np.uint8)
        parts = [
            small.levels(pixels.read(self.dataset.test, part)[0])
            for part in np.array_split(images, -(-len(images) // _AT_ONCE))
        ]
        return np.concatenate(parts)

    def _has_probe(self) -> bool:
        return self.job.parts.model.num_classes == self.dataset.test.num_classes

    def _context(self, state: TrainState) -> Context:
        config, model = self.job.config, self.job.parts.model
        variables, heads = checkpoints.separate_encoder(
            {"params": state.params, "batch_stats": state.batch_stats}
        )
        described = build.describe(config, model)
        network = PretrainedEncoder(
            model=model,
            variables=variables,
            heads=heads,
            preprocessing=Preprocessing(**described["preprocessing"]),
            config=config.to_dict(),
            config_hash=described["config_hash"],
            step=0,
        )
        return Context(
            name="held out",
            encode=network.layer(0),
            layer=None,
            layers={},
            network=network,
            dataset=self.dataset,
            preprocessing=network.preprocessing,
            config=config,
            mesh=self.job.mesh,
            workdir="",
        )
