"""SimCLR v1 and v2 as published, and the argument of the ImageNet configs.

Differences between the two, and from `base.py`:

| setting               | v1 (ICML 2020)    | v2 (NeurIPS 2020) | base                |
|-----------------------|-------------------|-------------------|---------------------|
| brightness jitter     | additive          | multiplicative    | multiplicative      |
| projection head       | 2 layers          | 3 layers          | 3 layers            |
| weight decay          | 1e-6              | 1e-4              | 1e-4                |
| learning rate at 4096 | 4.8 = 0.3 B / 256 | 6.4 = 0.1 sqrt(B) | 4.8 = 0.075 sqrt(B) |
| warm-up               | 10 epochs         | 5 % of all        | 10 epochs           |
| max-pool, first group | TensorFlow's      | TensorFlow's      | torchvision's       |

Both have crops of Google's sampler, jitter of strength 1, blur of half the views with a
kernel of a tenth of the side, temperature 0.1 and LARS with momentum 0.9. The released
SimCLR v2 weights also used a momentum encoder and a buffer of 64k negatives (about one
point more, according to the paper), which neither its published code nor this one has.
"""

import re

from ml_collections import config_dict

_SPEC = re.compile(
    r"(?P<depth>\d+)(x(?P<width>\d+(\.\d+)?))?(?P<sk>\+sk)?(,(?P<epochs>\d+)epochs)?"
)
_WARMUP_SHARE_V2 = 0.05


def simclr_v1(config: config_dict.ConfigDict) -> None:
    """Changes a config to SimCLR v1 (paper sections 2.3 and B.6)."""
    _google_encoder(config)
    config.augment.color_jitter.brightness_mode = "additive"
    config.head.num_layers = 2
    config.optimizer.weight_decay = 1e-6
    config.optimizer.learning_rate = 0.3
    config.optimizer.scaling = "linear"


def simclr_v2(config: config_dict.ConfigDict) -> None:
    """Changes a config to SimCLR v2 (its section 3.1).

    Warm-up is 5 % of the config's present epochs: to change the epochs use the config's
    argument, as in `simclr_v2.py:50x1,100epochs`, or set `schedule.warmup_epochs` too.
    """
    _google_encoder(config)
    config.augment.color_jitter.brightness_mode = "multiplicative"
    config.head.num_layers = 3
    config.optimizer.weight_decay = 1e-4
    config.optimizer.learning_rate = 0.1
    config.optimizer.scaling = "sqrt"
    config.schedule.warmup_epochs = _WARMUP_SHARE_V2 * config.schedule.train_epochs


def pytorch_start(config: config_dict.ConfigDict) -> None:
    """Changes a config to weights that start as torchvision's and PyTorch's do.

    In trainings of a few epochs this is better with SGD than the start of Google's
    code, which `base.py` has, and not with LARS: docs/accuracy.md.
    """
    config.encoder.zero_init_residual = False
    config.encoder.kernel_init = "he_normal"
    config.head.kernel_init = "uniform"


def _google_encoder(config: config_dict.ConfigDict) -> None:
    config.augment.crop.sampler = "reference"
    config.encoder.max_pool_padding = "same"
    config.encoder.first_group_projection = True


def set_encoder(config: config_dict.ConfigDict, argument: str, file: str) -> None:
    """Sets encoder and epochs from DEPTH[xWIDTH][+sk][,Nepochs].

    Args:
      config: changed in place.
      argument: such as '152x3+sk' or '50x2,200epochs'; +sk: selective kernels.
      file: the config file's name, for the message.

    Raises:
      ValueError: the argument is not of that form.
    """
    match = _SPEC.fullmatch(argument)
    if match is None:
        raise ValueError(
            f"{file}:{argument}: must be DEPTH[xWIDTH][+sk][,Nepochs], such as "
            f"{file}:50x2 or {file}:152x3+sk,100epochs"
        )
    config.encoder.depth = int(match["depth"])
    config.encoder.width = float(match["width"] or 1)
    config.encoder.sk_ratio = 0.0625 if match["sk"] else 0.0
    if match["epochs"]:
        config.schedule.train_epochs = float(match["epochs"])
