"""CIFAR-10 with ResNet-18.

    python -m simclr_jax.pretrain --config=configs/cifar10.py --workdir=RUN \
        --config.data.data_dir=TFDS_DIR

`cifar10.py` (or `cifar10.py:reference`) has the settings of the reference's README:
batch 512, 1000 epochs, LARS; about 91 % with linear evaluation. `cifar10.py:200epochs`
is the 200-epoch benchmark that PyTorch libraries report: SGD, batch 512; lightly gives
84.8 % kNN accuracy (k = 200, best epoch; 87 minutes on one RTX A6000). Neither was run
in full by this project.
"""

from ml_collections import config_dict

from configs import base


def get_config(recipe: str = "reference") -> config_dict.ConfigDict:
    """SimCLR on CIFAR-10.

    Args:
      recipe: 'reference' or '200epochs'.
    """
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
    if recipe == "200epochs":
        config.optimizer.name = "sgd"
        config.optimizer.learning_rate = 0.12  # 0.06 * B / 128: 0.24 at batch 512
        config.optimizer.weight_decay = 5e-4
        config.schedule.train_epochs = 200.0
        config.schedule.warmup_epochs = 0.0
        config.head.num_layers = 2
    elif recipe != "reference":
        raise ValueError(f"cifar10.py:{recipe}: must be 'reference' or '200epochs'")
    return config
