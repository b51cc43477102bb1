"""Memory that stays with the process between the train steps of a CPU."""

import ctypes
import importlib.metadata
import importlib.util

import jax

# Parameters of glibc's mallopt.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keeps what XLA frees, if CPUs are the devices; says whether it does.

    XLA asks the C library for the temporaries of a step, 470 MiB in ResNet-50's of 32
    views at 64 pixels, and hands them back behind it. glibc passes blocks of that size
    on to the kernel, so each step has to be given zeroed pages anew: 121,000 page
    faults, a fifth of its time. Here they stay in the main thread's heap, the only one
    that can hold such blocks, so steps are run by that thread: it would wait for them
    anyway. With an accelerator a step's temporaries are not in this memory.

    To be called before anything touches a device. Has no effect on systems without
    glibc.
    """
    if not _cpus_compute():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # macOS, musl
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _LARGEST_INT))
    kept = all([mallopt(ctypes.c_int(k), ctypes.c_int(v)) for k, v in settings])
    if kept:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    return kept


def _cpus_compute() -> bool:
    """Whether JAX will choose CPUs, found without starting it on its devices."""
    platforms = getattr(jax.config, "jax_platforms", None)
    if platforms:
        return bool(platforms == "cpu")
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and importlib.util.find_spec("libtpu") is None
