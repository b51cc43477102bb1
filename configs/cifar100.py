"""CIFAR-100 with ResNet-18.

    python -m simclr_jax.pretrain --config=configs/cifar100.py --workdir=RUN \
        --config.data.data_dir=TFDS_DIR

Settings are those of `cifar10.py`: ResNet-18, batch 512, 1000 epochs. Figures of other
settings to compare with: 65.8 % linear, ResNet-18, batch 256, 1000 epochs, with a LARS
that clips (solo-learn); 70.7 % linear, ResNet-50, batch 1024, 1000 epochs, SGD
(SupContrast). Neither names the hardware. Not run here.
"""

from ml_collections import config_dict

from simclr_jax.configs import cifar10


def get_config() -> config_dict.ConfigDict:
    """SimCLR on CIFAR-100."""
    config = cifar10.get_config()
    config.data.dataset = "cifar100"
    return config
