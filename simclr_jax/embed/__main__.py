r"""Writes the features of all images of a dataset, with file names and labels.

    python -m simclr_jax.embed --workdir=RUN --dataset=folder:DIR --output=FILE.npz
    python -m simclr_jax.embed --workdir=RUN --dataset=prepared:DIR --split=val \
        --output=gs://BUCKET/FILE.parquet
    python -m simclr_jax.embed --workdir=RUN --dataset=folder:DIR --output=FILE.npz \
        --neighbours=10

FILE.npz has the arrays features [N, D] float32, index, labels, paths and class_names;
FILE.parquet has a row for each image. Images that cannot be read are left out and
listed in FILE.broken.tsv. --neighbours writes FILE.neighbours.tsv and
FILE.duplicates.tsv. The same command resumes after an interruption, from the parts in
FILE.npz.parts, which are deleted at the end.
"""

from absl import flags

from simclr_jax import cli

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "A run directory, one of its checkpoints, or an exported folder."
)
_DATASET = flags.DEFINE_string(
    "dataset",
    None,
    "folder:DIR, prepared:DIR, npz:FILE, or the name of a TFDS dataset.",
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "FILE.npz or FILE.parquet; may be on gs:// or s3://."
)
_SPLIT = flags.DEFINE_string(
    "split", None, "The split; by default 'all' of folder: and prepared:."
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS datasets are prepared.")
_IMAGE_KEY = flags.DEFINE_string("image_key", "image", "TFDS's feature of the image.")
_LABEL_KEY = flags.DEFINE_string("label_key", "label", "TFDS's feature of the label.")
_STEP = flags.DEFINE_integer(
    "step", None, "The checkpoint of a run; the newest by default.", lower_bound=0
)
_LAYER = flags.DEFINE_integer(
    "layer", 0, "0: h; i: the output of layer i of the projection head; -1: z."
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 256, "Images on all devices at a time.", lower_bound=1
)
_NEIGHBOURS = flags.DEFINE_integer(
    "neighbours", 0, "How many nearest images of each image to write.", lower_bound=0
)
_DUPLICATES_ABOVE = flags.DEFINE_float(
    "duplicates_above",
    0.98,
    "With --neighbours: pairs of this cosine similarity or more are near-duplicates.",
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an output that exists.")
cli.define_processes()


def main() -> None:
    """Runs the command."""
    cli.start_processes(None)
    # Imported here, so that --help and bad flags do not wait for TensorFlow.
    from simclr_jax.embed import job
    from simclr_jax.parallel import processes

    summary = job.embed(
        job.Options(
            workdir=_WORKDIR.value or "",
            dataset=_DATASET.value or "",
            output=_OUTPUT.value or "",
            split=_SPLIT.value,
            data_dir=_DATA_DIR.value,
            image_key=_IMAGE_KEY.value,
            label_key=_LABEL_KEY.value,
            step=_STEP.value,
            layer=_LAYER.value,
            batch_size=_BATCH_SIZE.value,
            neighbours=_NEIGHBOURS.value,
            duplicates_above=_DUPLICATES_ABOVE.value,
            overwrite=_OVERWRITE.value,
        )
    )
    if processes.is_main():
        cli.say(summary)


if __name__ == "__main__":
    cli.run(main, required=("workdir", "dataset", "output"))
