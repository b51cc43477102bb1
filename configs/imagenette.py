"""Imagenette, ten classes of ImageNet: 9,469 images, here at 128 pixels.

    python -m simclr_jax.pretrain --config=configs/imagenette.py --workdir=RUN \
        --config.data.data_dir=TFDS_DIR

Figure to compare with: 88.9 % kNN, k = 20, best epoch, ResNet-18, batch 256, 800
epochs, 193 minutes on one RTX A6000 (lightly). Batch, epochs, sizes, SGD, BatchNorm
and the start of the weights are the same here. Not run here.
"""

from ml_collections import config_dict

from simclr_jax.configs import base, presets


def get_config() -> config_dict.ConfigDict:
    """SimCLR on Imagenette."""
    config = base.get_config()
    config.image_size = 128
    config.data.dataset = "imagenette/160px-v2"
    config.batch.batch_size = 256
    config.encoder.depth = 18
    config.head.num_layers = 2
    config.loss.temperature = 0.5
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.06
    config.optimizer.scaling = "linear"  # 0.06 at batch 256
    config.optimizer.weight_decay = 5e-4
    config.optimizer.decayed = "all"
    config.batch.norm_parts = 2
    presets.pytorch_start(config)
    config.schedule.train_epochs = 800.0
    config.schedule.warmup_epochs = 0.0
    config.evaluation.knn_k = (20, 10, 5)
    config.evaluation.sgd_batch_size = 256
    return config
