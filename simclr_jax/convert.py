"""Imports weights of other codebases as a run directory.

    python -m simclr_jax.convert --input=model.ckpt-250228 --workdir=RUN
    python -m simclr_jax.convert --input=net.pth --normalization=imagenet --workdir=RUN

Reads checkpoints of google-research/simclr, v1 and v2 (TF1 and TF2 checkpoints,
SavedModels); .safetensors and .pth files with names of torchvision or another PyTorch
codebase for a ResNet (docs/import.md); folders of Hugging Face and timm.
Depth, width, selective kernels, head and classes follow from the names and shapes of
the tensors; no code in a file is executed. Folders of `simclr_jax.export` become runs
again, with their preprocessing and config. `simclr_jax.evaluate` and `simclr_jax.load`
open the result.
"""

import importlib

from absl import flags

from simclr_jax import cli
from simclr_jax.errors import ConfigError

_INPUT: flags.FlagHolder = flags.DEFINE_string(
    "input", None, "The file or folder with the weights; may be on gs:// or s3://."
)
_WORKDIR = cli.define_workdir()
_CONFIG = cli.define_config()
_EMA = flags.DEFINE_bool(
    "ema", False, "Import the moving averages that some TF1 files of SimCLR v2 hold."
)
_KEY = flags.DEFINE_string(
    "key",
    None,
    "The key of the weights, such as teacher, if a PyTorch file has several ResNets.",
)
_PREFIX = flags.DEFINE_string(
    "prefix",
    None,
    "The prefix of the names, such as module.encoder_q., if it has several.",
)
_NORMALIZATION = flags.DEFINE_string(
    "normalization",
    None,
    "The normalization of pixels in [0, 1], required for PyTorch's files where nothing "
    "records it: none, imagenet, or MEAN/STD, each one number or three, such as "
    "0.5/0.5 or 0.5,0.5,0.5/0.25,0.25,0.25; one number alone is both.",
)
_RESIZE = flags.DEFINE_enum(
    "resize",
    None,
    ["bicubic", "bicubic_antialias", "bicubic_legacy"],
    "The resizing of evaluation images; by default bicubic_legacy (TensorFlow 1) for "
    "TF1 files and SavedModels, and bicubic for all others.",
)
_IGNORE_UNEXPECTED = flags.DEFINE_bool(
    "ignore_unexpected", False, "Leave out tensors without a place in the model."
)


def main() -> None:
    """Runs the command."""
    # Imported here, so that --help and bad flags do not wait for JAX.
    from simclr_jax import paths
    from simclr_jax.config import rules
    from simclr_jax.runs import atomic
    from simclr_jax.weights import convert

    atomic.check_free(_WORKDIR.value, flag="workdir")
    config = _CONFIG.value
    if config is not None:
        rules.validate(config)
    with paths.fetched(_INPUT.value) as local:
        folder = convert.find_export(local)
        if folder is not None:
            _check_left_out()
            weights, config = convert.read_export(folder, config)
        else:
            weights = convert.read(
                local,
                ema=_EMA.value,
                key=_KEY.value,
                prefix=_PREFIX.value,
                normalization=_NORMALIZATION.value,
                resize=_RESIZE.value,
                ignore_unexpected=_IGNORE_UNEXPECTED.value,
            )
    if folder is None:
        if config is None:
            # The dataset to evaluate on follows from the stem.
            cifar = weights.encoder_settings["stem"] == "cifar"
            name = "cifar10" if cifar else "imagenet"
            module = importlib.import_module(f"simclr_jax.configs.{name}")
            config = module.get_config()
        config = convert.complete_config(config, weights)
    receipt = convert.write(_WORKDIR.value, config, weights, _INPUT.value)
    cli.say(convert.summary(receipt))
    cli.say(f"The run is in {_WORKDIR.value}.")


def _check_left_out() -> None:
    """Raises ConfigError for flags whose values an export records itself."""
    for flag in (_EMA, _KEY, _PREFIX, _NORMALIZATION, _RESIZE, _IGNORE_UNEXPECTED):
        if flag.value:
            raise ConfigError(
                f"--{flag.name}={flag.value}: must be left out for {_INPUT.value}, an "
                "export of simclr_jax"
            )


if __name__ == "__main__":
    cli.run(main, required=("input", "workdir"))
