"""A Python with the libraries that exports are for, beside this package's own."""

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
    """The environment's Python; made at the first call, once on a machine.

    PyTorch's own index has it for CPUs, in a tenth of the size; where that cannot be
    reached, PyPI's is taken.
    """
    python = FOLDER / "bin" / "python"
    ready = FOLDER / "ready"
    if not ready.exists():
        venv.create(FOLDER, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "-q"]
        small = [*install, "--retries=0", "--timeout=20", "--index-url", _CPU_INDEX]
        if subprocess.run([*small, *_PYTORCH]).returncode:
            subprocess.run([*install, *_PYTORCH], check=True)
        subprocess.run([*install, *_OTHERS], check=True)
        ready.touch()
    # What this package needs comes from the environment that the tests run in, behind
    # the libraries' own requirements.
    site = sysconfig.get_paths(vars={"base": str(FOLDER)})["purelib"]
    own = pathlib.Path(sysconfig.get_paths()["purelib"])
    (pathlib.Path(site) / "simclr_jax_parent.pth").write_text(f"{own}\n")
    return python
