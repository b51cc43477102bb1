"""Protocols that fine-tune a copy of the encoder."""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath
from ml_collections import config_dict

from simclr_jax.config import identity, resolve, rules
from simclr_jax.data.sources import subsets
from simclr_jax.errors import ConfigError
from simclr_jax.evaluation import linear, receipts
from simclr_jax.evaluation.context import Context
from simclr_jax.evaluation.overrides import with_training_overrides
from simclr_jax.evaluation.receipts import Result
from simclr_jax.parallel import processes
from simclr_jax.runs import dataset_record, directory
from simclr_jax.training import finetuning, loop
from simclr_jax.weights import encoder as encoders

_LOG = logging.getLogger(__name__)
# (a run's config, a share of the labels) -> the config of its fine-tuning.
Adapt = Callable[[config_dict.ConfigDict, float], config_dict.ConfigDict]
# The share of the labels that each protocol uses.
SHARES = {"finetune": 1.0, "finetune_10pct": 0.1, "finetune_1pct": 0.01}


def classifier(context: Context) -> Result:
    """The run's classifier: fine-tuned, distilled, or the online probe."""
    assert context.network is not None
    layer = (
        "the fine-tuned network" if context.network.model.fine_tuned else "h, a probe"
    )
    return _judge(context, {"classifier": layer})


def _judge(context: Context, settings: dict[str, Any]) -> Result:
    """The result of the classifier of the context's network."""
    network, test = context.network, context.dataset.test
    assert network is not None
    if network.model.num_classes != test.num_classes:
        raise ConfigError(
            f"--protocol: the weights have a classifier of {network.model.num_classes} "
            f"classes, and {test.name} has {test.num_classes}"
        )
    number, weights = network.classifier_layer, network.heads["params"]["probe"]
    layer = network.layer_of_h(number) if number else None
    of_layer = context.with_layer(layer)
    classifier = linear.Classifier(weights["kernel"], weights["bias"])
    predicted = linear.predict(classifier, of_layer.test_features)
    return receipts.judge(of_layer, predicted, settings)


def make_protocols(
    names: Sequence[str], adapt: Adapt | None, overrides: Sequence[str]
) -> dict[str, Callable[[Context], Result]]:
    """The fine-tuning protocols among some names.

    Args:
      names: names of protocols.
      adapt: builds the fine-tuning config; required if one of them fine-tunes.
      overrides: 'key=value' for keys of that config.

    Raises:
      ConfigError: there are overrides, and no protocol fine-tunes.
    """
    chosen = [name for name in names if name in SHARES]
    if overrides and not chosen:
        raise ConfigError(
            f"--set={overrides[0]}: must come with one of the protocols that train, "
            f"{', '.join(SHARES)}"
        )
    if not chosen:
        return {}
    assert adapt is not None
    return {
        name: functools.partial(_finetune, name=name, adapt=adapt, overrides=overrides)
        for name in chosen
    }


def _finetune(
    context: Context, *, name: str, adapt: Adapt, overrides: Sequence[str]
) -> Result:
    """Fine-tunes a copy of the encoder in `eval/<name>/` and tests its classifier.

    An interrupted training resumes, unless the encoder or the settings have changed.
    """
    network = context.network
    assert network is not None
    config = _config(context, name, adapt, overrides)
    config.finetune.init_checksum = encoders.checksum(network.variables)
    job = finetuning.make_job(config, network, fit_batch=_fits_batch(overrides))
    folder = receipts.folder(context) / name / context.name
    _remove_if_changed(folder, job)
    loop.run(job, str(folder))
    trained = encoders.load(str(folder))
    settings = {
        key: value
        for key, value in identity.flatten(identity.as_json(job.config)).items()
        if key.startswith(("finetune.", "optimizer.", "batch.", "schedule."))
    }
    train = f"{job.source.num_examples} of {context.dataset.train.name}"
    return _judge(context.with_network(trained), {"train_images": train, **settings})


def check(
    context: Context,
    names: Sequence[str],
    adapt: Adapt | None,
    overrides: Sequence[str],
) -> None:
    """Checks the settings of the protocols that fine-tune, before any measures.

    Args:
      context: of the pretrained encoder.
      names: of protocols.
      adapt: as in `make_protocols`.
      overrides: as there.

    Raises:
      ConfigError: a setting is none, or does not fit the images.
    """
    network = context.network
    for name in [name for name in names if name in SHARES]:
        assert adapt is not None
        assert network is not None
        config = finetuning.adopt(_config(context, name, adapt, overrides), network)
        train = context.dataset.train
        if config.data.dataset == context.config.data.dataset:
            train = subsets.class_balanced(
                train, config.finetune.label_fraction, seed=config.seed
            )
            if _fits_batch(overrides):
                config = resolve.with_fitting_batch(
                    config, train.num_examples, context.mesh.size
                )
            resolve.resolve(config, num_examples=train.num_examples)
        finetuning.check(config, network)
        rules.check_devices(config, context.mesh.size, "batch")


def _config(
    context: Context, name: str, adapt: Adapt, overrides: Sequence[str]
) -> config_dict.ConfigDict:
    config = adapt(context.config, SHARES[name])
    config = with_training_overrides(config, overrides)
    config.data.split = context.dataset.train_split
    return config


def _fits_batch(overrides: Sequence[str]) -> bool:
    """Whether nobody chose the batch size."""
    return not any(o.startswith("batch.batch_size=") for o in overrides)


def _remove_if_changed(folder: epath.Path, job: loop.TrainingJob) -> None:
    """Removes an earlier training if its encoder, settings or images were different."""
    with processes.all_or_none():
        if not processes.is_main() or not (folder / directory.CONFIG).exists():
            return
        old = directory.read_config(str(folder))
        images, found = dataset_record.read(str(folder)), job.source.listing()
        other_images = images and images.fingerprint != found.fingerprint
        if other_images or identity.differing_keys(old, identity.as_json(job.config)):
            _LOG.info(
                "%s: encoder, settings or images have changed; starting from step 0",
                folder,
            )
            folder.rmtree()
