"""A Python environment with the libraries that exports are for."""

import os
import pathlib
import subprocess

import environments

_PYTORCH = ("torch", "torchvision")
_OTHERS = ("timm", "transformers")
_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def make() -> pathlib.Path:
    """The environment's Python.

    PyTorch comes from its own index, for CPUs only and a tenth of the size, or from
    PyPI if that index cannot be reached.
    """
    return environments.make("exports", _install)


def _install(install: list[str]) -> None:
    # No other index: torchvision does not load with a torch of another source, which
    # is built for other devices.
    alone = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
    alone["PIP_CONFIG_FILE"] = os.devnull
    small = [*install, "--retries=0", "--timeout=20", "--index-url", _CPU_INDEX]
    if subprocess.run([*small, *_PYTORCH], env=alone).returncode:
        subprocess.run([*install, *_PYTORCH], check=True)
    subprocess.run([*install, *_OTHERS], check=True)
    environments.load(install[0], *_PYTORCH, *_OTHERS)
