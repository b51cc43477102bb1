"""Writes one self-contained HTML page of a run, or of several side by side.

    python -m simclr_jax.report --workdir=RUN
    python -m simclr_jax.report --workdir=RUN1,RUN2,RUN3 --output=FILE.html

The page opens from disk, without a network. Runs may be on gs:// or s3://, and may
still be going on.
"""

from absl import flags

from simclr_jax import cli

_WORKDIR = flags.DEFINE_list(
    "workdir", None, "The run directory, or several; comma-separated."
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "The HTML file; report.html in the run directory by default. Required for several "
    "runs.",
)
_IMAGES = flags.DEFINE_bool(
    "images",
    True,
    "With the parts that need the dataset and the encoder: augmented pairs, nearest "
    "neighbours, a map of embeddings, classes.",
)


def main() -> None:
    """Runs the command."""
    # Imported here, so that --help and bad flags do not wait for JAX.
    from simclr_jax.report import job

    path = job.write(_WORKDIR.value or (), _OUTPUT.value, images=_IMAGES.value)
    cli.say(f"wrote {path}")


if __name__ == "__main__":
    cli.run(main, required=("workdir",))
