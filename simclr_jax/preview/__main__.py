"""Draws what the augmentations of a config really produce.

    python -m simclr_jax.preview --config=configs/smoke.py --output=views.png

Each row is one training image: first as evaluation sees it, then views drawn just as
training draws them.
"""

from absl import flags

from simclr_jax import cli

_CONFIG = cli.define_config()
_OUTPUT = flags.DEFINE_string("output", None, "Picture to write, such as views.png.")
_NUM_IMAGES = flags.DEFINE_integer("num_images", 6, "Rows.", lower_bound=1)
_NUM_VIEWS = flags.DEFINE_integer("num_views", 8, "Views in a row.", lower_bound=1)


def main() -> None:
    """Runs the command."""
    # Imported here, so that --help and bad flags do not wait for TensorFlow.
    from simclr_jax.config import rules
    from simclr_jax.training import input_pipeline

    config = _CONFIG.value
    rules.validate(config)
    input_pipeline.write_preview(
        config,
        _OUTPUT.value or "",
        num_images=_NUM_IMAGES.value,
        num_views=_NUM_VIEWS.value,
    )
    print(f"wrote {_OUTPUT.value}")


if __name__ == "__main__":
    cli.run(main, required=("config", "output"))
