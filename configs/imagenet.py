"""ImageNet with any ResNet: `--config=configs/imagenet.py:DEPTHxWIDTH`.

Example, ResNet-50 at double width on a TPU slice:

    python -m simclr_jax.pretrain --config=configs/imagenet.py:50x2 --workdir=RUN \
        --config.data.data_dir=/mnt/tensorflow_datasets

Settings are those of the reference's README: batch 4096, LARS with a square-root scaled
rate, 100 epochs. Its figure for ResNet-50 (1x): about 64.5 % top-1 in linear
evaluation, in about 6 hours on 32 TPU v3 cores. Not run here. Append `+sk` for
selective kernels and `,200epochs` for another number of epochs. The long runs of the
papers are `simclr_v1.py` and `simclr_v2.py`.
"""

from ml_collections import config_dict

from simclr_jax.configs import base, presets


def get_config(argument: str = "50x1") -> config_dict.ConfigDict:
    """SimCLR on ImageNet.

    Args:
      argument: see `presets.set_encoder`; 100 epochs by default.
    """
    config = base.get_config()
    presets.set_encoder(config, argument, "imagenet.py")
    return config
