"""Writes the encoder of a run, and its classifier, for another library.

    python -m simclr_jax.export --workdir=RUN --format=timm --output=DIR

Formats: torchvision, timm and huggingface (for PyTorch's libraries), safetensors
(weights for JAX), stablehlo (a compiled function that needs only JAX). Each folder has
the weights, their preprocessing, a model card, and a parity report, which compares the
features of real images with the original's; if they differ, nothing is written. A
format that cannot express the encoder is refused. A run that was fine-tuned or
distilled is written with its classifier and the names of its classes.
`simclr_jax.load(DIR)` opens every format.
"""

from absl import flags

from simclr_jax import cli

_WORKDIR = cli.define_workdir()
# Not an enum: the table of formats imports JAX, and --help should not wait for it.
_FORMAT = flags.DEFINE_string("format", None, "The format; see above.")
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write; new or empty.")
_STEP = flags.DEFINE_integer(
    "step", None, "The checkpoint to export; the newest by default.", lower_bound=0
)
_PTH = flags.DEFINE_bool(
    "pth", False, "Write model.pth too; for torchvision only, needs PyTorch."
)
_CLASSIFIER = flags.DEFINE_bool(
    "classifier",
    None,
    "Write the classifier too. By default that of a fine-tuned or distilled run is "
    "written, and the probe of a pretrained one is not.",
)
_PYRAMID = flags.DEFINE_bool(
    "pyramid",
    False,
    "Write pyramid.stablehlo too, the feature maps C2 to C5 of images of many sizes; "
    "for stablehlo only.",
)
_IMAGES = flags.DEFINE_string(
    "images",
    None,
    "Folder of images to compare features on; by default 16 images of the run's test "
    "split, or photographs if it cannot be read.",
)


def main() -> None:
    """Runs the command."""
    # Imported here, so that --help and bad flags do not wait for JAX.
    from simclr_jax.weights import export

    parity = export.export(
        _WORKDIR.value or "",
        _FORMAT.value or "",
        _OUTPUT.value or "",
        step=_STEP.value,
        pickled=_PTH.value,
        images=_IMAGES.value,
        classifier=_CLASSIFIER.value,
        pyramid=_PYRAMID.value,
    )
    cli.say("\n".join(parity.lines()))
    cli.say(f"The export is in {_OUTPUT.value}; start with its README.md.")


if __name__ == "__main__":
    cli.run(main, required=("workdir", "format", "output"))
