"""The configs that studies start from, by scale.

`minutes` is for two CPU cores and real images: what it finds holds for small nets,
small images and short trainings. `gpu` takes hours on one GPU. `paper` is ImageNet as
in the paper's ablations.
"""

from typing import Any

from ml_collections import config_dict

from simclr_jax.configs import cifar10, simclr_v1

SCALES = ("minutes", "gpu", "paper")
# The protocol of 'linear': L-BFGS, or the paper's SGD.
PROTOCOLS = {"minutes": "linear", "gpu": "linear", "paper": "linear_sgd"}
# What every study cuts.
CUT = {
    "minutes": (
        "CIFAR-10 shrunk to 16 pixels in place of ImageNet at 224; 4,096 training "
        "images, 8 epochs and batch 128 (unless varied) in place of 100 and 4096.",
        "ResNet-10 at a quarter of the width in place of ResNet-50; AdamW in place of "
        "LARS, unless it is varied; temperature 0.5 in place of 0.1.",
        "Linear evaluation by L-BFGS on h of 10,000 training images, one penalty.",
    ),
    "gpu": (
        "CIFAR-10 at 32 pixels in place of ImageNet at 224; batch 512 in place of "
        "4096; temperature 0.5 in place of 0.1.",
        "ResNet-18 in place of ResNet-50.",
        "Linear evaluation by L-BFGS on h of all training images.",
    ),
    "paper": (),
}


def fields(
    scale: str,
    cut: tuple[str, ...] = (),
    changes: dict[str, Any] | None = None,
    **others: Any,
) -> dict[str, Any]:
    """The fields of a `Study` that follow from its scale, and others.

    Args:
      scale: one of `SCALES`.
      cut: what the study cuts against the paper, beyond what its scale does.
      changes: of the scale's config, as for `base_config`.
      **others: further fields.
    """
    return {
        "base": base_config(scale, **(changes or {})),
        "cut": (*CUT[scale], *cut),
        "protocol": PROTOCOLS[scale],
        **others,
    }


def base_config(scale: str, **changes: Any) -> config_dict.ConfigDict:
    """The config of a scale.

    Args:
      scale: one of `SCALES`.
      **changes: values of keys, with '__' in place of the dots.
    """
    config = {"minutes": _minutes, "gpu": _gpu, "paper": _paper}[scale]()
    with config.unlocked(), config.ignore_type():
        config.log.writers = ()
        config.checkpoint.keep_last = 1
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        config.update_from_flattened_dict(dotted)
    return config


def _minutes() -> config_dict.ConfigDict:
    config = cifar10.get_config()
    config.image_size = 16
    config.data.split = "train[:4096]"
    config.batch.batch_size = 128
    config.augment.blur.kernel_fraction = 0.2  # three taps
    config.encoder.depth = 10
    config.encoder.width = 0.25
    config.head.num_layers = 2
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1.25e-4  # 1.4e-3 at batch 128
    config.optimizer.scaling = "sqrt"
    config.schedule.train_epochs = 8.0
    config.schedule.warmup_epochs = 1.0
    config.probe.enabled = False
    config.checkpoint.every_steps = 100_000
    config.evaluation.train_split = "train[:10000]"
    config.evaluation.batch_size = 1000
    config.evaluation.knn_k = (20,)
    config.evaluation.l2_penalties = (1e-3,)
    config.evaluation.lbfgs_steps = 100
    return config


def _gpu() -> config_dict.ConfigDict:
    config = cifar10.get_config()
    config.augment.placement = "accelerator"
    config.encoder.compute_dtype = "bfloat16"
    config.head.num_layers = 2
    config.schedule.train_epochs = 100.0
    config.schedule.warmup_epochs = 10.0
    return config


def _paper() -> config_dict.ConfigDict:
    config = simclr_v1.get_config("50x1,100epochs")
    config.schedule.warmup_epochs = 10.0
    return config
