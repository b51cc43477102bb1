"""Writes the encoder of a run for use elsewhere.

    python -m simclr_jax.export --workdir=RUN --format=timm --output=DIR

Formats: torchvision, timm and huggingface (PyTorch's libraries), safetensors and orbax
(weights for JAX), stablehlo (a compiled function that needs JAX alone). Each folder has
the weights, their preprocessing, a model card, and a report of how features of real
images compare with the original's; where they differ nothing is written. A format that
cannot express the encoder is refused. `simclr_jax.load(DIR)` opens all of them.
"""

from absl import flags

from simclr_jax import cli

_FORMATS = ("torchvision", "timm", "huggingface", "safetensors", "stablehlo", "orbax")

_WORKDIR = cli.define_workdir()
_FORMAT = flags.DEFINE_enum("format", None, _FORMATS, "What to write.")
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write; new or empty.")
_STEP = flags.DEFINE_integer(
    "step", None, "The checkpoint to export; by default the newest.", lower_bound=0
)
_PTH = flags.DEFINE_bool(
    "pth", False, "Write model.pth too; for torchvision, and needs PyTorch."
)
_IMAGES = flags.DEFINE_string(
    "images",
    None,
    "Folder of images to compare features on; by default some of the run's test split, "
    "or photographs where that cannot be read.",
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
    )
    print("\n".join(parity.lines()))
    print(f"The export is in {_OUTPUT.value}; start with its README.md.")


if __name__ == "__main__":
    cli.run(main, required=("workdir", "format", "output"))
