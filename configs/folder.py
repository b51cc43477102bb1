"""Your own images: a folder of JPEG, PNG, TIFF, WebP, ... files, labelled or not.

    python -m simclr_jax.pretrain --config=configs/folder.py:IMAGES --workdir=RUN

Pretraining needs no label. Sub-folders named train, val, test and the like are splits:
nothing of val and test is trained on. To evaluate with labels, put the images into
class folders under IMAGES/train and IMAGES/val; where there is no val, IMAGES/test is
measured. Other sub-folders are classes for the online probe. The log shows what was
understood, and docs/data.md has the rules.
ResNet-18 and a batch of 128 also run on a CPU, slowly; on an accelerator set
`--config.encoder.depth=50` and raise `--config.batch.batch_size` as far as memory and
the number of images allow. There is no published figure to expect: look at the views
first (`python -m simclr_jax.preview`), then at the health verdict in the log.
"""

from ml_collections import config_dict

from simclr_jax.configs import base


def get_config(folder: str = "images") -> config_dict.ConfigDict:
    """SimCLR on a folder of images.

    Args:
      folder: path of the folder; all images below it are read, but held-out splits.
    """
    config = base.get_config()
    config.data.dataset = f"folder:{folder}"
    config.data.split = "all"
    config.batch.batch_size = 128
    # Photographs are much larger than views.
    config.augment.crop.antialias = True
    config.evaluation.resize = "bicubic_antialias"
    config.encoder.depth = 18
    config.evaluation.train_split = "train"
    config.evaluation.test_split = "val"  # or the test split, where there is none
    config.evaluation.batch_size = 128
    config.evaluation.knn_k = (20, 10, 5)
    config.evaluation.sgd_batch_size = 128
    config.checkpoint.every_steps = 500
    return config
