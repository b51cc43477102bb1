"""Draws what the augmentations of a config make of its training images.

    python -m simclr_jax.preview --config=smoke --output=views.png

Four sections below each other, of which `--show` picks some: each operation alone at
several strengths; images and their views, the same as in the first step of training;
the positives beside each other; and the views of host and device beside each other.
"""

from absl import flags

from simclr_jax import cli

_CONFIG = cli.define_config()
_OUTPUT = flags.DEFINE_string(
    "output", None, "The picture, such as views.png; the suffix is the format."
)
_SHOW = flags.DEFINE_list(
    "show",
    None,
    "The sections: operations, views, pairs, host_and_device; by default all.",
)
_NUM_IMAGES = flags.DEFINE_integer(
    "num_images",
    6,
    "Images with their views and pairs.",
    lower_bound=1,
    upper_bound=1000,
)
_NUM_VIEWS = flags.DEFINE_integer(
    "num_views", 8, "Views of each image.", lower_bound=1, upper_bound=1000
)


def main() -> None:
    """Runs the command."""
    # Imported here, so that --help and bad flags do not wait for TensorFlow.
    from simclr_jax.config import rules
    from simclr_jax.preview import picture, sections

    config = _CONFIG.value
    rules.validate(config)
    picture.write_preview(
        config,
        _OUTPUT.value or "",
        show=_SHOW.value or tuple(sections.SECTIONS),
        num_images=_NUM_IMAGES.value,
        num_views=_NUM_VIEWS.value,
    )
    cli.say(f"wrote {_OUTPUT.value}")


if __name__ == "__main__":
    cli.run(main, required=("config", "output"))
