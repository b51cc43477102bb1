"""The twelve datasets that the paper transfers to (section 6, appendix B.8).

Names, splits and features are as in TensorFlow Datasets. Classifiers are trained on the
training and the validation images. The paper does the same, after it has selected the
penalty on the validation images. To add a dataset, add one line to `DATASETS`.
"""

import dataclasses

from simclr_jax.evaluation.metrics import MAP, MEAN_PER_CLASS, TOP1


@dataclasses.dataclass(frozen=True)
class TransferDataset:
    """A labelled dataset of the suite.

    Attributes:
      tfds_name: with `/config` if the dataset has several configs.
      train_split: to train on.
      test_split: to measure on.
      metric: a key of `metrics.METRICS`.
      label_key: the feature with the class, or, if `certain_key` is set, with the list
        of an image's classes.
      certain_key: the feature with the classes of that list that count.
      offered: whether TFDS can download or build it.
    """

    tfds_name: str
    train_split: str
    test_split: str
    metric: str = TOP1
    label_key: str = "label"
    certain_key: str | None = None
    offered: bool = True


_ALL = "train+validation"
DATASETS: dict[str, TransferDataset] = {
    # TFDS calls its test images a validation split.
    "food101": TransferDataset("food101", "train", "validation"),
    "cifar10": TransferDataset("cifar10", "train", "test"),
    "cifar100": TransferDataset("cifar100", "train", "test"),
    "birdsnap": TransferDataset("birdsnap", _ALL, "test", offered=False),
    # The first of ten official pairs of splits; so are DTD's splits below.
    "sun397": TransferDataset("sun397/standard-part1-120k", "train", "test"),
    "cars": TransferDataset("cars196", "train", "test"),
    "aircraft": TransferDataset(
        "fgvc_aircraft", _ALL, "test", MEAN_PER_CLASS, offered=False
    ),
    # A class of which an image shows only difficult objects does not count for it, in
    # training and in testing, as in VOC's development kit.
    "voc2007": TransferDataset(
        "voc/2007", _ALL, "test", MAP, "labels", "labels_no_difficult"
    ),
    "dtd": TransferDataset("dtd", _ALL, "test"),
    "pets": TransferDataset("oxford_iiit_pet", "train", "test", MEAN_PER_CLASS),
    "caltech101": TransferDataset("caltech101", "train", "test", MEAN_PER_CLASS),
    "flowers": TransferDataset("oxford_flowers102", _ALL, "test", MEAN_PER_CLASS),
}
