"""Opens datasets by name: arrays, folders, shards, TFDS, photographs, synthetic.

A new source is one class with the methods of `base.Source` and one line in
`open_source`.
"""

from types import ModuleType

from simclr_jax.data import optional
from simclr_jax.data.sources import (
    bad_records,
    folder,
    kept,
    npz,
    photographs,
    prepared,
)
from simclr_jax.data.sources.arrays import ArraySource, SyntheticSource
from simclr_jax.data.sources.base import Source
from simclr_jax.errors import DataError


def open_source(
    dataset: str,
    *,
    split: str,
    data_dir: str | None = None,
    image_key: str = "image",
    label_key: str = "label",
    sharing: kept.Sharing = kept.ALONE,
    on_bad_record: bad_records.OnBadRecord = bad_records.refuse,
    exif_orientation: bool | None = None,
    white_level: int | None = None,
) -> Source:
    """Opens a dataset by its name in the config.

    Args:
      dataset: a TFDS name; 'folder:PATH'; 'prepared:PATH', the output of
        `simclr_jax.prepare`; 'npz:PATH', arrays as `npz.py` knows them, where '{split}'
        in PATH stands for the split;
        'photographs'; or 'synthetic:SIZE' (1,281,167 noise images of SIZE pixels).
      split: of TFDS, photographs and arrays named by splits; for 'folder:' and
        'prepared:' one that is there, by its name or its meaning, or 'all' or '.' (see
        `FolderSource`).
      data_dir: where TFDS datasets are prepared.
      image_key: the image feature of a TFDS dataset.
      label_key: the label feature of a TFDS dataset.
      sharing: the processes that open it at the same time, and share the work of the
        first time.
      on_bad_record: called with each file of a folder that is no image; if it returns,
        the file remains one of the dataset.
      exif_orientation: images of a folder are turned upright by their EXIF data; None:
        they are. Those of other datasets are used as they are stored.
      white_level: of a folder's images of more than 8 bits; measured where it is None.

    Raises:
      DataError: the dataset is missing, empty or unreadable; or by `on_bad_record`.
    """
    kind, colon, argument = dataset.partition(":")
    if colon and kind in ("folder", "prepared", "npz") and not argument.strip():
        raise DataError(f"dataset {dataset}: must be {kind}:PATH")
    if kind == "folder":
        return folder.FolderSource(
            argument,
            split=split,
            sharing=sharing,
            on_bad_record=on_bad_record,
            exif_orientation=exif_orientation is not False,
            white_level=white_level,
        )
    if kind == "prepared":
        source = prepared.ShardSource(argument, split=split)
        if None not in (white_level, source.white_level) and (
            white_level != source.white_level
        ):
            raise DataError(
                f"dataset {source.name}: was prepared with the white level "
                f"{source.white_level}, where config.data.white_level={white_level}, "
                "as its run recorded; prepare it with --white_level="
                f"{white_level}"
            )
        return source
    if kind == "npz":
        return npz.open_npz(argument.replace("{split}", split), split)
    if kind == "synthetic":
        size = argument or "224"
        if not size.isdecimal() or len(size) > 4 or not 1 <= int(size) <= 4096:
            raise DataError(
                f"dataset {dataset}: must be synthetic:SIZE with a side from 1 to 4096 "
                "pixels"
            )
        return SyntheticSource(num_examples=1_281_167, image_size=int(size))
    if dataset == "photographs":
        if split not in photographs.SPLITS:
            raise DataError(
                f"split {split!r} of photographs: must be one of "
                f"{', '.join(photographs.SPLITS)}"
            )
        images, labels = photographs.load(split)
        return ArraySource(images, labels, name=f"photographs/{split}")
    return _tfds(dataset).TFDSSource(
        dataset,
        data_dir=data_dir,
        split=split,
        image_key=image_key,
        label_key=label_key,
        sharing=sharing,
    )


def split_of(source: Source, wanted: str) -> str:
    """The name of a source's split, where one similar to the wanted name was found."""
    return getattr(getattr(source, "of", source), "split", wanted)


def _tfds(dataset: str) -> ModuleType:
    """The module of sources that read through TensorFlow Datasets.

    Raises:
      DataError: that is not installed.
    """
    for package in ("tensorflow", "tensorflow_datasets"):
        if not optional.is_installed(package):
            hint = optional.install_hint(f"dataset {dataset}", package)
            raise DataError(f"{hint}; folder:, npz: and prepared: need no TensorFlow")
    from simclr_jax.data.sources import tfds

    return tfds


def open_tfds(
    dataset: str,
    *,
    split: str,
    data_dir: str | None = None,
    label_key: str = "label",
    certain_key: str | None = None,
) -> Source:
    """Opens a dataset that TFDS has prepared, with one or several labels per image.

    Args:
      dataset: TFDS name.
      split: or several, as in 'train+validation'.
      data_dir: where it is prepared.
      label_key: the feature with the class, or with the list of an image's classes.
      certain_key: None, or the feature with the classes of the list that count; labels
        are then vectors, see `tfds.MultiLabelSource`.

    Raises:
      NotPrepared: it is not there.
      DataError: it cannot be read.
    """
    if certain_key is None:
        return _tfds(dataset).TFDSSource(
            dataset, data_dir=data_dir, split=split, label_key=label_key
        )
    return _tfds(dataset).MultiLabelSource(
        dataset,
        data_dir=data_dir,
        split=split,
        label_key=label_key,
        certain_key=certain_key,
    )
