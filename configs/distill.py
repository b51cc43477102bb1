"""Distillation: a fine-tuned teacher labels images for a student (SimCLRv2).

    python -m simclr_jax.distill --config=configs/distill.py:cifar10 \
        --teacher=RUN2 --workdir=RUN3 --config.encoder.width=0.5

`distill.py:NAME` takes dataset, image size, encoder (the student), optimiser and
schedule from `configs/NAME.py`. None of them was run in full here.
"""

import importlib

from ml_collections import config_dict


def get_config(name: str = "imagenet") -> config_dict.ConfigDict:
    """Distillation on the images of another config.

    Args:
      name: of a file in configs/.
    """
    try:
        config = importlib.import_module(f"simclr_jax.configs.{name}").get_config()
    except ImportError as error:
        raise ValueError(
            f"distill.py:{name}: must be the name of a file in configs/"
        ) from error
    config.unlock()
    config.distill = distill = config_dict.ConfigDict()
    distill.temperature = 1.0  # tau, of the teacher's and the student's softmax
    # 1 - alpha: the weight of the true labels in the loss; 0: the teacher's alone.
    distill.labelled_weight = 0.0
    # Fraction of each class's true labels that is used.
    distill.label_fraction = 1.0
    # Set by the command: teacher and initial weights, and their checksums.
    distill.teacher = config_dict.placeholder(str)
    distill.teacher_checksum = config_dict.placeholder(str)
    distill.init_from = config_dict.placeholder(str)
    distill.init_checksum = config_dict.placeholder(str)
    config.head.kind = "none"  # the classifier sits on h
    config.augment.operations = ("crop", "flip")
    config.augment.placement = "host"
    return config.lock()
