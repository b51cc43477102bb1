"""Objects on gs:// and s3://, read by obstore (Rust), which releases Python's lock.

Errors are those of local files: FileNotFoundError, PermissionError; whatever may pass
is `Unavailable`. Requests are not retried here; see `storage.py`.

Emulators are found as by gcsfs and boto: STORAGE_EMULATOR_HOST for gs://,
AWS_ENDPOINT_URL for s3://.
"""

import dataclasses
import datetime
import errno
import functools
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from simclr_jax import paths
from simclr_jax.data import optional
from simclr_jax.errors import DataError, StoreFailed, first_line

_Result = TypeVar("_Result")
# Of which a change means another server or other credentials.
_VARIABLES = (
    "STORAGE_EMULATOR_HOST",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "AWS_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
)
_STATUS = re.compile(r"status code: (\d{3})")
_BEYOND_THE_END = 416
_TIMEOUT = "60s"  # of a request
_NO_CREDENTIALS = {
    "gs": "no credentials were found; run `gcloud auth application-default login` or "
    "set GOOGLE_APPLICATION_CREDENTIALS",
    "s3": "no credentials were found; set AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
}


class Unavailable(OSError):
    """A request that failed for a reason that may pass."""


@dataclasses.dataclass(frozen=True)
class Connection:
    """A bucket.

    Attributes:
      store: obstore's object.
      anonymous: whether no credentials were found.
    """

    store: Any
    anonymous: bool


@dataclasses.dataclass(frozen=True)
class Object:
    """What a listing says of an object.

    Attributes:
      path: with scheme and bucket.
      size: in bytes.
      time: of the last change, in ns.
    """

    path: str
    size: int
    time: int


def split(path: str) -> tuple[str, str, str]:
    """(scheme, bucket, name) of a path; the name is '' for the bucket itself.

    Raises:
      DataError: no known store, or no bucket.
    """
    scheme, _, rest = path.partition("://")
    bucket, _, name = rest.partition("/")
    if scheme not in paths.STORES:
        known = ", ".join(f"{known}://" for known in paths.STORES)
        raise DataError(f"{path}: must be a local path or start with {known}")
    if not bucket:
        raise DataError(f"{path}: must name a bucket, as in {scheme}://BUCKET/FOLDER")
    return scheme, bucket, name.strip("/")


def read(path: str, start: int, stop: int) -> Any:
    """Bytes start, ..., stop - 1 of an object, or as many as there are.

    Returns:
      A buffer; empty if the object ends before `start`.

    Raises:
      FileNotFoundError, PermissionError, Unavailable, DataError: as above.
    """

    def request(store: Any, name: str) -> Any:
        import obstore

        return obstore.get_range(store, name, start=start, end=stop)

    if stop <= start:
        return b""
    try:
        return _requested(path, request)
    except _BeyondTheEnd:
        return b""


def read_start(path: str, stop: int) -> tuple[Any, int]:
    """The first bytes of an object, at most `stop`, and its size."""

    def request(store: Any, name: str) -> tuple[Any, int]:
        import obstore

        result = obstore.get(store, name, options={"range": (0, stop)})
        return result.bytes(), result.meta["size"]

    try:
        return _requested(path, request)
    except _BeyondTheEnd:  # it is empty
        return b"", 0


def size(path: str) -> int | None:
    """The bytes of an object; None if there is none.

    Raises:
      PermissionError, Unavailable, DataError: as above.
    """

    def request(store: Any, name: str) -> int:
        import obstore

        return obstore.head(store, name)["size"]

    try:
        return _requested(path, request) if split(path)[2] else None
    except FileNotFoundError:
        return None


def is_folder(path: str) -> bool:
    """Whether there are objects below a path."""
    return next(_listed(path, chunk_size=1), None) is not None


def check_bucket(path: str) -> None:
    """Checks that the bucket of a path is there and can be listed.

    Raises:
      DataError: it is not.
    """
    scheme, bucket, _ = split(path)
    root = f"{scheme}://{bucket}"
    _connect(scheme, bucket, *map(os.environ.get, _VARIABLES))
    try:
        # Unlike a listing of nothing, this tells whether the bucket is there.
        found = paths.as_path(root).is_dir()
        reason = "there is no such bucket, or no permission to list it"
    except Exception as error:  # each library has its own
        found, reason = False, first_line(error)
    if not found:
        raise DataError(f"{path}: bucket {root} cannot be read ({reason})")


def list_below(path: str) -> Iterator[Object]:
    """All objects below a path, in any order."""
    return _listed(path, chunk_size=1000)


def list_folder(path: str) -> tuple[list[str], list[Object]]:
    """The paths of the folders directly in one, and the objects directly in it.

    Raises:
      FileNotFoundError, PermissionError, Unavailable, DataError: as above.
    """
    root = "{}://{}/".format(*split(path)[:2])

    def request(store: Any, name: str) -> Any:
        import obstore

        return obstore.list_with_delimiter(store, name or None)

    found = _requested(path, request)
    folders = [root + prefix for prefix in found["common_prefixes"]]
    return folders, [_object(root, meta) for meta in found["objects"]]


