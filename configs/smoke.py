"""A few minutes on two CPU cores, on real images that need no download.

    bash launch/smoke.sh

A quarter-width ResNet-18 learns from patches of eighteen photographs (see
`simclr_jax/data/sources/photographs.py`). The README has the expected figures.
"""

from ml_collections import config_dict

from simclr_jax.configs import base


def get_config() -> config_dict.ConfigDict:
    """SimCLR on patches of photographs."""
    config = base.get_config()
    config.image_size = 16
    config.data.dataset = "photographs"
    config.batch.batch_size = 256
    config.augment.operations = ("crop", "flip", "color_jitter", "grayscale")
    config.augment.color_jitter.strength = 0.5
    config.encoder.depth = 18
    config.encoder.width = 0.25
    config.encoder.compute_dtype = "float32"
    config.head.num_layers = 2
    config.loss.temperature = 0.5
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.scaling = "none"
    config.schedule.train_steps = 120
    config.schedule.warmup_steps = 10
    config.log.every_steps = 10
    config.checkpoint.every_steps = 60
    config.evaluation.test_split = "test"
    config.evaluation.batch_size = 256
    config.evaluation.crop_proportion = 1.0
    config.evaluation.knn_k = (20, 10, 5)
    config.evaluation.sgd_batch_size = 256
    return config
