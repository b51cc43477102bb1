"""SimCLR v1 on ImageNet as published: batch 4096, 1000 epochs, on Cloud TPU v3.

    python -m simclr_jax.pretrain --config=configs/simclr_v1.py:50x1 --workdir=RUN \
        --config.data.data_dir=/mnt/tensorflow_datasets

| config                           | linear evaluation, top-1 | here    |
|----------------------------------|--------------------------|---------|
| `simclr_v1.py:50x1`              | 69.1 %                   | not run |
| `simclr_v1.py:50x2`              | 74.2 %                   | not run |
| `simclr_v1.py:50x4`              | 76.6 % (paper: 76.5)     | not run |
| `simclr_v1.py:50x1,100epochs`    | 64.5 % (see below)       | not run |
| `simclr_v1.py:50x2,100epochs`    | none published           | not run |
| `simclr_v1.py:50x4,100epochs`    | none published           | not run |

Figures of 1000 epochs are those of the released weights (README of google-research/
simclr). ResNet-50 takes 1.5 hours per 100 epochs on 128 TPU v3 cores (paper, section
2.2). About 64.5 % after 100 epochs is the README's figure for `imagenet.py:50x1`, which
differs in weight decay, brightness jitter and head; the paper draws its own figures of
100 epochs without numbers.
"""

from ml_collections import config_dict

from simclr_jax.configs import base, presets


def get_config(argument: str = "50x1") -> config_dict.ConfigDict:
    """SimCLR v1 on ImageNet.

    Args:
      argument: see `presets.set_encoder`; 1000 epochs by default.
    """
    config = base.get_config()
    config.schedule.train_epochs = 1000.0
    presets.set_encoder(config, argument, "simclr_v1.py")
    presets.simclr_v1(config)
    return config
