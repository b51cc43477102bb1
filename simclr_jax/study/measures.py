"""What is measured of a trained cell: functions of its encoder, by name."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.configs import finetune
from simclr_jax.data import augment_jax
from simclr_jax.data.sources.base import Source
from simclr_jax.data.sources.subsets import Subset
from simclr_jax.evaluation import finetune_protocols, linear, metrics, overrides
from simclr_jax.evaluation import loop as evaluation
from simclr_jax.evaluation.context import Context, make_contexts
from simclr_jax.evaluation.features import Encode, Features
from simclr_jax.evaluation.protocols import PROTOCOLS
from simclr_jax.study.definitions import Study
from simclr_jax.study.shared import Shared
from simclr_jax.weights import encoder
from simclr_jax.weights.encoder import PretrainedEncoder

Metrics = dict[str, float]
_NOISE = 0.1  # standard deviation, of pixels from 0 to 1


def measure(study: Study, workdir: str, shared: Shared) -> tuple[Metrics, int]:
    """Measures the encoder of a cell's run.

    Args:
      study: names the measure.
      workdir: the run directory; gets the receipts of the protocols.
      shared: images.

    Returns:
      (figures in [0, 1] by metric, the encoder's number of parameters).
    """
    pretrained = encoder.load(workdir)
    from_run = overrides.with_overrides(pretrained.config, [])
    contexts = make_contexts(
        pretrained,
        shared.dataset(from_run),
        pretrained.preprocessing,
        from_run,
        shared.mesh,
        workdir,
        with_baselines=False,
    )
    found = MEASURES[study.measure](study, contexts["pretrained"])
    sizes = [leaf.size for leaf in jax.tree.leaves(pretrained.variables["params"])]
    return found, sum(sizes)


def _accuracy(study: Study, context: Context) -> Metrics:
    """Linear evaluation of h, and its nearest neighbours."""
    protocols = {"linear": study.protocol, "knn": "knn"}
    results = evaluation.measure(
        {name: PROTOCOLS[name] for name in protocols.values()}, {context.name: context}
    )
    return {
        metric: results[name][context.name].value for metric, name in protocols.items()
    }


def _accuracy_and_z(study: Study, context: Context) -> Metrics:
    """The same, and linear evaluation of g(h); h itself where there is no head."""
    # Before the other, which empties the cache of h.
    network = _network(context)
    has_head = network.head.num_outputs > 1
    of_z = context.with_layer(network.layer_of_h(-1) if has_head else None)
    value = PROTOCOLS[study.protocol](of_z).value
    return {**_accuracy(study, context), "linear_z": value}


def _network(context: Context) -> PretrainedEncoder:
    assert context.network is not None  # of pixels only
    return context.network


# Transformations ----------------------------------------------------------------------


def _grayscale(images: jax.Array, labels: np.ndarray, key: jax.Array) -> jax.Array:
    return _where(labels == 1, augment_jax.to_grayscale(images), images)


def _rotated(images: jax.Array, labels: np.ndarray, key: jax.Array) -> jax.Array:
    turned = images
    for quarters in (1, 2, 3):
        rotated = jnp.rot90(images, quarters, axes=(1, 2))
        turned = _where(labels == quarters, rotated, turned)
    return turned


def _noisy(images: jax.Array, labels: np.ndarray, key: jax.Array) -> jax.Array:
    noisy = images + _NOISE * jax.random.normal(key, images.shape)
    return _where(labels == 1, jnp.clip(noisy, 0.0, 1.0), images)


def _filtered(images: jax.Array, labels: np.ndarray, key: jax.Array) -> jax.Array:
    return _where(labels == 1, augment_jax.sobel(images), images)


def _where(chosen: np.ndarray, one: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.where(chosen[:, None, None, None], one, other)


# (number of classes, (images [N, S, S, 3], classes [N], key) -> images).
_TRANSFORMATIONS: dict[str, tuple[int, Callable[..., jax.Array]]] = {
    "grayscale": (2, _grayscale),
    "rotation": (4, _rotated),
    "corrupted": (2, _noisy),
    "sobel": (2, _filtered),
}


def transformed(
    batches: Iterator[dict[str, np.ndarray]], name: str, seed: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches with a random transformation of each image, whose number is its label.

    Args:
      batches: from `pipeline.eval_batches`.
      name: a key of `_TRANSFORMATIONS`.
      seed: of the draws.
    """
    num_classes, apply = _TRANSFORMATIONS[name]
    for number, batch in enumerate(batches):
        place = (seed, number, jax.process_index())
        labels = np.random.default_rng(place).integers(
            num_classes, size=len(batch["mask"]), dtype=np.int32
        )
        key = jax.random.key(np.random.default_rng((*place, 1)).integers(2**31))
        images = np.asarray(apply(batch["images"], labels, key), np.float32)
        yield {**batch, "images": images, "labels": labels}


def _transformations(study: Study, context: Context) -> Metrics:
    """A linear classifier of the transformation that was applied, on h and on z."""
    network = _network(context)
    found: Metrics = {}
    for name in _TRANSFORMATIONS:
        train, test = (
            _features_of(context, source, name, seed, study.settings["num_images"])
            for seed, source in enumerate((context.dataset.train, context.dataset.test))
        )
        for layer, function in (("h", None), ("z", network.layer_of_h(-1))):
            found[f"{name}_{layer}"] = _fit(context, train, test, function)
    return found


def _features_of(
    context: Context, source: Source, name: str, seed: int, most: int
) -> Features:
    """Features h of the first images of a source, transformed."""
    images = np.arange(min(most, source.num_examples))
    some = Subset(source, images, name=f"{name}, {source.name}")
    return context.extract(some, lambda batches: transformed(batches, name, seed))


def _fit(
    context: Context, train: Features, test: Features, layer: Encode | None
) -> float:
    if layer is not None:
        train, test = train.map(layer), test.map(layer)
    settings = context.config.evaluation
    predicted, _ = linear.linear_evaluation(
        train,
        test,
        l2_penalties=settings.l2_penalties,
        max_steps=settings.lbfgs_steps,
        seed=context.config.seed,
    )
    return metrics.top1(predicted, test.labels)


# Fine-tuning --------------------------------------------------------------------------


def _fine_tuning(study: Study, context: Context) -> Metrics:
    """Fine-tuning from layers of the head, on shares of the labels."""
    found: Metrics = {}
    for layer in study.settings["layers"]:
        changes = [f"finetune.layer={layer}"]
        if study.settings["epochs"]:
            changes.append(f"schedule.train_epochs={study.settings['epochs']}")
        # A folder for each layer: both train in eval/<protocol>.
        folder = f"{context.workdir}/layer{layer}"
        of_layer = dataclasses.replace(context, workdir=folder)
        functions = finetune_protocols.make_protocols(
            study.settings["shares"], finetune.adapt, changes
        )
        results = evaluation.measure(functions, {context.name: of_layer})
        for name, result in results.items():
            found[f"{name}_layer{layer}"] = result[context.name].value
    return found


MEASURES: dict[str, Callable[[Study, Context], dict[str, Any]]] = {
    "accuracy": _accuracy,
    "accuracy_and_z": _accuracy_and_z,
    "transformations": _transformations,
    "fine_tuning": _fine_tuning,
}
