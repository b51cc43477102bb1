"""Packages that only some datasets and pipelines need."""

import functools
import importlib.util


@functools.cache
def is_installed(package: str) -> bool:
    """Whether a package can be imported; does not import it."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return False
    # A mere folder of that name, as `wandb` makes one where it runs, has no origin.
    return spec is not None and spec.origin is not None


def install_hint(what: str, package: str, *, extra: str = "input") -> str:
    """The end of a message: what needs a package and how to get it."""
    install = f"pip install 'simclr_jax[{extra}]'"
    return f"{what} needs {package}, which `{install}` installs"
