"""The names in `log.writers`, and the packages that they need."""

from typing import NamedTuple

from ml_collections import config_dict

from simclr_jax.data import optional
from simclr_jax.errors import ConfigError
from simclr_jax.parallel import processes


class Needs(NamedTuple):
    """A package, and the extra that installs it."""

    package: str
    extra: str


# A writer is a module of its name in `runs/writers/` and a line here.
WRITERS: dict[str, Needs | None] = {
    "tensorboard": None,
    "wandb": Needs("wandb", "wandb"),
    "mlflow": Needs("mlflow", "mlflow"),
}
RULE = f"must be a tuple of names, each once, of {', '.join(WRITERS)}; () for none"


def are_names(value: object) -> bool:
    """Whether a value of `log.writers` fits `RULE`."""
    return (
        isinstance(value, tuple | list)
        and all(isinstance(name, str) and name in WRITERS for name in value)
        and len({*value}) == len(value)
    )


def check_installed(config: config_dict.ConfigDict) -> None:
    """Raises ConfigError if process 0 lacks the package of a writer."""
    for name in config.log.writers if processes.is_main() else ():
        needs = WRITERS[name]
        if needs is not None and not optional.is_installed(needs.package):
            what = f"config.log.writers={tuple(config.log.writers)!r}: {name!r}"
            raise ConfigError(
                optional.install_hint(what, needs.package, extra=needs.extra)
            )
