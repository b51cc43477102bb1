"""The shipped configs by name, from any folder; they are in `configs/`."""

import pathlib

from simclr_jax.errors import ConfigError

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
_NO_CONFIGS = ("__init__", "presets")


def names() -> list[str]:
    """Names of the shipped configs."""
    return sorted(
        path.stem for path in FOLDER.glob("*.py") if path.stem not in _NO_CONFIGS
    )


def locate(value: str) -> str:
    """The value of --config with a shipped name replaced by its file.

    Args:
      value: FILE.py or NAME, optionally with ':ARGUMENT', as in 'imagenet:50x2'.

    Raises:
      ConfigError: there is no such file, or no shipped config of that name.
    """
    name, colon, argument = value.partition(":")
    if not name.endswith(".py"):
        if name not in names():
            raise ConfigError(
                f"--config={value}: must be a file FILE.py or one of the shipped "
                f"configs {', '.join(names())}"
            )
        return f"{FOLDER / name}.py{colon}{argument}"
    if not pathlib.Path(name).is_file():
        hint = ""
        if pathlib.Path(name).stem in names():
            hint = f"; the shipped config is --config={pathlib.Path(name).stem}"
        raise ConfigError(f"--config={value}: no such file{hint}")
    return value
