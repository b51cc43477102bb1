"""A Python environment with the libraries that exports are for."""

import fcntl
import os
import pathlib
import subprocess
import sys
import sysconfig
import venv

FOLDER = (
    pathlib.Path.home()
    / ".cache"
    / "simclr_jax"
    / f"exports-{sys.version_info.major}.{sys.version_info.minor}"
)
_PYTORCH = ("torch", "torchvision")
_OTHERS = ("timm", "transformers")
_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def make() -> pathlib.Path:
    """The environment's Python; created at the first call, once on a machine.

    PyTorch comes from its own index, for CPUs only and a tenth of the size, or from
    PyPI if that index cannot be reached.
    """
    python = FOLDER / "bin" / "python"
    ready = FOLDER / "ready"
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    # Tests that run in parallel wait here for the one that creates it.
    with open(f"{FOLDER}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            _install(python)
            ready.touch()
        # The dependencies of this package come from the tests' environment; those of
        # the libraries take precedence.
        site = sysconfig.get_paths(vars={"base": str(FOLDER)})["purelib"]
        own = pathlib.Path(sysconfig.get_paths()["purelib"])
        (pathlib.Path(site) / "simclr_jax_parent.pth").write_text(f"{own}\n")
    return python


def _install(python: pathlib.Path) -> None:
    venv.create(FOLDER, with_pip=True, clear=True)
    install = [str(python), "-m", "pip", "install", "-q"]
    # No other index: torchvision does not load with a torch of another source, which
    # is built for other devices.
    alone = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
    alone["PIP_CONFIG_FILE"] = os.devnull
    small = [*install, "--retries=0", "--timeout=20", "--index-url", _CPU_INDEX]
    if subprocess.run([*small, *_PYTORCH], env=alone).returncode:
        subprocess.run([*install, *_PYTORCH], check=True)
    subprocess.run([*install, *_OTHERS], check=True)
    loads = f"import {', '.join((*_PYTORCH, *_OTHERS))}"
    subprocess.run([str(python), "-c", loads], check=True)
