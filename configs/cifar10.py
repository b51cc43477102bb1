"""CIFAR-10.

    python -m simclr_jax.pretrain --config=configs/cifar10.py --workdir=RUN \
        --config.data.data_dir=TFDS_DIR

| config                  | encoder, batch, epochs | source's figure                  |
|-------------------------|------------------------|----------------------------------|
| `cifar10.py`            | ResNet-18, 512, 1000   | about 91 % linear (README of     |
|                         |                        | google-research/simclr)          |
| `cifar10.py:resnet50`   | ResNet-50, 1024, 1000  | 94.0 % linear (paper, appendix   |
|                         |                        | B.9); a PyTorch reproduction has |
|                         |                        | 93.5 % (13 hours on two V100)    |
| `cifar10.py:200epochs`  | ResNet-18, 512, 200    | 84.8 % kNN, k = 200, best epoch  |
|                         |                        | (lightly; 87 min, RTX A6000)     |
| `cifar10.py:800epochs`  | ResNet-18, 512, 800    | 87.9 % kNN, k = 200, best epoch  |
|                         |                        | (lightly; 331 min, RTX A6000)    |

None of them was run in full here. The first two use LARS and start as Google's code
does; the last two are lightly's benchmark, with its SGD, start, weight decay and
BatchNorm over half of the views. The paper tuned the learning rate of `resnet50` over
0.5, 1.0 and 1.5 and does not say which was best.
"""

from ml_collections import config_dict

from simclr_jax.configs import base, presets

_VARIANTS = ("reference", "resnet50", "200epochs", "800epochs")


def get_config(variant: str = "reference") -> config_dict.ConfigDict:
    """SimCLR on CIFAR-10.

    Args:
      variant: 'reference', 'resnet50', '200epochs' or '800epochs'.
    """
    if variant not in _VARIANTS:
        raise ValueError(f"cifar10.py:{variant}: must be one of {', '.join(_VARIANTS)}")
    config = base.get_config()
    config.image_size = 32
    config.data.dataset = "cifar10"
    config.batch.batch_size = 512
    # 32 pixels leave little to blur (appendix B.9).
    config.augment.operations = ("crop", "flip", "color_jitter", "grayscale")
    config.augment.color_jitter.strength = 0.5
    config.encoder.depth = 18
    config.encoder.compute_dtype = "float32"
    config.loss.temperature = 0.5
    config.optimizer.learning_rate = 1.0  # 2.0 at batch 512
    config.optimizer.scaling = "linear"
    config.schedule.train_epochs = 1000.0
    config.evaluation.test_split = "test"
    config.evaluation.crop_proportion = 1.0
    config.evaluation.sgd_batch_size = 512
    if variant == "resnet50":
        config.batch.batch_size = 1024
        config.encoder.depth = 50
        config.head.num_layers = 2
        config.optimizer.weight_decay = 1e-6
    elif variant.endswith("epochs"):
        config.optimizer.name = "sgd"
        config.optimizer.learning_rate = 0.12  # 0.06 * B / 128: 0.24 at batch 512
        config.optimizer.weight_decay = 5e-4
        config.optimizer.decayed = "all"
        config.batch.norm_parts = 2
        presets.pytorch_start(config)
        config.schedule.train_epochs = float(variant.removesuffix("epochs"))
        config.schedule.warmup_epochs = 0.0
        config.head.num_layers = 2
    return config
