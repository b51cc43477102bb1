"""ImageNet with any ResNet: `--config=configs/imagenet.py:DEPTHxWIDTH`.

Example, ResNet-50 at double width on a TPU slice:

    python -m simclr_jax.pretrain --config=configs/imagenet.py:50x2 --workdir=RUN \
        --config.data.data_dir=/mnt/tensorflow_datasets

Settings are those of the reference's README: batch 4096, LARS with a square-root scaled
rate, 100 epochs. Its figure for ResNet-50 (1x): about 64.5 % top-1 in linear
evaluation, in about 6 hours on 32 TPU v3 cores. The paper's longer runs of 1000 epochs
give 69.1 % (50x1), 74.2 % (50x2) and 76.6 % (50x4). Not run by this project.
"""

from ml_collections import config_dict

from configs import base


def get_config(encoder: str = "50x1") -> config_dict.ConfigDict:
    """SimCLR on ImageNet.

    Args:
      encoder: depth and width multiplier, such as '50x2'; '50' means '50x1'.
    """
    config = base.get_config()
    depth, _, width = encoder.partition("x")
    try:
        config.encoder.depth = int(depth)
        config.encoder.width = float(width or 1)
    except ValueError:
        raise ValueError(
            f"imagenet.py:{encoder}: must be DEPTHxWIDTH, such as imagenet.py:50x2"
        ) from None
    return config
