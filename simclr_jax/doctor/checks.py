"""The checks of `doctor`.

Every check runs on all processes, so it may contain collectives. Its detail comes
from process 0, unless another process failed.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator

import jax

from simclr_jax import parallel, paths
from simclr_jax.doctor import equivalence
from simclr_jax.errors import ConfigError, InvalidInput, RunFailed, first_line
from simclr_jax.parallel import processes, roll_call
from simclr_jax.runs import atomic, directory
from simclr_jax.verdicts import Verdict

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# Only installed on some machines. Different compilers on different hosts build programs
# that do not match.
_OPTIONAL_LIBRARIES = (
    "libtpu",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "tensorflow",
    "tensorflow-cpu",
)
_LARGEST_CLOCK_SPREAD_SECS = 5.0
_LEAST_FREE_GB = 5.0


class _Failed(RunFailed):
    """A check that failed."""


def run(workdir: str | None) -> Iterator[Verdict]:
    """Runs all checks and yields their verdicts one by one.

    Args:
      workdir: a run directory to check too; None for none. It may not exist.
    """
    checks = [*OF_MACHINES]
    if workdir is not None:
        checks.append(("run directory", lambda: _run_directory(workdir)))
    for name, check in checks:
        yield _judge(name, check)
    yield from compare_devices()


def _judge(name: str, check: Callable[[], str]) -> Verdict:
    try:
        return Verdict(name, True, check())
    except (InvalidInput, RunFailed) as error:
        return Verdict(name, False, str(error))


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _environment() -> str:
    """The required libraries are installed."""
    with processes.all_or_none():
        missing = [name for name in _LIBRARIES if _version(name) is None]
        if missing:
            raise _Failed(f"{', '.join(missing)}: not installed; bash launch/setup.sh")
    return f"Python {platform.python_version()}, {_libraries()}"


def _libraries() -> str:
    names = (*_LIBRARIES, *_OPTIONAL_LIBRARIES)
    versions = {name: _version(name) for name in names}
    return ", ".join(
        f"{name} {version}" for name, version in versions.items() if version
    )


def _devices() -> str:
    """All devices are of one kind, and no accelerator is left unused."""
    kinds = sorted({device.device_kind for device in jax.devices()})
    platforms = {device.platform for device in jax.devices()}
    with processes.all_or_none():
        if len(kinds) > 1:
            raise _Failed(f"of different kinds: {', '.join(kinds)}; use one kind")
        chips = [p for p in ("/dev/accel0", "/dev/vfio/0") if os.path.exists(p)]
        if platforms == {"cpu"} and chips:
            raise _Failed(
                f"only CPUs, though {chips[0]} is there: install JAX for TPUs "
                '(.venv/bin/pip install -U -e . "jax[tpu]"), unset JAX_PLATFORMS, and '
                "end other programs that hold the chips"
            )
        if platforms == {"cpu"} and shutil.which("nvidia-smi"):
            raise _Failed(
                "only CPUs, though nvidia-smi is there: install JAX for GPUs "
                '(.venv/bin/pip install -U -e . "jax[cuda13]") and unset JAX_PLATFORMS'
            )
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    size = f", {memory / 1e9:.1f} GB each" if memory else ""
    return f"{jax.device_count()} x {kinds[0]}{size}"


def _hosts() -> str:
    """Every process has the same number of devices."""
    counts = processes.gather_texts(f"{processes.name()}|{jax.local_device_count()}")
    numbers = {text.split("|")[1] for text in counts}
    if len(numbers) > 1:
        listed = "; ".join(
            f"process {who} has {number}"
            for who, number in (text.split("|") for text in counts)
        )
        raise _Failed(f"{listed}: all must have the same number of devices")
    return f"{jax.process_count()} processes with {numbers.pop()} devices each"


def _versions() -> str:
    """Code, libraries and XLA_FLAGS are the same on all hosts."""
    # Python, JAX and the code are compared when the processes start.
    processes.require_equal("libraries", _libraries())
    flags = re.sub(r"\s+", " ", os.environ.get("XLA_FLAGS", "")).strip()
    processes.require_equal("XLA_FLAGS", flags or "(none)")
    return f"the same everywhere; package {roll_call.code_digest()}"


def _clocks() -> str:
    """Clocks agree well enough to compare the logs of different hosts."""
    processes.barrier()
    times = [float(text) for text in processes.gather_texts(f"{time.time():.3f}")]
    spread = max(times) - min(times)
    if spread > _LARGEST_CLOCK_SPREAD_SECS:
        late, early = times.index(min(times)), times.index(max(times))
        raise _Failed(
            f"{spread:.1f} s apart (process {late} behind process {early}): set the "
            "hosts' clocks by NTP"
        )
    return f"at most {spread:.2f} s apart"


def _run_directory(workdir: str) -> str:
    """All hosts see the same writable folder, with space for checkpoints."""
    with processes.all_or_none():
        atomic.check_no_file(workdir)
    folder = paths.as_path(workdir)
    existed = folder.exists()
    directory.make_folder(workdir)
    if paths.is_store(workdir):
        return f"{workdir} can be written, and all hosts see the same"
    free_gb = shutil.disk_usage(folder).free / 1e9
    processes.barrier()
    if not existed and processes.is_main():
        folder.rmdir()
    if free_gb < _LEAST_FREE_GB:
        raise ConfigError(
            f"--workdir={workdir}: {free_gb:.1f} GB are free; checkpoints need at "
            f"least {_LEAST_FREE_GB:g}"
        )
    return f"{workdir} is the same folder on all hosts, {free_gb:.0f} GB free"


# By name: what needs neither a run directory nor a compilation.
OF_MACHINES: tuple[tuple[str, Callable[[], str]], ...] = (
    ("environment", _environment),
    ("devices", _devices),
    ("hosts", _hosts),
    ("versions", _versions),
    ("clocks", _clocks),
)


def compare_devices() -> Iterator[Verdict]:
    """Compares all devices with one of them, or a single accelerator with a CPU."""
    count, kind = jax.device_count(), jax.devices()[0].platform
    if count == 1 and kind == "cpu":
        yield Verdict("1 device = all", True, "there is only one")
        return
    title = f"1 device = {count}" if count > 1 else f"{kind} = cpu"
    reference = None
    try:
        if count == 1:
            reference = parallel.create_mesh(jax.devices("cpu")[:1])
        differences = equivalence.compare(parallel.create_mesh(), reference)
    except RuntimeError as error:  # no CPUs in JAX_PLATFORMS, or an error of XLA
        yield Verdict(title, False, f"cannot run: {first_line(error)}")
        return
    for difference in differences:
        yield Verdict(
            title,
            difference.ok,
            f"{difference.quantity}: differs by {difference.relative:.0e} "
            f"(up to {difference.tolerance:.0e} is rounding)",
        )
