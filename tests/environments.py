"""Python environments for packages that do not fit beside those of the tests."""

import fcntl
import pathlib
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable


def make(name: str, install: Callable[[list[str]], None]) -> pathlib.Path:
    """An environment's Python; created at the first call, once on a machine.

    Args:
      name: of the environment.
      install: installs its packages by a command such as ['pip', 'install'], and
        imports them.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = pathlib.Path.home() / ".cache" / "simclr_jax" / f"{name}-{version}"
    python = folder / "bin" / "python"
    ready = folder / "ready"
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Tests that run in parallel wait here for the one that creates it.
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            venv.create(folder, with_pip=True, clear=True)
            install([str(python), "-m", "pip", "install", "-q"])
            ready.touch()
        # The dependencies of this package come from the tests' environment; those of
        # the libraries take precedence.
        site = sysconfig.get_paths(vars={"base": str(folder)})["purelib"]
        own = pathlib.Path(sysconfig.get_paths()["purelib"])
        (pathlib.Path(site) / "simclr_jax_parent.pth").write_text(f"{own}\n")
    return python


def load(python: str, *packages: str) -> None:
    """Imports packages, to see that they fit together."""
    subprocess.run([python, "-c", f"import {', '.join(packages)}"], check=True)
