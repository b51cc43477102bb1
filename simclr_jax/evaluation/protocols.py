"""The evaluation protocols, plain functions of a `Context`.

To add a protocol, write one function `f(context) -> Result` and add one line to
`PROTOCOLS`: `--protocol` then accepts its name, and `loop.py` checks the encoder and
writes the receipt. Every figure is that of the final classifier: after the last fit, or
after the last step of SGD. Test labels are used once, for that figure; they select no
setting.
"""

from collections.abc import Callable

import jax
from ml_collections import config_dict

from simclr_jax.evaluation import (
    finetune_protocols,
    knn,
    linear,
    linear_sgd,
    metrics,
    receipts,
)
from simclr_jax.evaluation.context import Context
from simclr_jax.evaluation.features import Encode
from simclr_jax.evaluation.receipts import Result
from simclr_jax.training import device_views, input_pipeline


def _knn(context: Context) -> Result:
    """Weighted nearest neighbours (Wu et al., 2018)."""
    evaluation = context.config.evaluation
    predicted = knn.classify(
        context.train_features,
        context.test_features,
        ks=evaluation.knn_k,
        temperature=evaluation.knn_temperature,
    )
    labels = context.test_features.labels
    return receipts.judge(
        context,
        predicted[evaluation.knn_k[0]],
        {"k": evaluation.knn_k, "temperature": evaluation.knn_temperature},
        values={f"k={k}": metrics.top1(p, labels) for k, p in predicted.items()},
    )


def linear_evaluation(context: Context) -> Result:
    """Logistic regression by L-BFGS; held-out training images select its penalty."""
    evaluation = context.config.evaluation
    predicted, chosen = linear.linear_evaluation(
        context.train_features,
        context.test_features,
        l2_penalties=evaluation.l2_penalties,
        max_steps=evaluation.lbfgs_steps,
        metric=metrics.METRICS[context.dataset.metric],
        seed=context.config.seed,
    )
    train = context.dataset.train
    return receipts.judge(
        context,
        predicted,
        {
            "solver": "lbfgs",
            "max_steps": evaluation.lbfgs_steps,
            "train_images": f"{train.num_examples} of {train.name}",
            **chosen,
        },
        metric=context.dataset.metric,
    )


def _layers(context: Context) -> Result:
    """Linear evaluation of h and of each layer of the head."""
    results = {
        name: linear_evaluation(context.with_layer(layer))
        for name, layer in context.layers.items()
    }
    return Result(
        results["h"].value,
        {name: result.settings for name, result in results.items()},
        values={name: result.value for name, result in results.items()},
        classes=results["h"].classes,
    )


def _linear_sgd(context: Context) -> Result:
    """SGD on frozen features of random crops and flips (paper appendix B.6)."""
    evaluation, train = context.config.evaluation, context.dataset.train
    batch_size = evaluation.sgd_batch_size
    steps = max(1, round(evaluation.sgd_epochs * (train.num_examples // batch_size)))
    settings = {
        "epochs": evaluation.sgd_epochs,
        "batch_size": batch_size,
        "learning_rate": evaluation.sgd_learning_rate * batch_size / 256,
        "momentum": evaluation.sgd_momentum,
    }
    config = _crops_and_flips(context, num_steps=steps)
    images = input_pipeline.hold_in_memory(config, train, num_views=1)
    encode = context.encode
    if context.layer is not None:
        encode = Encode(_both, encode, context.layer)
    classifier = linear_sgd.train_classifier(
        encode,
        input_pipeline.global_batches(config, images, 0, context.mesh, num_views=1),
        views=device_views.from_config(config, context.mesh, num_views=1),
        num_classes=train.num_classes or 0,
        num_steps=steps,
        learning_rate=settings["learning_rate"],
        momentum=settings["momentum"],
        mesh=context.mesh,
    )
    predicted = linear.predict(classifier, context.test_features)
    return receipts.judge(context, predicted, settings)


def _both(encode: Encode, layer: Encode, images: jax.Array) -> jax.Array:
    return layer(encode(images))


def _crops_and_flips(context: Context, *, num_steps: int) -> config_dict.ConfigDict:
    """The config of the input of `linear_sgd`: crops as in pretraining, and flips."""
    config = context.config.copy_and_resolve_references()
    config.image_size = context.preprocessing.image_size
    config.batch.batch_size = config.evaluation.sgd_batch_size
    config.batch.micro_batch_size = None
    # On other images it would be another figure.
    config.data.on_bad_record = "stop"
    config.schedule.train_steps = num_steps
    config.augment.operations = ("crop", "flip")
    config.augment.flip.probability = 0.5
    return config


# By the name for --protocol. `loop.py` adds the protocols that fine-tune, which need a
# config of their training, and `transfer`, which is `linear` on other datasets.
PROTOCOLS: dict[str, Callable[[Context], Result]] = {
    "knn": _knn,
    "linear": linear_evaluation,
    "linear_1pct": linear_evaluation,
    "linear_10pct": linear_evaluation,
    "linear_sgd": _linear_sgd,
    "layers": _layers,
    "classifier": finetune_protocols.classifier,
}
# The share of the labelled training images that a protocol uses; all if not listed.
SHARES = {"linear_1pct": 0.01, "linear_10pct": 0.1}
