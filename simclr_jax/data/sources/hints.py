"""What to say of inputs that `folder:` does not read and `prepare` does."""

import glob
import shlex
from collections.abc import Iterable

# By what they are called in messages.
_KINDS = {
    "a list": (".csv", ".tsv"),
    "an archive": (
        *(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz"),
        ".zip",
    ),
    "a table": (".parquet", ".arrow"),
}


def of_prepare(path: str, names: Iterable[str] = ()) -> str:
    """The command that reads an input, '' where none does.

    Args:
      path: what `folder:` was given.
      names: of files below it, if it is a folder.
    """
    if glob.has_magic(path) or ("{" in path and "}" in path):
        return _command("this is a pattern", path)
    if kind := _kind(path):
        return _command(f"this is a file named like {kind}", path)
    for name in names:
        kind = _kind(name)
        if kind == "a list":
            return _command("there is a list", f"{path.rstrip('/')}/{name}")
        if kind:
            return _command(f"there are files named like {kind}", path)
    return ""


def _kind(name: str) -> str:
    lower = name.lower()
    return next((k for k, ends in _KINDS.items() if lower.endswith(ends)), "")


def _command(what: str, path: str) -> str:
    return (
        f"; {what}, which `python -m simclr_jax.prepare --input={shlex.quote(path)} "
        "--output=DIR` reads; then train with config.data.dataset=prepared:DIR"
    )
