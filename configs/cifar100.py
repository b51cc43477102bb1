"""CIFAR-100 with ResNet-18.

    python -m simclr_jax.pretrain --config=configs/cifar100.py --workdir=RUN \
        --config.data.data_dir=TFDS_DIR

Figure to compare with: 65.8 % linear, ResNet-18, batch 256, 1000 epochs (solo-learn;
hardware not told). Its LARS rate of 0.4, temperature of 0.2 and head of 2048 and 256
are taken over; everything else is as in `cifar10.py`, since the source does not tell.
Not run here.
"""

from ml_collections import config_dict

from configs import cifar10


def get_config() -> config_dict.ConfigDict:
    """SimCLR on CIFAR-100."""
    config = cifar10.get_config()
    config.data.dataset = "cifar100"
    config.batch.batch_size = 256
    config.head.num_layers = 2
    config.head.hidden_dim = 2048
    config.head.output_dim = 256
    config.loss.temperature = 0.2
    config.optimizer.learning_rate = 0.4
    return config
