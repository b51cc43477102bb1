"""Device and versions, and whether the device computes what a CPU does."""

import importlib.metadata
import os
import platform

from accelerator_parts.record import Record, Settings

LIBRARIES = ("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu")
LIBRARIES += ("flax", "optax", "orbax-checkpoint", "numpy", "torch", "tensorflow")


def describe(record: Record, settings: Settings) -> None:
    """Kind, number and memory of the devices, and versions."""
    import jax

    device = jax.devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit")
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    record["device"] = {
        "kind": device.device_kind,
        "platform": device.platform,
        "count": jax.device_count(),
        "gib_for_jax": memory and round(memory / 2**30, 1),
        "cpu_cores": len(os.sched_getaffinity(0)),
    }
    record["versions"] = {"Python": platform.python_version(), **versions}


def equivalence(record: Record, settings: Settings) -> None:
    """What `python -m simclr_jax.doctor` compares."""
    from simclr_jax.doctor import checks

    for verdict in checks.compare_devices():
        name = verdict.detail.partition(":")[0]
        record[name] = {
            "compared": verdict.name,
            "ok": verdict.ok,
            "said": verdict.detail,
        }
