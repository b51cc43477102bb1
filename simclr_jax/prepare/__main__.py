r"""Prepares a dataset of anybody's images for training.

    python -m simclr_jax.prepare --input=PHOTOS --output=DIR
    python -m simclr_jax.pretrain --config=configs/folder.py \
      --config.data.dataset=prepared:DIR --config.data.split=train --workdir=RUN

Files that training could not decode are left out and listed in DIR/broken.tsv. The same
command resumes after an interruption; the result is the same bit for bit. Sub-folders
named train, training_set, val, test and the like are splits, others are classes; a
table in the log says what was understood and left out. Lists (path,label,split) and
shards of WebDataset have labels of their own. DIR is a dataset once manifest.json is in
it; TensorFlow Datasets reads it too (tfds.builder_from_directory).
"""

import os

from absl import flags

from simclr_jax import cli, host_resources

_INPUT = flags.DEFINE_multi_string(
    "input",
    None,
    "Images: a folder, a quoted glob, a .csv or .tsv list (path,label,split), .tar, "
    ".tar.gz or .zip files, WebDataset shards such as 'shard-{0000..0099}.tar', local "
    "or on a store (gs://, s3://), or a dataset of Hugging Face on disk (save_to_disk, "
    "parquet). Several with commas between them, or by repeating the flag.",
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder for the dataset, local or on a store (gs://, s3://)."
)
_SCRATCH = flags.DEFINE_string(
    "scratch",
    None,
    "Local folder for the work on an --output on a store, of the dataset's size; by "
    "default in ~/.cache/simclr_jax.",
)
_SPLIT = flags.DEFINE_string("split", "train", "Its split, if the input has none.")
_TOP_FOLDERS = flags.DEFINE_string(
    "top_folders",
    "auto",
    "What the top folders are: splits or classes, whatever their names; auto: as their "
    "names and what is in them say, which the log shows in a table.",
)
_VAL_FRACTION = flags.DEFINE_float(
    "val_fraction", 0, "Share of the images, chosen by content, for a split 'val'."
)
_RESIZE_SHORT_SIDE = flags.DEFINE_integer(
    "resize_short_side", None, "Shrinks larger images to this short side, in pixels."
)
_RESIZE_FILTER = flags.DEFINE_string("resize_filter", "lanczos", "Or bicubic.")
_JPEG_QUALITY = flags.DEFINE_integer(
    "jpeg_quality", 95, "Of JPEGs that are shrunk; other formats stay lossless."
)
_DROP_DUPLICATES = flags.DEFINE_bool(
    "drop_duplicates",
    False,
    "Keeps the first of files with equal bytes (all are in DIR/duplicates.tsv).",
)
_EXIF_ORIENTATION = flags.DEFINE_bool(
    "exif_orientation", True, "Turns images upright by their EXIF data."
)
_WHITE_LEVEL = flags.DEFINE_integer(
    "white_level",
    None,
    "The value that becomes 255 in images of more than 8 bits, such as 4095; by "
    "default 2**bits - 1, with the fewest bits, an even number, that hold all values.",
)
_SHARD_SIZE_MB = flags.DEFINE_float("shard_size_mb", 256, "Largest size of a shard.")
_NUM_WORKERS = flags.DEFINE_integer(
    "num_workers",
    None,
    "Processes; by default one for each core that this one may use.",
    lower_bound=1,
)
_BEAM = flags.DEFINE_multi_string(
    "beam",
    [],
    "A flag of Apache Beam, whose workers then do the work, on many machines; may be "
    "repeated: --beam=--runner=DataflowRunner --beam=--project=...",
)


def main() -> None:
    """Runs the command."""
    # Nothing here needs an accelerator; workers inherit this before they import
    # TensorFlow, and spread over cores by being many.
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ["TF_NUM_INTRAOP_THREADS"] = os.environ["TF_NUM_INTEROP_THREADS"] = "1"
    # Imported here, so that --help and bad flags do not wait for TensorFlow.
    from simclr_jax.prepare import build

    options = build.Options(
        input=",".join(_INPUT.value or ()),
        split=_SPLIT.value or "",
        top_folders=_TOP_FOLDERS.value or "",
        val_fraction=_VAL_FRACTION.value,
        resize_short_side=_RESIZE_SHORT_SIDE.value,
        resize_filter=_RESIZE_FILTER.value or "",
        jpeg_quality=_JPEG_QUALITY.value,
        drop_duplicates=_DROP_DUPLICATES.value,
        shard_size_mb=_SHARD_SIZE_MB.value,
        exif_orientation=_EXIF_ORIENTATION.value,
        white_level=_WHITE_LEVEL.value,
    )
    num_workers = _NUM_WORKERS.value or host_resources.num_cpus()
    manifest = build.prepare(
        options,
        _OUTPUT.value or "",
        num_workers=num_workers,
        scratch=_SCRATCH.value,
        beam=_BEAM.value,
    )
    classes = manifest["class_names"]
    cli.say(
        f"{manifest['num_images']:,} images in "
        f"{len(classes) if classes else 'no'} classes, "
        f"{manifest['num_broken']:,} broken files, "
        f"{manifest['num_duplicates']:,} duplicates; splits: "
        f"{', '.join(manifest['splits'])}; see {_OUTPUT.value}/preview.jpg"
    )


if __name__ == "__main__":
    cli.run(main, required=("input", "output"))
