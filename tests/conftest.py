"""Eight virtual CPU devices and one compilation cache for the whole test session."""

import os
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
# For `configs`, as commands see it.
sys.path.insert(0, str(ROOT))

# Inherited by the processes that tests start, and shared by all of them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(pathlib.Path(tempfile.gettempdir()) / f"simclr_jax_test_cache_{os.getuid()}"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

# Compiling takes most of the time here; less optimised programs compile twice as fast.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
