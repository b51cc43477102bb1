"""Paths of runs and datasets: local, on a mounted bucket, or on a store (gs://, s3://).

`etils.epath` gives all of them the methods of pathlib, through fsspec: gcsfs for
gs://, s3fs for s3://, which the extra `stores` installs. Where TensorFlow is installed
epath would use its file system for stores; here it does not, so that a path behaves
the same with and without TensorFlow.
"""

import contextlib
import importlib.util
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import fsspec
from etils import epath

from simclr_jax.errors import ConfigError, InvalidInput, first_line

# By scheme: the package that serves it.
STORES = {"gs": "gcsfs", "s3": "s3fs"}
_THREADS = 16
# The packages whose errors say that a store failed or refused.
_LIBRARIES = ("aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "obstore")
# What a mounted bucket's file system is called, in part: fuse.gcsfuse, fuse.s3fs ...
_MOUNT_TYPE = "fuse"
_MOUNTS = "/proc/mounts"

os.environ.setdefault("EPATH_USE_TF", "false")
# Else gcsfs asks for each bucket's type by gRPC first, for features not used here.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
for _scheme in STORES:
    # Other processes write too, so a listing is old at once.
    fsspec.config.conf.setdefault(_scheme, {}).setdefault("use_listings_cache", False)
if "STORAGE_EMULATOR_HOST" in os.environ:
    # An emulator asks for no credentials; gcsfs would search the machine for some.
    fsspec.config.conf["gs"].setdefault("token", "anon")


def is_store(path: str | os.PathLike[str]) -> bool:
    """Whether a path names an object of a store; False for a mounted bucket."""
    return "://" in os.fspath(path)


def as_path(path: str | os.PathLike[str]) -> epath.Path:
    """A path with the methods of pathlib; `~` is expanded.

    Args:
      path: local, or on a store: 'gs://BUCKET/...', 's3://BUCKET/...'.

    Raises:
      ConfigError: no known store, no bucket, or the store's package is not installed.
    """
    text = os.fspath(path)
    if not is_store(text):
        return epath.Path(text).expanduser()
    scheme, _, rest = text.partition("://")
    if scheme not in STORES:
        known = ", ".join(f"{name}://" for name in STORES)
        raise ConfigError(f"{text}: must be a local path or start with {known}")
    if not rest.partition("/")[0]:
        raise ConfigError(f"{text}: must name a bucket, as in {scheme}://BUCKET/FOLDER")
    if importlib.util.find_spec(STORES[scheme]) is None:
        raise ConfigError(
            f"{text}: needs the package {STORES[scheme]}, which is not installed; "
            "install it with `pip install simclr_jax[stores]`"
        )
    return epath.Path(text)


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """`as_path`, and local paths made absolute."""
    located = as_path(path)
    return located if is_store(located) else located.resolve()


def is_failure(error: BaseException) -> bool:
    """Whether a disk or a store, or a library that reads it, raised an error."""
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or library in _LIBRARIES


def check_reachable(path: str | os.PathLike[str], *, flag: str) -> None:
    """Checks that the bucket of a path on a store is there and can be listed.

    Does nothing for local paths.

    Raises:
      ConfigError: there is no such bucket, or no permission to list it.
    """
    try:
        located = as_path(path)
    except ConfigError as error:
        raise ConfigError(f"--{flag}={error}") from error
    if not is_store(located):
        return
    bucket = epath.Path("/".join(os.fspath(located).split("/")[:3]))
    try:
        found = bucket.is_dir()
        reason = "there is no such bucket, or no permission to list it"
    except Exception as error:
        if not is_failure(error):
            raise
        found, reason = False, first_line(error)
    if not found:
        raise ConfigError(f"--{flag}={path}: bucket {bucket} cannot be read ({reason})")


def is_mounted_bucket(path: str | os.PathLike[str]) -> bool:
    """Whether a local path is on a mount by FUSE, such as gcsfuse.

    Files there reach the bucket when they are closed, and a folder with files in it
    cannot be renamed in one step.
    """
    if is_store(path):
        return False
    location = os.path.realpath(os.path.expanduser(path))
    try:
        lines = pathlib.Path(_MOUNTS).read_text().splitlines()
    except OSError:  # not Linux
        return False
    # The last of the longest: later mounts hide earlier ones.
    kind, longest = "", -1
    for line in lines:
        _, point, file_system, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        inside = location == point or location.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= longest:
            kind, longest = file_system, len(point)
    return kind.startswith(_MOUNT_TYPE)


def download(source: epath.Path, target: pathlib.Path) -> None:
    """Copies a file, or the files of a folder and its sub-folders, to a local path.

    Raises:
      FileNotFoundError: there is nothing at `source`.
    """
    if not source.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
        return
    target.mkdir(parents=True, exist_ok=True)
    pairs = [(entry, target / entry.name) for entry in source.iterdir()]
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda pair: download(*pair), pairs))


@contextlib.contextmanager
def fetched(path: str) -> Iterator[str]:
    """A local path with the files of `path`: itself, or a temporary copy from a store.

    Args:
      path: a file, a folder, or the common start of the names of several files, such
        as that of a TensorFlow checkpoint.

    Raises:
      ConfigError: as `as_path`, or the store cannot be read.
    """
    if not is_store(path):
        yield path
        return
    source = as_path(path)
    with tempfile.TemporaryDirectory(prefix="simclr_jax-") as folder:
        copy = pathlib.Path(folder) / source.name
        try:
            if source.exists():
                download(source, copy)
            elif source.parent.is_dir():
                for entry in source.parent.iterdir():
                    if entry.name.startswith(f"{source.name}."):
                        download(entry, copy.with_name(entry.name))
        except Exception as error:
            if not is_failure(error):
                raise
            raise ConfigError(
                f"{path}: cannot be read ({first_line(error)})"
            ) from error
        try:
            yield str(copy)
        except InvalidInput as error:
            # It names the copy, and the user the original.
            raise type(error)(str(error).replace(str(copy), path)) from error


def upload(source: pathlib.Path, target: epath.Path) -> None:
    """Copies the files of a local folder and its sub-folders.

    Those of sub-folders come first, so that the files of `source` itself, which
    describe the others, say that all are there.
    """
    inner = [path for path in source.rglob("*") if path.is_file()]
    outer = [path for path in inner if path.parent == source]
    for files in (set(inner) - set(outer), outer):
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda path: _upload_one(source, path, target), files))


def _upload_one(source: pathlib.Path, path: pathlib.Path, target: epath.Path) -> None:
    place = target / path.relative_to(source).as_posix()
    place.parent.mkdir(parents=True, exist_ok=True)
    with path.open("rb") as file, place.open("wb") as copy:
        shutil.copyfileobj(file, copy)