def _listed(path: str, chunk_size: int) -> Iterator[Object]:
    root = "{}://{}/".format(*split(path)[:2])

    def request(store: Any, name: str) -> Any:
        import obstore

        return iter(obstore.list(store, name or None, chunk_size=chunk_size))

    pages = _requested(path, request)
    while True:
        page = _requested(path, lambda *_: next(pages, None))
        if page is None:
            return
        yield from (_object(root, meta) for meta in page)


def _object(root: str, meta: Any) -> Object:
    seconds = meta["last_modified"].timestamp()
    return Object(root + meta["path"], meta["size"], round(seconds * 1e6) * 1000)


class _BeyondTheEnd(Exception):
    pass


def _requested(path: str, request: Callable[[Any, str], _Result]) -> _Result:
    """Runs `request(store, name)` with the errors of local files."""
    scheme, bucket, name = split(path)
    connection = _connect(scheme, bucket, *map(os.environ.get, _VARIABLES))
    from obstore import exceptions

    try:
        return request(connection.store, name)
    except FileNotFoundError as error:
        raise _missing(path, str(error)) from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        reason = "the credentials have no permission for it"
        if connection.anonymous:
            reason = _NO_CREDENTIALS[scheme]
        raise PermissionError(errno.EACCES, reason, path) from error
    except (exceptions.BaseError, OSError) as error:
        status = int((_STATUS.search(str(error)) or [0, 0])[1])
        if status == _BEYOND_THE_END:
            raise _BeyondTheEnd from error
        if status == 404:  # of a listing
            raise _missing(path, str(error)) from error
        cause = _shortened(str(error))
        if 400 <= status < 500 and status not in (408, 429):
            raise StoreFailed(f"file {path}: cannot be read ({cause})") from error
        raise Unavailable(errno.EIO, cause, path) from error


def _missing(path: str, message: str) -> FileNotFoundError:
    what = os.strerror(errno.ENOENT)
    if "NoSuchBucket" in message:
        what = "there is no such bucket"
    return FileNotFoundError(errno.ENOENT, what, path)


def _shortened(message: str) -> str:
    """Without the parts of obstore's messages that differ from try to try."""
    line = message.strip().splitlines()[0]
    return re.sub(r"^.* in \d[\d.]*\S*s\b[^-]*- ", "", line)[:200]


@functools.lru_cache(maxsize=64)
def _connect(scheme: str, bucket: str, *variables: str | None) -> Connection:
    for package in ("obstore", paths.STORES[scheme]):
        if not optional.is_installed(package):
            raise DataError(
                optional.install_hint(f"{scheme}://{bucket}", package, extra="stores")
            )
    return (_connect_gs if scheme == "gs" else _connect_s3)(bucket)


# Retries are those of `storage.py`, which says so.
_CLIENT: dict[str, Any] = {"retry_config": {"max_retries": 0}}


def _connect_gs(bucket: str) -> Connection:
    from obstore.store import GCSStore

    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    options: Any = {"timeout": _TIMEOUT, "allow_http": bool(emulator)}
    unsigned: Any = {"skip_signature": True}
    if emulator:
        url = emulator if "://" in emulator else f"http://{emulator}"
        config: Any = {"base_url": url.rstrip("/"), "skip_signature": True}
        store = GCSStore(bucket, config=config, client_options=options, **_CLIENT)
        return Connection(store, anonymous=False)
    import google.auth.exceptions
    from obstore.auth.google import GoogleCredentialProvider

    try:
        provider = GoogleCredentialProvider()
    except google.auth.exceptions.GoogleAuthError:
        # Public buckets need none.
        store = GCSStore(bucket, config=unsigned, client_options=options, **_CLIENT)
        return Connection(store, anonymous=True)
    store = GCSStore(
        bucket, credential_provider=provider, client_options=options, **_CLIENT
    )
    return Connection(store, anonymous=False)


def _connect_s3(bucket: str) -> Connection:
    import botocore.session
    from obstore.store import S3Store

    session = botocore.session.Session()
    credentials = session.get_credentials()
    region = session.get_config_variable("region")
    config: Any = {"region": region} if region else {}
    if credentials is None:
        config["skip_signature"] = True
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    options: Any = {"timeout": _TIMEOUT, "allow_http": endpoint.startswith("http://")}

    def current() -> Any:
        frozen = credentials.get_frozen_credentials()
        soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=5)
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": soon,
        }

    store = S3Store(
        bucket,
        config=config,
        client_options=options,
        credential_provider=current if credentials else None,
        **_CLIENT,
    )
    return Connection(store, anonymous=credentials is None)
