"""The code to send to the workers: the files that git tracks, as they are on disk."""

import hashlib
import pathlib
import re
import subprocess
import tarfile

from remote import LaunchError

ROOT = pathlib.Path(__file__).resolve().parents[1]


def files() -> list[str]:
    """The tracked files that exist, relative to the checkout.

    Raises:
      LaunchError: this is no git checkout, or git is not installed.
    """
    try:
        done = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True
        )
    except FileNotFoundError as error:
        raise LaunchError("git: not installed, or not on PATH") from error
    if done.returncode:
        raise LaunchError(f"{ROOT}: must be a git checkout: {done.stderr.strip()}")
    names = [name for name in done.stdout.split("\0") if name]
    return [name for name in names if (ROOT / name).is_file()]


def digest() -> str:
    """Identifies the code; `worker.INSPECT` computes the same on a worker."""
    code = re.compile(r"(simclr_jax|configs)/.*\.py|pyproject\.toml|requirements\.txt")
    total = hashlib.sha256()
    for name in sorted(filter(code.fullmatch, files()), key=str.encode):
        one = hashlib.sha256((ROOT / name).read_bytes()).hexdigest()
        total.update(f"{one}  {name}\n".encode())
    return total.hexdigest()[:12]


def pack(archive: pathlib.Path) -> None:
    """Writes the tracked files as a .tar.gz."""
    with tarfile.open(archive, "w:gz", compresslevel=6) as tar:
        for name in files():
            tar.add(ROOT / name, name)
