"""STL-10: 100,000 images of 96 pixels without labels, 13,000 with.

    python -m simclr_jax.pretrain --config=configs/stl10.py --workdir=RUN \
        --config.data.data_dir=TFDS_DIR

Figure to compare with: 74.5 % linear, ResNet-18, batch 256, 100 epochs, Adam with a
rate of 3e-4 (sthalles/SimCLR; hardware not named). Batch, epochs, optimiser and rate
are the same here. Not run here.
"""

from ml_collections import config_dict

from simclr_jax.configs import base


def get_config() -> config_dict.ConfigDict:
    """SimCLR on STL-10."""
    config = base.get_config()
    config.image_size = 96
    config.data.dataset = "stl10"
    config.data.split = "unlabelled"
    config.batch.batch_size = 256
    config.encoder.depth = 18
    config.head.num_layers = 2
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-4
    config.optimizer.scaling = "none"
    config.evaluation.test_split = "test"
    config.evaluation.crop_proportion = 1.0
    config.evaluation.sgd_batch_size = 256
    return config
