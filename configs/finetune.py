"""Fine-tuning of a pretrained encoder, on all labels or a share of them.

    python -m simclr_jax.finetune --config=configs/finetune.py:cifar10,0.1 \
        --init_from=RUN --workdir=RUN2

`finetune.py:NAME,SHARE` takes dataset and image size from `configs/NAME.py` and this
share of the labels of each class. The architecture is that of the weights.

| config                      | labels, epochs     | source's figure             |
|-----------------------------|--------------------|-----------------------------|
| `finetune.py:imagenet,0.01` | ImageNet, 1 %, 60  | 57.9 % (SimCLRv2, ResNet-50 |
|                             |                    | 1x, pretrained 800 epochs)  |
| `finetune.py:imagenet,0.1`  | ImageNet, 10 %, 30 | 68.4 % (the same)           |
| `finetune.py:imagenet,1`    | ImageNet, all, 30  | 76.3 % (the same)           |

None of them was run here. On ImageNet the shares are the official ones, which TFDS
prepares as `imagenet2012_subset/1pct` and `10pct`, and the classifier sits on the first
layer of the projection head, as in SimCLRv2; elsewhere on h.
"""

import importlib

from ml_collections import config_dict

_OFFICIAL = {0.01: "imagenet2012_subset/1pct", 0.1: "imagenet2012_subset/10pct"}


def get_config(argument: str = "imagenet,0.01") -> config_dict.ConfigDict:
    """Fine-tuning on the dataset of another config.

    Args:
      argument: 'NAME,SHARE': a config file's name, and a number in (0, 1].
    """
    name, _, share = argument.partition(",")
    try:
        fraction = float(share or 1)
        module = importlib.import_module(f"simclr_jax.configs.{name}")
    except (ValueError, ImportError) as error:
        raise ValueError(
            f"finetune.py:{argument}: must be NAME,SHARE with the name of a file in "
            "configs/ and a number above 0 and at most 1"
        ) from error
    # Not a copy, in which keys that are None could not be set on the command line.
    config = module.get_config().unlock()
    _adapt(config, fraction)
    return config.lock()


def adapt(
    config: config_dict.ConfigDict, label_fraction: float
) -> config_dict.ConfigDict:
    """A copy of a pretraining config that fine-tunes on its dataset."""
    config = config.copy_and_resolve_references().unlock()
    with config.ignore_type():  # numbers have replaced placeholders
        _adapt(config, label_fraction)
    return config.lock()


def _adapt(config: config_dict.ConfigDict, label_fraction: float) -> None:
    config.finetune = finetune = config_dict.ConfigDict()
    # Fraction of each class's labels that is used.
    finetune.label_fraction = label_fraction
    # The classifier's input: 0: h; 1: the projection head's first layer, as in
    # SimCLRv2; -1: z.
    finetune.layer = 0
    # -1 trains everything; 0 freezes the stem; i freezes the stem and groups 1 to i of
    # residual blocks; 4 trains only the classifier and the head's layers below it.
    finetune.after_group = -1
    # train or frozen; frozen: BatchNorm uses the running statistics in training too,
    # and these, its scales and offsets do not change. Frozen groups always do so.
    finetune.batch_norm = "train"
    # For classes of different sizes. balanced: the loss of an image counts in inverse
    # proportion to its class's number of images, 1 on average.
    finetune.class_weights = "none"
    # balanced: every class has as many images in a batch, give or take one; images of
    # small classes come again sooner, with other crops.
    finetune.sampling = "shuffled"
    # Set by the command: the weights and their checksum.
    finetune.init_from = config_dict.placeholder(str)
    finetune.init_checksum = config_dict.placeholder(str)

    config.evaluation.every_steps = config_dict.placeholder(int)
    config.checkpoint.keep_best = False
    config.augment.operations = ("crop", "flip")
    config.batch.micro_batch_size = config_dict.placeholder(int)
    config.batch.norm_parts = 1  # one view of each image; any size of batch
    config.schedule.warmup_epochs = 0.0
    config.schedule.train_steps = config_dict.placeholder(int)
    config.schedule.warmup_steps = config_dict.placeholder(int)
    config.schedule.extend = "stretch"
    config.schedule.extend_step = config_dict.placeholder(int)
    config.schedule.extend_learning_rate = config_dict.placeholder(float)
    config.optimizer.clip_norm = config_dict.placeholder(float)
    config.optimizer.weight_decay = 0.0
    config.optimizer.momentum = 0.9
    config.log.every_steps = 10
    if config.data.dataset == "imagenet2012":
        # README of google-research/simclr; epochs of the paper of SimCLRv2.
        official = _OFFICIAL.get(label_fraction)
        if official is not None:
            config.data.dataset, finetune.label_fraction = official, 1.0
        finetune.layer = 1
        config.optimizer.name = "lars"
        config.optimizer.learning_rate = 0.005  # 0.16 at batch 1024
        config.optimizer.scaling = "sqrt"
        config.batch.batch_size = 1024
        config.schedule.train_epochs = 60.0 if label_fraction <= 0.01 else 30.0
    else:
        # The paper's optimiser and rate (appendix B.5); small batches, since 1 % of a
        # small dataset is few images.
        config.optimizer.name = "sgd"
        config.optimizer.nesterov = True
        config.optimizer.learning_rate = 0.05  # 0.0125 at batch 64
        config.optimizer.scaling = "linear"
        config.batch.batch_size = 64
        config.schedule.train_epochs = 60.0 if label_fraction <= 0.01 else 30.0
