"""SimCLR v2 on ImageNet as published: batch 4096, 800 epochs, on Cloud TPUs.

    python -m simclr_jax.pretrain --config=configs/simclr_v2.py:152x3+sk --workdir=RUN \
        --config.data.data_dir=/mnt/tensorflow_datasets

Linear evaluation, top-1, of the released weights (README of google-research/simclr),
and millions of parameters with BatchNorm statistics. None of these was run here.

| argument   | parameters | top-1 | argument      | parameters | top-1 |
|------------|-----------:|-------|---------------|-----------:|-------|
| `50x1`     |       24 M | 71.7  | `50x1+sk`     |       35 M | 74.6  |
| `50x2`     |       94 M | 75.6  | `50x2+sk`     |      140 M | 77.7  |
| `101x1`    |       43 M | 73.6  | `101x1+sk`    |       65 M | 76.3  |
| `101x2`    |      170 M | 77.0  | `101x2+sk`    |      257 M | 79.0  |
| `152x1`    |       58 M | 74.5  | `152x1+sk`    |       89 M | 77.2  |
| `152x2`    |      233 M | 77.4  | `152x2+sk`    |      354 M | 79.4  |
|            |            |       | `152x3+sk`    |      795 M | 79.8  |

Those weights were trained with a momentum encoder and a buffer of negatives too; see
`presets.py`.
"""

from ml_collections import config_dict

from simclr_jax.configs import base, presets


def get_config(argument: str = "50x1") -> config_dict.ConfigDict:
    """SimCLR v2 on ImageNet.

    Args:
      argument: see `presets.set_encoder`; 800 epochs by default.
    """
    config = base.get_config()
    config.schedule.train_epochs = 800.0
    presets.set_encoder(config, argument, "simclr_v2.py")
    presets.simclr_v2(config)
    return config
